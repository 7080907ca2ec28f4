"""Bodies of the placement service's requests and responses, shared by server and device."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from meedge_ray.api.time_distribution import UNIFORM, TimeDistribution

Sha256 = str
# In one request, which a device has as many files open for.
MOST_UNITS = 128
Score = Literal["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7"]


class Body(BaseModel):
    """Base of every body: unknown fields are refused, so a typo is an error and not a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class UnitBody(Body):
    """A unit by name and size."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class UnitRest(Body):
    """What a device lacks of a unit: all that comes after the bytes it has."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    offset_bytes: int = Field(default=0, ge=0, description="bytes of it that the device has")


class UnitsRequest(Body):
    """Units to send one after the other, in this order."""

    units: list[UnitRest] = Field(min_length=1, max_length=MOST_UNITS)

    @field_validator("units")
    @classmethod
    def _once_each(cls, units: list[UnitRest]) -> list[UnitRest]:
        if len({unit.sha256 for unit in units}) < len(units):
            raise ValueError("a unit is named twice")
        return units


class ModelSummary(Body):
    """One served model."""

    name: str
    architecture: str
    blocks: int
    branches: int
    classes: int
    final_accuracy: float
    backbone_bytes: int
    device_types: list[str]
    bundle_sha256: str = Field(description="hash of the bundle's manifest: changes when the model was rebuilt")


class ModelList(Body):
    """Every served model."""

    models: list[ModelSummary]


class FrontierPoint(Body):
    """The best placement of its size."""

    size_bytes: int = Field(description="backbone and branches")
    expectation: float = Field(description="mean accuracy expectation over the horizon, 0..1")
    branches: list[str]


class FrontierResponse(Body):
    """The best placement for every memory budget."""

    model: str
    device_type: str
    horizon_ms: float
    points: list[FrontierPoint]


class PlacementRequest(Body):
    """What a device has: budgets, link, and the units it already holds; and how to choose for it."""

    memory_bytes: int = Field(gt=0)
    latency_budget_ms: float | None = Field(
        default=None, gt=0, description="time until the new placement must be complete: search and transmission"
    )
    rate_bps: float | None = Field(default=None, ge=1, description="measured link rate; needed with latency_budget_ms")
    held: list[str] = Field(default_factory=list, max_length=100_000, description="SHA-256 of units already held")
    horizon_ms: float | None = Field(default=None, gt=0, description="default: the profile's horizon")
    distribution: TimeDistribution = Field(
        default=UNIFORM, description="when within the horizon the kill comes; default: uniform over it"
    )
    device_type: str | None = Field(default=None, description="default: the only profile there is")
    method: Literal["frontier", "hpf"] = Field(
        default="frontier", description="the exact frontier, or MEEdge's HPF search, for uniform kills alone"
    )
    score: Score | None = Field(default=None, description="priority of HPF's search; default: m7")

    @field_validator("score")
    @classmethod
    def _of_hpf(cls, score: Score | None, info: ValidationInfo) -> Score | None:
        if score is not None and info.data.get("method") == "frontier":
            raise ValueError("a score belongs to the method hpf")
        return score


class PlacementResponse(Body):
    """The chosen units and what they promise."""

    model: str
    bundle_sha256: str
    branches: list[str]
    size_bytes: int
    expectation: float
    horizon_ms: float
    device_type: str
    units: list[UnitBody] = Field(description="blocks first, then branches, in the order they run")
    fetch: list[UnitBody] = Field(description="the units among them not held yet")
    transmission_ms: float | None
    search_ms: float


class ErrorBody(Body):
    """Every error of the service."""

    what: str
    where: str
    do: str
