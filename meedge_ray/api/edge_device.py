"""The `EdgeDevice` manifest: one attached device, what it is to run, and what it runs."""

import re
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from meedge_ray.api.agent import MemoryPolicy
from meedge_ray.api.fields import (
    IMMUTABLE,
    MOST,
    MOST_BYTES,
    Decimal,
    FieldError,
    LabelValue,
    Metadata,
    Quantity,
    Reference,
    Sha256,
    Spec,
    Status,
    Text,
    Time,
)
from meedge_ray.api.time_distribution import TimeDistribution

_POLICY = {
    "hysteresis": "hysteresis",
    "grow_after_s": "growAfterSeconds",
    "pressure": "pressure",
}
_CAMEL = {
    "edges_ms": "edgesMilliseconds",
    "mean_ms": "meanMilliseconds",
    "standard_deviation_ms": "standardDeviationMilliseconds",
}


class Histogram(Spec):
    """Shares of the kills between edges, evenly spread from each edge to the next."""

    edges_milliseconds: tuple[Decimal, ...] = Field(
        min_length=2, max_length=4097, description="ascending from 0; the last lies within the horizon"
    )
    probabilities: tuple[Decimal, ...] = Field(
        min_length=1, max_length=4096, description="one for each pair of neighbouring edges; they sum to one"
    )


class Normal(Spec):
    """A normal law without what lies before 0 and beyond the horizon."""

    mean_milliseconds: Decimal = Field(description="most of the law must lie within the horizon")
    standard_deviation_milliseconds: Decimal = Field(description="above 0")


class TimeDistributionSpec(Spec):
    """When within the horizon the kill comes: one of the laws, or uniformly over it if none."""

    histogram: Histogram | None = Field(default=None, description="the kills as they were counted")
    normal: Normal | None = Field(default=None, description="a normal law")

    @model_validator(mode="after")
    def _is_a_law(self) -> Self:
        try:
            self.law()
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            field = tuple(_CAMEL.get(str(part), part) for part in problem["loc"])
            raise FieldError(field, problem["msg"].removeprefix("Value error, ")) from None
        return self

    def law(self) -> TimeDistribution:
        """Return the law as requests and devices speak of it."""
        histogram = self.histogram and {
            "edges_ms": self.histogram.edges_milliseconds,
            "probabilities": self.histogram.probabilities,
        }
        normal = self.normal and {
            "mean_ms": self.normal.mean_milliseconds,
            "standard_deviation_ms": self.normal.standard_deviation_milliseconds,
        }
        return TimeDistribution.model_validate({"histogram": histogram, "normal": normal})


class MemoryPolicySpec(Spec):
    """How a device holds itself within the memory that its group and its machine leave it."""

    headroom: Quantity = Field(default="8Mi", description="kept free, for the answers under way and sudden falls")
    hysteresis: Decimal = Field(
        default="0.05", description="share of the limit that must be free beyond the headroom to load units"
    )
    grow_after_seconds: Decimal = Field(default="1", description="free for so long before units are loaded")
    pressure: Decimal = Field(
        default="0.2", description="share of time stalled for memory above which some is given back"
    )

    @model_validator(mode="after")
    def _is_a_policy(self) -> Self:
        try:
            self.policy(headroom_bytes=0)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            field = tuple(_POLICY.get(str(part), str(part)) for part in problem["loc"])
            raise FieldError(field, problem["msg"]) from None
        return self

    def policy(self, headroom_bytes: int) -> MemoryPolicy:
        """Return it as devices speak of it, given what `headroom` says in bytes."""
        return MemoryPolicy(
            headroom_bytes=headroom_bytes,
            hysteresis=float(self.hysteresis),
            grow_after_s=float(self.grow_after_seconds),
            pressure=float(self.pressure),
        )


class MemoryAt(Spec):
    """A budget that begins at a time of every day."""

    at: str = Field(
        pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$",
        description='the device\'s local time, such as "22:30"',
    )
    memory: Quantity = Field(description="budget from then on")


