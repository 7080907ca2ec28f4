"""MEEdge's High-Priority-First placement (3.3.3), as published: greedy scores, convex hull, priority DFS.

Where the published pseudo-code leaves a choice:

- Algorithm 1, line 6, indexes the branch it scores, j. Its neighbours in time, i - 1 and i + 1, are those
  among the branches already appended and the final exit; before the first the accuracy is 0, after the last
  the time is the horizon's end.
- A branch that gains nothing any more is appended last, by its accuracy x time left / bytes alone.
- Algorithm 2's tree enumerates sets in priority order: the children of a node are the branches behind it.
  A child is entered if it raises the expectation and fits. The best set seen is returned, not the stack at
  the end, and the first path (the greedy search) is always finished.
"""

import bisect
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meedge_ray.search.inputs import (
    Candidates,
    Floats,
    Integers,
    read_candidates,
    read_integers,
    read_law,
    read_number,
)
from meedge_ray.search.outputs import FINAL, MEANT_GAIN, outputs


@dataclass(frozen=True, slots=True)
class HpfPlacement:
    """The best set the search has seen: candidates in the order they run, their bytes and their expectation.

    `exhausted` says that the whole tree was searched before the time was up.
    """

    members: tuple[int, ...]
    size_bytes: int
    expectation: float
    exhausted: bool


