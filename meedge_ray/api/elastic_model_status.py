"""The status of an `ElasticModel`: how far its build is, and the bundle it left."""

from typing import Annotated, Literal

from pydantic import Field

from meedge_ray.api.fields import MOST, MOST_BYTES, Decimal, Sha256, Spec, Status, Text, Time, by_key

State = Literal["Waiting", "Running", "Succeeded", "Failed", "Skipped", "Suspended"]
Progress = Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,3})?/[0-9]{1,9}(\.[0-9]{1,3})?$")]


class StageStatus(Spec):
    """One stage of the build."""

    name: Literal["pretrain", "cultivate", "share", "elasticize", "assemble"] = Field(description="which stage")
    key: Text | None = Field(default=None, description="hash of what of the spec the stage depends on")
    state: State = Field(description="how it stands")
    job_id: Text | None = Field(default=None, description="of the Ray job that does it, or did it last")
    attempt: int | None = Field(default=None, ge=0, le=MOST, description="how often it was begun")
    progress: Progress | None = Field(default=None, description="how much of it is done, such as 3.0/9.0")
    message: Text | None = Field(default=None, description="what it does now, or why it stands as it does")
    started_at: Time | None = Field(default=None, description="when its last attempt began")
    finished_at: Time | None = Field(default=None, description="when it was done, or had failed for good")


class BundleStatus(Spec):
    """The bundle as it was built last; it stays while a changed spec is built."""

    path: Text = Field(description="the bundle's folder")
    sha256: Sha256 = Field(description="hash of its manifest")
    branches: int = Field(ge=0, le=MOST, description="branches that survived")
    variants: int = Field(ge=0, le=MOST, description="blocks beside the backbone's own")
    size_bytes: int = Field(ge=0, le=MOST_BYTES, description="of all its units")
    final_accuracy: Decimal = Field(description="of the final exit on the test split, 0..1")


class ElasticModelStatus(Status):
    """How far the build is, and what it left."""

    stages: tuple[StageStatus, ...] = Field(
        default=(),
        max_length=16,
        description="the build's stages, in the order they are done",
        json_schema_extra=by_key("name"),
    )
    bundle: BundleStatus | None = Field(default=None, description="what the last finished build left")