class DeviceTemplate(Spec):
    """What a device runs, and within what bounds."""

    service_ref: Reference = Field(description="the ElasticService that it asks for placements and units")
    model_ref: Reference = Field(description="the ElasticModel that it runs, one of those the service serves")
    memory: Quantity = Field(description="budget of its units, backbone and branches, such as 2Mi")
    memory_policy: MemoryPolicySpec = Field(
        default_factory=MemoryPolicySpec, description="how it keeps within what there is, which may be less"
    )
    memory_schedule: tuple[MemoryAt, ...] = Field(
        default=(), max_length=96, description="budgets by the time of day; what they want is fetched ahead"
    )
    mode: Literal["anytime", "finiteTime"] = Field(
        default="anytime",
        description="anytime: an inference may be ended at an unknown moment; finiteTime: its deadline is known, and "
        "it is planned for that",
    )
    latency_milliseconds: Decimal | None = Field(
        default=None, description="deadline of an inference that names none. Default: it runs to its end"
    )
    transfer_milliseconds: Decimal | None = Field(
        default=None,
        description="time until a new placement must be complete: no more is placed than the link can carry by then. "
        "Default: as long as it takes",
    )
    device_type: Text | None = Field(
        default=None, description="whose profile its placements and plans are by. Default: the only one there is"
    )
    planning: Literal["auto", "static", "samplewise"] = Field(
        default="auto",
        description="how the branches to run are chosen: static, one plan for all samples; samplewise, anew for every "
        "sample; auto, sample by sample where the build found that it pays",
    )
    horizon_milliseconds: Decimal | None = Field(
        default=None, description='span in which the kill may come, such as 12 or "2.5". Default: the profile\'s own'
    )
    time_distribution: TimeDistributionSpec = Field(
        default_factory=TimeDistributionSpec, description="when within the horizon the kill comes. Default: uniformly"
    )
    threads: int = Field(default=1, ge=1, le=1024, description="that an inference takes")
    cache_dir: Text = Field(
        default="~/.cache/meedge", min_length=1, description="folder on the device where its units are kept"
    )

    @model_validator(mode="after")
    def _some_time(self) -> Self:
        for name in ("horizon_milliseconds", "latency_milliseconds", "transfer_milliseconds"):
            value = getattr(self, name)
            if value is not None and not float(value):
                raise FieldError((to_camel(name),), "must be above 0")
        return self

    def distribution(self) -> TimeDistribution:
        """Return the law of the kill's time."""
        return self.time_distribution.law()


class EdgeDeviceSpec(DeviceTemplate):
    """Which device this is, and what it runs."""

    device: LabelValue = Field(
        min_length=1, description="value of its node's label meedge.dev/device", json_schema_extra=IMMUTABLE
    )


class EdgeDevice(Spec):
    """Like a Pod bound to its Node: one attached device, made by its fleet."""

    api_version: Literal["meedge.dev/v1alpha1"]
    kind: Literal["EdgeDevice"]
    metadata: Metadata
    spec: EdgeDeviceSpec


class DeviceNode(Spec):
    """The node of the cluster that the device is."""

    id: Text | None = Field(default=None, description="Ray's; another one each time it joins")
    address: Text | None = Field(default=None, description="in the cluster's network")


class EdgeDeviceStatus(Status):
    """What the device said last."""

    heartbeat_time: Time | None = Field(default=None, description="when the device last answered")
    node: DeviceNode | None = Field(default=None, description="where it runs; null: its node is away")
    memory_bytes: int | None = Field(default=None, ge=0, le=MOST_BYTES, description="its budget now")
    allowed_bytes: int | None = Field(
        default=None, ge=0, le=MOST_BYTES, description="what its units may take of that, with the memory there is now"
    )
    resident_bytes: int | None = Field(default=None, ge=0, le=MOST_BYTES, description="units in memory, in all")
    process_rss_bytes: int | None = Field(
        default=None, ge=0, le=MOST_BYTES, description="resident memory of its process, the runtime included"
    )
    branches: int | None = Field(default=None, ge=0, le=MOST, description="branches in memory")
    expectation: Decimal | None = Field(default=None, description="mean accuracy expectation over the horizon, 0..1")
    planner: Text | None = Field(default=None, description="how it chooses the branches to run; none: all of them run")
    source: Text | None = Field(default=None, description="where its placement comes from")
    bundle_sha256: Sha256 | None = Field(default=None, description="hash of the manifest of the bundle it runs")
    settings_hash: Text | None = Field(default=None, description="of the spec it runs by")


def object_name(device: str) -> str:
    """Return the metadata.name of a device's object: its label as a name of Kubernetes.

    Different labels may give one name: `pi_1` and `Pi-1` both `pi-1`.
    """
    return re.sub(r"-*\.[-.]*", ".", device.lower().replace("_", "-"))