def hpf_placement(
    exit_index: npt.ArrayLike,
    duration_ms: npt.ArrayLike,
    accuracy: npt.ArrayLike,
    size_bytes: npt.ArrayLike,
    *,
    backbone_ms: npt.ArrayLike,
    final_ms: float,
    final_accuracy: float,
    horizon_ms: float,
    budget_bytes: int,
    search_ms: float = 10.0,
    timing: str = "independent",
) -> HpfPlacement:
    """Search for `search_ms` a set of branches that fits the budget, under the uniform law.

    Arguments as in `placement.placement_frontier`; `search_ms` bounds the tree search alone (Algorithm 2),
    and may be infinite: the search ends with the tree.

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
    read_law(None, horizon_ms=horizon_ms, final_ms=candidates.final_ms)
    budget = read_number(budget_bytes, "budget_bytes", finite=False)
    limit_ms = read_number(search_ms, "search_ms", finite=False)
    priority = hull_first(greedy_order(candidates, sizes, float(horizon_ms)), candidates)
    return _search_tree(_Scorer(candidates, float(horizon_ms)), priority, sizes, budget, limit_ms)


def greedy_order(candidates: Candidates, size_bytes: Integers, horizon_ms: float) -> Integers:
    """Return all candidates by their greedy score, best first (Algorithm 1)."""
    times, bytes_each = candidates.alone_ms, np.maximum(size_bytes, 1)
    after_final = times >= candidates.final_ms
    before = np.where(after_final, candidates.final_accuracy, 0.0)  # accuracy of the neighbour before
    until = np.where(after_final, horizon_ms, candidates.final_ms)  # time of the neighbour after
    appended_times = [candidates.final_ms]
    waiting = np.ones(len(times), dtype=np.bool_)
    order: list[int] = []
    while waiting.any():
        scores = np.where(waiting, (candidates.accuracy - before) * np.maximum(until - times, 0.0) / bytes_each, 0.0)
        best = int(scores.argmax())
        if scores[best] <= 0:
            break
        order.append(best)
        waiting[best] = False
        place = bisect.bisect_right(appended_times, times[best])
        start = appended_times[place - 1] if place else -np.inf
        end = appended_times[place] if place < len(appended_times) else np.inf
        before[(times >= times[best]) & (times < end)] = candidates.accuracy[best]
        until[(times >= start) & (times < times[best])] = times[best]
        appended_times.insert(place, float(times[best]))
    rest = np.flatnonzero(waiting)
    alone = candidates.accuracy[rest] * np.maximum(horizon_ms - times[rest], 0.0) / bytes_each[rest]
    return np.append(np.array(order, dtype=np.int64), rest[np.argsort(-alone, kind="stable")])


def hull_first(order: Integers, candidates: Candidates) -> Integers:
    """Return the order with the branches on the convex envelope first (Algorithm 2, lines 3 and 4)."""
    on_hull = _hull(candidates.alone_ms, candidates.accuracy, candidates.final_ms, candidates.final_accuracy)
    first = np.isin(order, on_hull)
    return np.concatenate((order[first], order[~first]))


def _hull(times: Floats, accuracies: Floats, final_ms: float, final_accuracy: float) -> list[int]:
    """Return the branches on the rising upper hull of (time, accuracy) from the origin, with the final exit."""
    x, y = np.append(times, final_ms), np.append(accuracies, final_accuracy)
    corners: list[tuple[float, float, int]] = [(0.0, 0.0, FINAL)]
    for index in np.lexsort((-y, x)).tolist():
        point = (float(x[index]), float(y[index]), index)
        if point[1] <= corners[-1][1]:
            continue
        while len(corners) > 1 and _turns_left(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    return [index for _, _, index in corners if 0 <= index < len(times)]


def _turns_left(a: tuple[float, float, int], b: tuple[float, float, int], c: tuple[float, float, int]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) >= (b[1] - a[1]) * (c[0] - a[0])


class _Scorer:
    """The expectation of small sets, many times: a plain loop, which beats arrays at ten branches."""

    def __init__(self, candidates: Candidates, horizon_ms: float) -> None:
        order = outputs(candidates, candidates.run_order())
        base = candidates.reach_ms if candidates.timing == "cumulative" else candidates.alone_ms
        self.candidate: list[int] = order.tolist()
        self.rank = {candidate: rank for rank, candidate in enumerate(self.candidate)}
        # FINAL is -1: the one appended.
        self._base = np.append(base, candidates.final_ms)[order].tolist()
        self._cost = np.append(candidates.cost_ms, 0.0)[order].tolist()
        self._accuracy = np.append(candidates.accuracy, candidates.final_accuracy)[order].tolist()
        self._horizon = horizon_ms

    def __call__(self, ranks: list[int]) -> float:
        """Return the expectation of outputs given by their place in the order they run, ascending."""
        spent = best = value = 0.0
        for rank in ranks:
            spent += self._cost[rank]
            accuracy = self._accuracy[rank]
            if accuracy > best:
                left = 1.0 - (self._base[rank] + spent) / self._horizon
                if left > 0.0:
                    value += (accuracy - best) * left
                best = accuracy
        return value


def _search_tree(
    scorer: _Scorer, priority: Integers, size_bytes: Integers, budget: float, limit_ms: float
) -> HpfPlacement:
    order = [scorer.rank[candidate] for candidate in priority.tolist()]
    sizes = [int(size_bytes[scorer.candidate[rank]]) for rank in order]
    bare = [scorer.rank[FINAL]]
    stack = [(0, 0, bare, scorer(bare))]  # of the next child, and the bytes, outputs and expectation so far
    best = stack[0]
    deadline = time.perf_counter() + limit_ms / 1000
    greedy = True
    while stack:
        child, held, ranks, value = stack.pop()
        for place in range(child, len(order)):
            if not greedy and time.perf_counter() >= deadline:
                return _placement(scorer, best, exhausted=False)
            if held + sizes[place] > budget:
                continue
            longer = ranks.copy()
            bisect.insort(longer, order[place])
            reached = scorer(longer)
            if reached > value + MEANT_GAIN:
                stack.append((place + 1, held, ranks, value))
                stack.append((place + 1, held + sizes[place], longer, reached))
                break
        else:
            greedy = False
        if stack and stack[-1][3] > best[3]:
            best = stack[-1]
    return _placement(scorer, best, exhausted=True)


def _placement(scorer: _Scorer, node: tuple[int, int, list[int], float], *, exhausted: bool) -> HpfPlacement:
    members = tuple(scorer.candidate[rank] for rank in node[2] if scorer.candidate[rank] != FINAL)
    return HpfPlacement(members, node[1], node[3], exhausted)
