"""Which branches to keep in memory: the best set for every memory budget, in one run.

The value of a placement is its mean accuracy expectation (MEEdge 3.3.2, 4.1): the accuracy of the best
result at hand when the kill comes, averaged over the time of the kill. With results of rising accuracy
c_1 < c_2 < ... at times S_1 <= S_2 <= ..., and G(t) the chance of no kill before t,

    expectation = sum over j of (c_j - c_{j-1}) G(S_j),    c_0 = 0:

accuracy c_j - c_{j-1} is at hand from S_j on. A uniform kill over the horizon H has G(t) = max(0, 1 - t / H).

*Cumulative* timing is a device's: branches run one after the other between the blocks, so each delays all
that follows, and S_j is the backbone up to the exit of j plus all branches run up to and including j; the
final exit comes last. *Independent* timing is MEEdge's: every result comes when its branch, profiled alone,
would give it. The search itself is in `labels`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from meedge_ray.search.inputs import (
    Candidates,
    Floats,
    Integers,
    read_candidates,
    read_integers,
    read_law,
    read_members,
    read_number,
)
from meedge_ray.search.labels import search_labels


@dataclass(frozen=True, slots=True)
class PlacementFrontier:
    """The best placement for every memory budget: P points, both arrays [P] strictly rising.

    `size_bytes` counts the branches alone. Point 0 is the empty placement (or the best that takes no bytes).
    """

    size_bytes: Integers
    expectation: Floats
    _members: list[tuple[int, ...]] = field(repr=False)

    def members(self, point: int) -> tuple[int, ...]:
        """Return the candidates placed at a point, in the order they run."""
        return self._members[point]

    def at(self, budget_bytes: int) -> int | None:
        """Return the best point that fits the budget, None if not even the empty placement does."""
        point = int(self.size_bytes.searchsorted(budget_bytes, side="right")) - 1
        return point if point >= 0 else None


def placement_frontier(
    exit_index: npt.ArrayLike,
    duration_ms: npt.ArrayLike,
    accuracy: npt.ArrayLike,
    size_bytes: npt.ArrayLike,
    *,
    backbone_ms: npt.ArrayLike,
    final_ms: float,
    final_accuracy: float,
    horizon_ms: float,
    timing: str = "cumulative",
    one_per_exit: bool = False,
    survival: Callable[[Any], Any] | None = None,
    tolerance: float = 0.0,
) -> PlacementFrontier:
    """Return the best placement for every memory budget, out of K candidates on E exit points.

    Args:
        exit_index: [K] exit point of each candidate.
        duration_ms: [K] time of the branch itself, without the backbone.
        accuracy: [K] fractions 0..1.
        size_bytes: [K] whole numbers.
        backbone_ms: [E] time from the start up to each exit point.
        final_ms: time of the backbone without any branch.
        final_accuracy: fraction 0..1.
        horizon_ms: the span in which the kill may come, at least `final_ms`.
        timing: `cumulative`, or `independent` for MEEdge's own.
        one_per_exit: place at most one branch at an exit point.
        survival: chance 0..1 of not being killed before a time in ms, never rising, of an array or of one
            number; uniform over the horizon if None.
        tolerance: every point may fall short of the best for its budget by this much, and never by more.

    Raises:
        InvalidInputError: `where` names the argument that cannot be used.
    """
    candidates = read_candidates(
        exit_index,
        duration_ms,
        accuracy,
        backbone_ms=backbone_ms,
        final_ms=final_ms,
        final_accuracy=final_accuracy,
        timing=timing,
    )
    sizes = read_integers(size_bytes, "size_bytes", count=len(candidates.accuracy))
    law = read_law(survival, horizon_ms=horizon_ms, final_ms=candidates.final_ms)
    slack = read_number(tolerance, "tolerance")
    return PlacementFrontier(*search_labels(candidates, sizes, law, one_per_exit=one_per_exit, tolerance=slack))


def result_times(
    members: Sequence[int],
    exit_index: npt.ArrayLike,
    duration_ms: npt.ArrayLike,
    accuracy: npt.ArrayLike,
    *,
    backbone_ms: npt.ArrayLike,
    final_ms: float,
    final_accuracy: float,
    timing: str = "cumulative",
) -> tuple[Floats, Floats]:
    """Return times in ms and accuracies of all results of a given set, the final exit's included, in order.

    Every member runs, by exit and then by accuracy, even where it does not raise the accuracy at hand.

    Raises:
        InvalidInputError: `where` names the argument that cannot be used.
    """
    candidates = read_candidates(
        exit_index,
        duration_ms,
        accuracy,
        backbone_ms=backbone_ms,
        final_ms=final_ms,
        final_accuracy=final_accuracy,
        timing=timing,
    )
    return _results(candidates, read_members(members, len(candidates.accuracy)))


def placement_expectation(
    members: Sequence[int],
    exit_index: npt.ArrayLike,
    duration_ms: npt.ArrayLike,
    accuracy: npt.ArrayLike,
    *,
    backbone_ms: npt.ArrayLike,
    final_ms: float,
    final_accuracy: float,
    horizon_ms: float,
    timing: str = "cumulative",
    survival: Callable[[Any], Any] | None = None,
) -> float:
    """Return the mean accuracy expectation of a given set; arguments as in `placement_frontier`.

    Every member costs its time, even where it does not raise the accuracy at hand.

    Raises:
        InvalidInputError: `where` names the argument that cannot be used.
    """
    times, accuracies = result_times(
        members,
        exit_index,
        duration_ms,
        accuracy,
        backbone_ms=backbone_ms,
        final_ms=final_ms,
        final_accuracy=final_accuracy,
        timing=timing,
    )
    law = read_law(survival, horizon_ms=horizon_ms, final_ms=float(final_ms))
    rises = np.diff(np.maximum.accumulate(accuracies), prepend=0.0)
    return float(rises @ law(times))


def _results(candidates: Candidates, members: Integers) -> tuple[Floats, Floats]:
    order = candidates.run_order()
    order = order[np.isin(order, members)]
    accuracies = np.append(candidates.accuracy[order], candidates.final_accuracy)
    if candidates.timing == "cumulative":
        ran = np.cumsum(np.append(candidates.cost_ms[order], 0.0))
        return np.append(candidates.reach_ms[order], candidates.final_ms) + ran, accuracies
    times = np.append(candidates.alone_ms[order], candidates.final_ms)
    by_time = np.argsort(times, kind="stable")
    return times[by_time], accuracies[by_time]
