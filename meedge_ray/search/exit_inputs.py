"""Reads what the exit planners are given, once, so that they never meet a bad number."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.inputs import Floats, Law, read_floats, read_law, read_number

Booleans = npt.NDArray[np.bool_]

LONGEST_MS = 1e15


class Situation(TypedDict, total=False):
    """What planners take besides the arrays, as keywords; what they mean is said in `exit_plan.plan_exits`."""

    horizon_ms: float | None
    survival: Callable[[Any], Any] | None
    start: int
    elapsed_ms: float
    best_confidence: float
    replan_ms: float


@dataclass(frozen=True, slots=True)
class Exits:
    """The N exits of a network, its last included, and where on the way an inference is; arrays of shape [N].

    `horizon_ms` is 0 where all times are. `law` is None for the uniform one.
    """

    conv_ms: Floats
    branch_ms: Floats
    confidence: Floats
    horizon_ms: float
    law: Law | None
    start: int
    elapsed_ms: float
    best_confidence: float
    replan_ms: float

    @property
    def scale(self) -> float:
        """Fractions of the horizon in a ms."""
        return 1.0 / self.horizon_ms if self.horizon_ms > 0 else 0.0

    @property
    def left(self) -> float:
        """Fraction of the horizon that is left."""
        return 1.0 - self.elapsed_ms * self.scale

    @property
    def reach(self) -> Floats:
        """Fractions of the horizon up to the end of each conv part ahead, if no branch runs."""
        return np.cumsum(np.append(self.elapsed_ms, self.conv_ms[self.start :]))[1:] * self.scale

    @property
    def cost(self) -> Floats:
        """Fractions of the horizon that each branch ahead takes, with the planning after it."""
        return (self.branch_ms[self.start :] + self.replan_ms) * self.scale

    def chance(self, times: Floats) -> Floats:
        """Return the chance of no kill before times that are fractions of the horizon."""
        if self.law is None:
            return np.maximum(0.0, 1.0 - times)
        return self.law(times.ravel() * self.horizon_ms).reshape(times.shape)


def read_exits(
    conv_ms: npt.ArrayLike,
    branch_ms: npt.ArrayLike,
    confidence: npt.ArrayLike,
    *,
    horizon_ms: float | None = None,
    survival: Callable[[Any], Any] | None = None,
    start: int = 0,
    elapsed_ms: float = 0.0,
    best_confidence: float = 0.0,
    replan_ms: float = 0.0,
) -> Exits:
    """Check and convert the arguments of `plan_exits`.

    Raises:
        InvalidInputError: `where` names the argument that cannot be used.
    """
    conv = read_floats(conv_ms, "conv_ms", most=LONGEST_MS)
    branch = read_floats(branch_ms, "branch_ms", count=len(conv), most=LONGEST_MS)
    confidences = read_floats(confidence, "confidence", count=len(conv), most=1.0)
    if not isinstance(start, int | np.integer) or not 0 <= start <= len(conv):
        raise InvalidInputError(f"{start} is not within 0..{len(conv)}", where="start")
    if horizon_ms is None:
        horizon = float(np.cumsum(np.append(0.0, conv + branch))[-1])
    else:
        horizon = read_number(horizon_ms, "horizon_ms", most=LONGEST_MS)
        if horizon == 0:
            raise InvalidInputError("must be above 0", where="horizon_ms")
    law = None
    if survival is not None:
        law = read_law(survival, horizon_ms=horizon, final_ms=0.0) if horizon > 0 else None
    return Exits(
        conv_ms=conv,
        branch_ms=branch,
        confidence=confidences,
        horizon_ms=horizon,
        law=law,
        start=int(start),
        elapsed_ms=read_number(elapsed_ms, "elapsed_ms", most=LONGEST_MS),
        best_confidence=read_number(best_confidence, "best_confidence", most=1.0),
        replan_ms=read_number(replan_ms, "replan_ms", most=LONGEST_MS),
    )


def read_plan(execute: npt.ArrayLike, count: int) -> Booleans:
    """Return a plan as an array of shape [count].

    Raises:
        InvalidInputError: it has another shape, or is not of truth values.
    """
    array: npt.NDArray[Any] = np.asarray(execute)
    if array.shape != (count,):
        raise InvalidInputError(f"has shape {array.shape}, expected is ({count},)", where="execute")
    if array.dtype.kind not in "biu" and array.size:
        raise InvalidInputError("not a list of truth values", where="execute")
    return np.ascontiguousarray(array, dtype=np.bool_)
