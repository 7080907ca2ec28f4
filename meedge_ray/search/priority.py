"""The eight priority scores that MEEdge compares (3.3.3, 4.3): in which order branches are tried.

m0 takes the smallest first. m1 to m4 are Monte Carlo estimates of what a branch adds, see `sampled_order`. m5 and
m6 are Algorithm 1, see `greedy_order`; m7 is m6 with the branches on the convex envelope first.
"""

import bisect
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from meedge_ray.search.inputs import Candidates, Floats, Integers
from meedge_ray.search.outputs import FINAL
from meedge_ray.search.tree import Limits, Ranked

Score = Literal["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7"]
SCORES: tuple[Score, ...] = get_args(Score)
SAMPLES = 256  # sets drawn for m1 to m4
_NEVER = 1e-300  # a rate: whoever has it comes last, in random order
_POWER = {"m1": 1, "m2": 0, "m3": 1, "m4": 2}  # of the bytes that the mean gain is divided by


def priority_order(score: Score, candidates: Candidates, limits: Limits, horizon_ms: float, seed: int) -> Integers:
    """Return all candidates, the one with the highest priority first."""
    if score == "m0":
        return np.argsort(limits.size_bytes, kind="stable")
    if score in _POWER:
        rng = np.random.default_rng(seed)
        ranked = Ranked.of(candidates, horizon_ms)
        return sampled_order(ranked, limits, rng, by_density=score in ("m3", "m4"), power=_POWER[score])
    order = greedy_order(candidates, limits.size_bytes, horizon_ms)
    return hull_first(order, candidates) if score == "m7" else order


def sampled_order(
    ranked: Ranked, limits: Limits, rng: np.random.Generator, *, by_density: bool, power: int
) -> Integers:
    """Return all candidates by their mean gain over `SAMPLES` drawn sets, divided by bytes ** `power`.

    The paper names the sampling and no more (4.3). Here a set is the longest beginning of a drawn order of all
    candidates that fits the limits, without those that do not raise the accuracy where they would run. The order
    is random: each is as likely as any other. With importance sampling (`by_density`) candidates are drawn one
    after the other, each in proportion to its stand-alone density: what it adds to the empty placement, a byte.
    A candidate's gain is what it adds to the set's expectation, whether it still fits or not; sets drawn with it
    are left out of its mean. The means are not weighted back to those over random orders: they are meant to be
    over sets as good as those that the search will build.
    """
    count = len(limits.size_bytes)
    nothing = ranked.rank[[FINAL]]
    bytes_each = np.maximum(limits.size_bytes, 1).astype(np.float64)
    alone = gains(ranked, nothing)
    rate = np.maximum(alone / bytes_each, _NEVER) if by_density else np.ones(count)
    total, drawn_without = np.zeros(count), np.zeros(count)
    for _ in range(SAMPLES):
        # Of waits that are exponential, each is the shortest in proportion to its rate.
        order = np.argsort(rng.standard_exponential(count) / rate)
        fits = (np.cumsum(limits.size_bytes[order]) <= limits.budget_bytes) & (
            np.cumsum(limits.fetch_bytes[order]) <= limits.fetch_limit_bytes
        )
        drawn = np.sort(np.append(ranked.rank[order[fits]], nothing))
        absent = np.ones(count, dtype=np.bool_)
        absent[order[fits]] = False
        total += np.where(absent, gains(ranked, drawn[_rising(ranked.accuracy[drawn])]), 0.0)
        drawn_without += absent
    mean = np.where(drawn_without > 0, total / np.maximum(drawn_without, 1), alone)
    return np.argsort(-mean / bytes_each**power, kind="stable")


def gains(ranked: Ranked, ranks: Integers) -> Floats:
    """Return what each of K candidates adds to the expectation of a set of n rising outputs, as ascending ranks.

    0 if it does not raise the accuracy where it would run; below if it delays more than it adds. Shape [K].
    """
    spent = np.cumsum(ranked.cost[ranks])
    times = ranked.base[ranks] + spent
    best = np.append(0.0, ranked.accuracy[ranks])  # before each, [n + 1]
    place = np.searchsorted(ranks, ranked.rank[:-1])
    raising = np.flatnonzero(ranked.accuracy[ranked.rank[:-1]] > best[place])
    mine, place = ranked.rank[raising], place[raising]
    accuracy, cost = ranked.accuracy[mine], ranked.cost[mine]
    own = (accuracy - best[place]) * _left(ranked.base[mine] + np.append(0.0, spent)[place] + cost)
    # Outputs that follow come later by the candidate's time, and bring less by the accuracy that it has brought.
    follows = np.arange(len(ranks)) >= place[:, None]  # [raising, n]
    later = times + np.where(follows, cost[:, None], 0.0)
    before = np.maximum(best[:-1], np.where(follows, accuracy[:, None], 0.0))
    others = (np.maximum(0.0, best[1:] - before) * _left(later)).sum(axis=1)
    gained = np.zeros(len(ranked.rank) - 1)
    gained[raising] = own + others - np.diff(best) @ _left(times)
    return gained


def _left(times: Floats) -> Floats:
    return np.maximum(0.0, 1.0 - times)


def _rising(accuracy: Floats) -> npt.NDArray[np.bool_]:
    rising: npt.NDArray[np.bool_] = accuracy > np.append(0.0, np.maximum.accumulate(accuracy)[:-1])
    return rising


def greedy_order(candidates: Candidates, size_bytes: Integers, horizon_ms: float) -> Integers:
    """Return all candidates by their greedy score, best first (Algorithm 1).

    Line 6 indexes the branch it scores, j. Its neighbours in time, i - 1 and i + 1, are those among the branches
    already appended and the final exit; before the first the accuracy is 0, after the last the time is the
    horizon's end. A branch that gains nothing any more comes last, by its accuracy x time left / bytes alone.
    """
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
