"""The `ElasticService` manifest: which models are served, and by how many replicas."""

from typing import Literal, Self

from pydantic import Field, model_validator

from meedge_ray.api.fields import MOST, FieldError, Metadata, Name, Reference, Sha256, Spec, Status, Text, by_key


class Autoscaling(Spec):
    """As many replicas as the requests need."""

    min_replicas: int = Field(default=1, ge=1, le=1000, description="never fewer")
    max_replicas: int = Field(ge=1, le=1000, description="never more")
    target_ongoing_requests: int = Field(
        default=16, ge=1, le=65_536, description="requests at a time that one replica is meant to have"
    )

    @model_validator(mode="after")
    def _least_first(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise FieldError(("minReplicas",), f"is above maxReplicas, which is {self.max_replicas}")
        return self


class Auth(Spec):
    """Who may ask: whoever has the token."""

    token_file: Text | None = Field(
        default=None,
        min_length=1,
        description="a file with the bearer token. Default: one is made and kept in the operator's home",
    )


class ElasticServiceSpec(Spec):
    """Which models are served, and how."""

    model_refs: tuple[Reference, ...] = Field(
        min_length=1,
        max_length=64,
        description="the ElasticModels to serve, from when they are built",
        json_schema_extra=by_key("name"),
    )
    replicas: int | None = Field(
        default=None, ge=1, le=1000, description="how many processes answer. Default: 1, where nothing scales them"
    )
    autoscaling: Autoscaling | None = Field(default=None, description="instead of replicas: as many as are needed")
    max_ongoing_requests: int = Field(
        default=64, ge=1, le=65_536, description="requests at a time that one replica takes; others wait"
    )
    max_queued_requests: int = Field(
        default=256, ge=0, le=1_000_000, description="requests that may wait; others are answered with 503"
    )
    auth: Auth = Field(default_factory=Auth, description="who may ask")

    @model_validator(mode="after")
    def _one_way_to_scale(self) -> Self:
        if self.replicas is not None and self.autoscaling is not None:
            raise FieldError(("replicas",), "say one of replicas and autoscaling")
        return self

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        names = [reference.name for reference in self.model_refs]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise FieldError(("modelRefs", index, "name"), f"{name} is named twice")
        return self


class ElasticService(Spec):
    """Like a Deployment with its Service: replicas of the placement service, and where they answer."""

    api_version: Literal["meedge.dev/v1alpha1"]
    kind: Literal["ElasticService"]
    metadata: Metadata
    spec: ElasticServiceSpec


class ServedModel(Spec):
    """One model as it is served now."""

    name: Name = Field(description="of the ElasticModel")
    bundle_sha256: Sha256 = Field(description="hash of its bundle's manifest")


class ElasticServiceStatus(Status):
    """Where the service answers, and with what."""

    url: Text | None = Field(default=None, description="where it answers")
    token_file: Text | None = Field(default=None, description="file with the bearer token, on the operator's machine")
    ready_replicas: int | None = Field(default=None, ge=0, le=MOST, description="replicas that answer")
    models: tuple[ServedModel, ...] = Field(
        default=(), max_length=64, description="what is served now", json_schema_extra=by_key("name")
    )
