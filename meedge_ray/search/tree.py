"""MEEdge's priority-based depth-first search (Algorithm 2), compiled where a compiler was.

The tree enumerates sets in the order of priority: a node is a set, its children are that set with one branch of
lower priority than all of it. A child is entered if it fits and raises the expectation; the first path, where
every branch in turn is added if it can be, is the greedy search.

Outputs are numbered by *rank*, the order in which they run. Times are fractions of the horizon, so the chance
of no kill before a result at t is max(0, 1 - t).
"""

import bisect
import time
from dataclasses import dataclass

import numpy as np

from meedge_ray.search import native
from meedge_ray.search.inputs import Candidates, Floats, Integers
from meedge_ray.search.outputs import FINAL, MEANT_GAIN, outputs

NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Ranked:
    """K candidates and the final exit in the order in which they run; arrays of shape [K + 1].

    `base` and `cost` are the result's time without other branches and what it adds to all later results.
    """

    candidate: Integers
    base: Floats
    cost: Floats
    accuracy: Floats
    rank: Integers  # of each candidate, the final exit's last

    @classmethod
    def of(cls, candidates: Candidates, horizon_ms: float) -> "Ranked":
        """Return the outputs that all candidates and the final exit have."""
        order = outputs(candidates, np.arange(len(candidates.accuracy)))
        base = candidates.reach_ms if candidates.timing == "cumulative" else candidates.alone_ms
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))  # FINAL is -1: the one appended
        return cls(
            order,
            np.append(base, candidates.final_ms)[order] / horizon_ms,
            np.append(candidates.cost_ms, 0.0)[order] / horizon_ms,
            np.append(candidates.accuracy, candidates.final_accuracy)[order],
            rank,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What a set may take, in bytes, and what each of K candidates takes of it: arrays of shape [K]."""

    size_bytes: Integers
    budget_bytes: int
    fetch_bytes: Integers
    fetch_limit_bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """The best set seen, as ranks in order, the final exit among them; its expectation; the sets entered."""

    ranks: Integers
    expectation: float
    nodes: int
    exhausted: bool


def search_tree(
    ranked: Ranked, priority: Integers, limits: Limits, *, limit_ms: float, most_nodes: int = NO_LIMIT
) -> Found:
    """Return the best set seen in `limit_ms`, or `most_nodes` sets; the first path is always finished.

    `priority` holds all candidates, the most urgent first.
    """
    rank = np.ascontiguousarray(ranked.rank[priority])
    sizes, fetches = limits.size_bytes[priority], limits.fetch_bytes[priority]
    if native.kernels is None:
        return _search(ranked, rank.tolist(), sizes.tolist(), fetches.tolist(), limits, limit_ms, most_nodes)
    best = np.empty(len(rank) + 1, dtype=np.int64)
    held, expectation, nodes, exhausted = native.kernels.search_tree(
        rank,
        sizes,
        fetches,
        ranked.base,
        ranked.cost,
        ranked.accuracy,
        best,
        int(ranked.rank[FINAL]),
        limits.budget_bytes,
        limits.fetch_limit_bytes,
        most_nodes,
        limit_ms,
        MEANT_GAIN,
    )
    return Found(best[:held], expectation, nodes, exhausted)


def _search(
    ranked: Ranked,
    rank: list[int],
    sizes: list[int],
    fetches: list[int],
    limits: Limits,
    limit_ms: float,
    most_nodes: int,
) -> Found:
    """Do what the kernel does."""
    expectation = _Expectation(ranked)
    bare = [int(ranked.rank[FINAL])]
    stack = [(0, 0, 0, bare, expectation(bare))]  # the next child, bytes, bytes to fetch, ranks, expectation
    best, most, nodes = bare, stack[0][-1], 0
    deadline = time.perf_counter() + limit_ms / 1e3
    greedy = True
    while stack:
        if not greedy and nodes >= most_nodes:
            return Found(np.array(best, dtype=np.int64), most, nodes, exhausted=False)
        child, size, fetch, ranks, value = stack.pop()
        for place in range(child, len(rank)):
            if not greedy and time.perf_counter() >= deadline:
                return Found(np.array(best, dtype=np.int64), most, nodes, exhausted=False)
            if size + sizes[place] > limits.budget_bytes or fetch + fetches[place] > limits.fetch_limit_bytes:
                continue
            longer = ranks.copy()
            bisect.insort(longer, rank[place])
            reached = expectation(longer)
            if reached > value + MEANT_GAIN:
                stack.append((place + 1, size, fetch, ranks, value))
                stack.append((place + 1, size + sizes[place], fetch + fetches[place], longer, reached))
                nodes += 1
                if reached > most:
                    best, most = longer, reached
                break
        else:
            greedy = False
    return Found(np.array(best, dtype=np.int64), most, nodes, exhausted=True)


class _Expectation:
    """The expectation of small sets, many times: a plain loop, which beats arrays at ten branches."""

    def __init__(self, ranked: Ranked) -> None:
        self._base = ranked.base.tolist()
        self._cost = ranked.cost.tolist()
        self._accuracy = ranked.accuracy.tolist()

    def __call__(self, ranks: list[int]) -> float:
        spent = best = value = 0.0
        for rank in ranks:
            spent += self._cost[rank]
            accuracy = self._accuracy[rank]
            if accuracy > best:
                left = 1.0 - (self._base[rank] + spent)
                if left > 0.0:
                    value += (accuracy - best) * left
                best = accuracy
        return value
