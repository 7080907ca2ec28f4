"""MEEdge's High-Priority-First placement (3.3.3), as published: a priority score, then a depth-first search.

The scores are in `priority`, the search is in `tree`. Where the pseudo-code of Algorithm 2 leaves a choice: the
best set seen is returned, not the stack at the end, and the first path (the greedy search) is always finished.
"""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.inputs import read_candidates, read_integers, read_law, read_number
from meedge_ray.search.outputs import FINAL
from meedge_ray.search.priority import SCORES, priority_order
from meedge_ray.search.tree import NO_LIMIT, Limits, Ranked, search_tree


@dataclass(frozen=True, slots=True)
class HpfPlacement:
    """The best set the search has seen: candidates in the order they run, their bytes and their expectation.

    `exhausted` says that the whole tree was searched before the time was up; `scoring_ms` is the time that the
    priority scores took, before the search.
    """

    members: tuple[int, ...]
    size_bytes: int
    expectation: float
    exhausted: bool
    scoring_ms: float


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
    budget_bytes: float,
    fetch_bytes: npt.ArrayLike | None = None,
    fetch_limit_bytes: float | None = None,
    search_ms: float = 10.0,
    timing: str = "independent",
    score: str = "m7",
    seed: int = 0,
) -> HpfPlacement:
    """Search for `search_ms` a set of branches that fits the budget, under the uniform law.

    Args:
        exit_index: this and what is not named here as in `placement.placement_frontier`.
        duration_ms: [K].
        accuracy: [K].
        size_bytes: [K].
        backbone_ms: [E].
        final_ms: time of the backbone.
        final_accuracy: fraction 0..1.
        horizon_ms: the span in which the kill may come.
        budget_bytes: what the set may hold.
        fetch_bytes: [K] what must be sent if the candidate is chosen, 0 if the device has it already.
        fetch_limit_bytes: what may be sent in all: the latency budget of equation 1, less the search, times
            the link's rate. Both or neither must be given.
        search_ms: the time of the tree search alone (Algorithm 2); may be infinite: the search ends with the tree.
        timing: `independent`, MEEdge's own, or `cumulative`.
        score: the priority score of 4.3, m0 to m7; m5 is the greedy search, without the tree's.
        seed: of the sets that m1 to m4 draw.

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
    limits = _read_limits(len(candidates.accuracy), size_bytes, budget_bytes, fetch_bytes, fetch_limit_bytes)
    read_law(None, horizon_ms=horizon_ms, final_ms=candidates.final_ms)
    limit_ms = read_number(search_ms, "search_ms", finite=False)
    if score not in SCORES:
        raise InvalidInputError(f"{score!r} is no priority score", where="score", do=f"Use one of {', '.join(SCORES)}")
    start = time.perf_counter()
    priority = priority_order(score, candidates, limits, float(horizon_ms), _read_seed(seed))
    scoring_ms = 1e3 * (time.perf_counter() - start)
    ranked = Ranked.of(candidates, float(horizon_ms))
    found = search_tree(ranked, priority, limits, limit_ms=0.0 if score == "m5" else limit_ms)
    members = ranked.candidate[found.ranks]
    members = members[members != FINAL]
    return HpfPlacement(
        tuple(members.tolist()),
        int(limits.size_bytes[members].sum()),
        found.expectation,
        found.exhausted,
        scoring_ms,
    )


def _read_limits(
    count: int,
    size_bytes: npt.ArrayLike,
    budget_bytes: float,
    fetch_bytes: npt.ArrayLike | None,
    fetch_limit_bytes: float | None,
) -> Limits:
    sizes = read_integers(size_bytes, "size_bytes", count=count)
    budget = _read_limit(budget_bytes, "budget_bytes")
    if fetch_bytes is None and fetch_limit_bytes is None:
        return Limits(sizes, budget, np.zeros(count, dtype=np.int64), NO_LIMIT)
    if fetch_bytes is None or fetch_limit_bytes is None:
        raise InvalidInputError(
            "what must be sent and the limit on it go together",
            where="fetch_bytes" if fetch_bytes is None else "fetch_limit_bytes",
            do="Give both fetch_bytes and fetch_limit_bytes, or neither",
        )
    fetches = read_integers(fetch_bytes, "fetch_bytes", count=count)
    return Limits(sizes, budget, fetches, _read_limit(fetch_limit_bytes, "fetch_limit_bytes"))


def _read_limit(value: float, where: str) -> int:
    return int(min(read_number(value, where, finite=False), NO_LIMIT))


def _read_seed(seed: int) -> int:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InvalidInputError(f"{seed!r} is not a whole number from 0", where="seed")
    return seed
