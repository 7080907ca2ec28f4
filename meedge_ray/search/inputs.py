"""Reads what the placement algorithms are given, once, so that they never meet a bad number.

Units: ms for times, bytes for sizes, fractions 0..1 for accuracies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from meedge_ray.domain.errors import InvalidInputError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Timing = Literal["cumulative", "independent"]

_SAMPLES = 257
_ROUNDING = 1e-9
_MOST_BYTES = 2**62
UNBOUNDED = 1e300  # finite, so that it times nothing is nothing


@dataclass(frozen=True, slots=True)
class Law:
    """The chance of not being killed yet, of an array of times in ms.

    `steepness` bounds how much it falls in a ms; no bound is known for a law that is given as a function.
    """

    chance: Callable[[Floats], Floats]
    steepness: float = UNBOUNDED

    def __call__(self, times: Floats) -> Floats:
        """Return the chances at all times."""
        return self.chance(times)


@dataclass(frozen=True, slots=True)
class Candidates:
    """K branches that may be placed, with the backbone they hang on; arrays of shape [K].

    `reach_ms` is the backbone's time up to the branch's exit, `cost_ms` what running the branch adds to
    the time of every later result, `alone_ms` when its result comes if nothing else runs: reach + duration.
    """

    exit_index: Integers
    reach_ms: Floats
    cost_ms: Floats
    alone_ms: Floats
    accuracy: Floats
    final_ms: float
    final_accuracy: float
    timing: Timing

    def run_order(self) -> Integers:
        """Return all candidates in the order they would run."""
        if self.timing == "cumulative":
            return np.lexsort((self.accuracy, self.exit_index))
        return np.lexsort((self.accuracy, self.alone_ms))


def read_candidates(
    exit_index: npt.ArrayLike,
    duration_ms: npt.ArrayLike,
    accuracy: npt.ArrayLike,
    *,
    backbone_ms: npt.ArrayLike,
    final_ms: float,
    final_accuracy: float,
    timing: str,
) -> Candidates:
    """Check and convert the profile of K candidates on a backbone with E exit points.

    Raises:
        InvalidInputError: `where` names the argument that cannot be used.
    """
    if timing not in ("cumulative", "independent"):
        raise InvalidInputError(f"{timing!r} is no timing", where="timing", do="Use cumulative or independent")
    exits = read_integers(exit_index, "exit_index")
    duration = read_floats(duration_ms, "duration_ms", count=len(exits))
    accuracies = read_floats(accuracy, "accuracy", count=len(exits), most=1.0)
    backbone = read_floats(backbone_ms, "backbone_ms")
    if (np.diff(backbone) < 0).any():
        raise InvalidInputError("times up to the exit points must not decrease", where="backbone_ms")
    if len(exits) and exits.max() >= len(backbone):
        raise InvalidInputError(
            f"exit {exits.max()} is out of range, the backbone has {len(backbone)} exit points",
            where="exit_index",
        )
    final = read_number(final_ms, "final_ms")
    if len(backbone) and backbone[-1] > final * (1 + _ROUNDING):
        raise InvalidInputError(
            f"the final exit at {final} ms comes before the last exit point at {backbone[-1]} ms",
            where="final_ms",
        )
    reach = backbone[exits] if len(exits) else np.zeros(0)
    return Candidates(
        exit_index=exits,
        reach_ms=reach,
        cost_ms=duration if timing == "cumulative" else np.zeros_like(duration),
        alone_ms=reach + duration,
        accuracy=accuracies,
        final_ms=final,
        final_accuracy=read_number(final_accuracy, "final_accuracy", most=1.0),
        timing=cast(Timing, timing),
    )


def read_floats(values: npt.ArrayLike, where: str, *, count: int | None = None, most: float = np.inf) -> Floats:
    """Return finite numbers in 0..`most` as an array of shape [count].

    Raises:
        InvalidInputError: a number is NaN, infinite, negative or too large, or the count differs.
    """
    try:
        array = np.ascontiguousarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidInputError("not a list of numbers", where=where) from None
    _check_shape(array, where, count)
    if not (np.isfinite(array) & (array >= 0) & (array <= most)).all():
        span = f"within 0..{most:g}" if np.isfinite(most) else "finite and not negative"
        raise InvalidInputError(f"every number must be {span}", where=where)
    return array


def read_integers(values: npt.ArrayLike, where: str, *, count: int | None = None) -> Integers:
    """Return whole numbers from 0 as an array of shape [count] whose sum fits 62 bits.

    Raises:
        InvalidInputError: a number is not whole, negative or too large, or the count differs.
    """
    array: npt.NDArray[Any] = np.asarray(values)
    _check_shape(array, where, count)
    if not array.size:
        return np.zeros(0, dtype=np.int64)
    if array.dtype.kind not in "iu":
        raise InvalidInputError("not a list of whole numbers", where=where)
    if array.min() < 0 or float(array.max()) * array.size >= _MOST_BYTES:
        raise InvalidInputError("a number is negative or too large", where=where)
    return np.ascontiguousarray(array, dtype=np.int64)


def read_number(value: float, where: str, *, most: float = np.inf, finite: bool = True) -> float:
    """Return one number in 0..`most`.

    Raises:
        InvalidInputError: NaN, negative, too large, or infinite where it must be finite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InvalidInputError("not a number", where=where) from None
    if not 0 <= number <= most or (finite and not np.isfinite(number)):
        raise InvalidInputError(f"{number} is not within 0..{most:g}", where=where)
    return number


