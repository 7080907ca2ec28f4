"""When the kill comes: the law that placements are chosen for, as requests and manifests say it."""

from itertools import pairwise
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

_MOST_BINS = 4096
_SUM_TOLERANCE = 1e-6

Number = Annotated[
    float, WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[0-9]*\.?[0-9]+$"}]})
]


class _Law(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Histogram(_Law):
    """Shares of the kills between edges, evenly spread from each edge to the next."""

    edges_ms: tuple[Number, ...] = Field(
        max_length=_MOST_BINS + 1, description="two or more, ascending from 0; the last lies within the horizon"
    )
    probabilities: tuple[Annotated[Number, Field(ge=0)], ...] = Field(
        description="one for each pair of neighbouring edges; they sum to one"
    )

    @field_validator("edges_ms")
    @classmethod
    def _ascend_from_zero(cls, edges_ms: tuple[float, ...]) -> tuple[float, ...]:
        if len(edges_ms) < 2 or edges_ms[0] != 0:
            raise ValueError("at least two edges are needed, the first of them 0")
        for index, (before, after) in enumerate(pairwise(edges_ms), start=1):
            if after <= before:
                raise ValueError(f"must ascend: edge {index} is {after:g}, the one before it {before:g}")
        return edges_ms

    @field_validator("probabilities")
    @classmethod
    def _sum_to_one(cls, probabilities: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        edges_ms = info.data.get("edges_ms")  # not there if it was refused
        if edges_ms is not None and len(probabilities) != len(edges_ms) - 1:
            raise ValueError(f"{len(edges_ms)} edges need {len(edges_ms) - 1} probabilities, got {len(probabilities)}")
        if abs(sum(probabilities) - 1) > _SUM_TOLERANCE:
            raise ValueError(f"must sum to one, not to {sum(probabilities):.8g}")
        return probabilities


class Normal(_Law):
    """A normal law without what lies before 0 and beyond the horizon."""

    mean_ms: Number = Field(description="most of the law must lie within the horizon")
    standard_deviation_ms: Number = Field(gt=0)


class TimeDistribution(_Law):
    """The law of the kill's time, from an inference's start: one of the laws, or uniform over the horizon if none."""

    histogram: Histogram | None = None
    normal: Normal | None = None

    @model_validator(mode="after")
    def _one_law(self) -> Self:
        if self.histogram is not None and self.normal is not None:
            raise ValueError("say one of histogram and normal; without either the law is uniform")
        return self

    @property
    def is_uniform(self) -> bool:
        """Whether the kill is equally likely at any time of the horizon."""
        return self.histogram is None and self.normal is None


UNIFORM = TimeDistribution()