def read_law(survival: Callable[[Any], Any] | None, *, horizon_ms: float, final_ms: float) -> Law:
    """Return the chance of not being killed yet as a function of an array of times in ms.

    None is the uniform law over the horizon: max(0, 1 - t / horizon). A `Law` keeps its steepness.

    Raises:
        InvalidInputError: the horizon ends before the final exit, or `survival` leaves 0..1 or rises.
    """
    horizon = read_number(horizon_ms, "horizon_ms")
    if horizon <= 0 or horizon < final_ms:
        raise InvalidInputError(
            f"a horizon of {horizon} ms ends before the backbone alone, which takes {final_ms} ms",
            where="horizon_ms",
            do="Make it at least the single-exit time",
        )
    if survival is None:
        return Law(lambda times: np.maximum(0.0, 1.0 - times / horizon), steepness=1.0 / horizon)
    law = _vectorised(survival, np.linspace(0.0, horizon, _SAMPLES))
    sampled = law(np.linspace(0.0, horizon, _SAMPLES))
    if not ((sampled >= -_ROUNDING) & (sampled <= 1 + _ROUNDING)).all():
        raise InvalidInputError("the chance of not being killed yet must be within 0..1", where="survival")
    if (np.diff(sampled) > _ROUNDING).any():
        raise InvalidInputError("the chance of not being killed yet must not rise", where="survival")
    return law


def _vectorised(survival: Callable[[Any], Any], times: Floats) -> Law:
    if isinstance(survival, Law):
        return survival
    try:
        whole = np.shape(survival(times)) == times.shape
    except (TypeError, ValueError):
        whole = False

    def at_once(times: Floats) -> Floats:
        chances = np.ascontiguousarray(survival(times), dtype=np.float64)
        if chances.shape != times.shape:
            raise InvalidInputError(f"of times {times.shape} it gives chances {chances.shape}", where="survival")
        return chances

    def one_by_one(times: Floats) -> Floats:
        try:
            return np.array([float(survival(float(time))) for time in times], dtype=np.float64)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise InvalidInputError(f"cannot be evaluated: {error}", where="survival") from None

    return Law(at_once if whole else one_by_one)


def read_members(members: Sequence[int] | Integers, count: int) -> Integers:
    """Return distinct indices of candidates.

    Raises:
        InvalidInputError: an index is out of range or given twice.
    """
    chosen = read_integers(members, "members")
    if len(np.unique(chosen)) < len(chosen):
        raise InvalidInputError("a branch is given twice", where="members")
    if len(chosen) and chosen.max() >= count:
        raise InvalidInputError(f"branch {chosen.max()} is out of range, there are {count}", where="members")
    return chosen


def _check_shape(array: npt.NDArray[Any], where: str, count: int | None) -> None:
    if array.ndim != 1:
        raise InvalidInputError(f"must have one dimension, has {array.ndim}", where=where)
    if count is not None and len(array) != count:
        raise InvalidInputError(f"has {len(array)} entries, expected are {count}", where=where)
