import itertools
import math
import sys
import time
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search import native
from meedge_ray.search.hpf import hpf_placement
from meedge_ray.search.inputs import Candidates, read_candidates
from meedge_ray.search.outputs import FINAL
from meedge_ray.search.placement import placement_expectation, placement_frontier
from meedge_ray.search.priority import SCORES, gains, greedy_order, hull_first, priority_order
from meedge_ray.search.tree import NO_LIMIT, Found, Limits, Ranked, search_tree

sys.path.insert(0, str(Path(__file__).parent))
from placement_cases import crowded_problem, problems, profile_of, value

TIMINGS = st.sampled_from(["cumulative", "independent"])
quick = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
needs_native = pytest.mark.skipif(native.kernels is None, reason="no compiled loops: not built, or turned off")


def first_path(problem: dict[str, Any], order: list[int], budget: int, timing: str) -> float:
    """What the greedy search reaches: each branch in turn, if it raises the expectation and fits."""
    members: tuple[int, ...] = ()
    for candidate in order:
        longer = (*members, candidate)
        fits = sum(problem["size_bytes"][j] for j in longer) <= budget
        if fits and value(problem, longer, timing, None) > value(problem, members, timing, None) + 1e-12:
            members = longer
    return value(problem, members, timing, None)


def candidates_of(problem: dict[str, Any], timing: str = "independent") -> Candidates:
    arrays, named = profile_of(problem)
    named.pop("horizon_ms")
    return read_candidates(*arrays, **named, timing=timing)


@quick
@given(problem=problems(), timing=TIMINGS, budget=st.integers(0, 40), search_ms=st.sampled_from([0.0, math.inf]))
def test_between_the_greedy_path_and_the_frontier(
    kernels: str, problem: dict[str, Any], timing: str, budget: int, search_ms: float
) -> None:
    found = hpf_placement(**problem, budget_bytes=budget, timing=timing, search_ms=search_ms)
    assert found.size_bytes == sum(problem["size_bytes"][j] for j in found.members) <= budget
    arrays, named = profile_of(problem)
    assert found.expectation == pytest.approx(
        placement_expectation(found.members, *arrays, **named, timing=timing), abs=1e-12
    )
    frontier = placement_frontier(**problem, timing=timing)
    point = frontier.at(budget)
    assert point is not None
    assert found.expectation <= frontier.expectation[point] + 1e-11
    candidates = candidates_of(problem, timing)
    sizes = np.array(problem["size_bytes"], dtype=np.int64)
    order = hull_first(greedy_order(candidates, sizes, problem["horizon_ms"]), candidates).tolist()
    assert sorted(order) == list(range(len(sizes)))
    assert found.expectation >= first_path(problem, order, budget, timing) - 1e-11
    assert found.exhausted or search_ms == 0


FOUR: dict[str, Any] = {
    "exit_index": [0, 0, 1, 1],
    "duration_ms": [1.0, 1.0, 1.0, 2.0],
    "accuracy": [0.4, 0.5, 0.6, 0.3],
    "size_bytes": [1, 10, 4, 1],
    "backbone_ms": [1.0, 4.0],
    "final_ms": 8.0,
    "final_accuracy": 0.9,
    "horizon_ms": 10.0,
}


def test_greedy_scores_count_only_the_neighbours_already_appended() -> None:
    # Round 1 against the final exit alone: 0.4 * 6 / 1, 0.5 * 6 / 10, 0.6 * 3 / 4, 0.3 * 2 / 1.
    # Round 2, with branch 0 in: branch 2 (0.6 - 0.4) * 3 / 4, branch 1 (0.5 - 0.4) * 6 / 10, branch 3 nothing.
    # Round 3, with 2 in as well: branch 1 (0.5 - 0.4) * 3 / 10. Branch 3 gains nothing and comes last.
    order = greedy_order(candidates_of(FOUR), np.array(FOUR["size_bytes"]), 10.0)
    assert order.tolist() == [0, 2, 1, 3]


def test_branches_on_the_convex_envelope_come_first_and_keep_their_order() -> None:
    # From (0, 0) the envelope turns at (2, 0.5), branch 1, and (8, 0.9), the final exit: 0.6 at 5 ms lies below.
    assert hull_first(np.array([0, 2, 1, 3]), candidates_of(FOUR)).tolist() == [1, 0, 2, 3]


def wide_problem(count: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "exit_index": rng.integers(0, 4, count),
        "duration_ms": rng.uniform(0.1, 1.0, count),
        "accuracy": rng.uniform(0.2, 0.9, count),
        "size_bytes": rng.integers(1, 50, count),
        "backbone_ms": [1.0, 2.0, 3.0, 4.0],
        "final_ms": 5.0,
        "final_accuracy": 0.9,
        "horizon_ms": 6.0,
    }


@pytest.mark.parametrize("score", SCORES)
def test_the_tree_is_left_when_the_time_is_up_but_not_before_the_greedy_path_ends(kernels: str, score: str) -> None:
    found = hpf_placement(**wide_problem(60), budget_bytes=200, search_ms=0.0, score=score)
    assert found.members
    assert not found.exhausted


def test_a_long_search_ends_with_its_time(kernels: str) -> None:
    start = time.perf_counter()
    found = hpf_placement(**wide_problem(300), budget_bytes=500, search_ms=120.0)
    assert time.perf_counter() - start >= 0.12
    assert not found.exhausted


@quick
@given(
    seed=st.integers(0, 2**32 - 1),
    score=st.sampled_from(SCORES),
    timing=TIMINGS,
    budget=st.integers(0, 90),
    fetch_limit=st.one_of(st.none(), st.integers(0, 40)),
)
def test_every_score_finds_what_fits_and_an_order_of_all_candidates(
    kernels: str, seed: int, score: str, timing: str, budget: int, fetch_limit: int | None
) -> None:
    problem = crowded_problem(seed)
    fetch = [0 if j % 3 else size for j, size in enumerate(problem["size_bytes"])]
    second = {} if fetch_limit is None else {"fetch_bytes": fetch, "fetch_limit_bytes": fetch_limit}
    found = hpf_placement(**problem, **second, budget_bytes=budget, timing=timing, score=score, search_ms=math.inf)
    assert found.size_bytes == sum(problem["size_bytes"][j] for j in found.members) <= budget
    assert fetch_limit is None or sum(fetch[j] for j in found.members) <= fetch_limit
    assert found.expectation == pytest.approx(value(problem, found.members, timing, None), abs=1e-12)
    assert found.scoring_ms >= 0
    limits = limits_of(problem, budget, fetch, NO_LIMIT if fetch_limit is None else fetch_limit)
    order = priority_order(score, candidates_of(problem, timing), limits, problem["horizon_ms"], 0).tolist()
    assert sorted(order) == list(range(len(fetch)))
    assert score != "m5" or not found.exhausted or len(found.members) == 0


def limits_of(problem: dict[str, Any], budget: int, fetch: list[int] | None = None, limit: int = NO_LIMIT) -> Limits:
    sizes = np.array(problem["size_bytes"], dtype=np.int64)
    fetches = np.zeros_like(sizes) if fetch is None else np.array(fetch, dtype=np.int64)
    return Limits(sizes, budget, fetches, limit)


def best_in_tree(problem: dict[str, Any], order: list[int], fits: Any, timing: str) -> float:
    """The best set that the published tree holds: every branch, added in the order of priority, raises it."""
    best = value(problem, (), timing, None)
    for count in range(1, len(order) + 1):
        for members in itertools.combinations(order, count):
            reached = [value(problem, members[:length], timing, None) for length in range(count + 1)]
            if fits(members) and all(later > sooner + 1e-12 for sooner, later in itertools.pairwise(reached)):
                best = max(best, reached[-1])
    return best


@settings(quick, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    score=st.sampled_from([score for score in SCORES if score != "m5"]),
    timing=TIMINGS,
    budget=st.integers(0, 90),
    fetch_limit=st.integers(0, 40),
)
def test_an_exhausted_search_has_seen_the_best_of_its_tree(
    kernels: str, seed: int, score: str, timing: str, budget: int, fetch_limit: int
) -> None:
    problem = {**crowded_problem(seed)}
    for name in ("exit_index", "duration_ms", "accuracy", "size_bytes"):
        problem[name] = problem[name][:6]
    sizes, fetch = problem["size_bytes"], [0, 7, 0, 19, 4, 11]
    limits = limits_of(problem, budget, fetch, fetch_limit)
    order = priority_order(score, candidates_of(problem, timing), limits, problem["horizon_ms"], 0).tolist()

    def fits(members: tuple[int, ...]) -> bool:
        return sum(sizes[j] for j in members) <= budget and sum(fetch[j] for j in members) <= fetch_limit

    found = hpf_placement(
        **problem,
        budget_bytes=budget,
        fetch_bytes=fetch,
        fetch_limit_bytes=fetch_limit,
        timing=timing,
        score=score,
        search_ms=math.inf,
    )
    assert found.exhausted
    assert found.expectation == pytest.approx(best_in_tree(problem, order, fits, timing), abs=1e-11)


def test_what_is_on_the_device_already_may_be_chosen_when_nothing_can_be_sent() -> None:
    second = {"fetch_bytes": [1, 0, 4, 0], "fetch_limit_bytes": 0}
    assert hpf_placement(**FOUR, budget_bytes=100, search_ms=math.inf).members == (1, 2)
    assert hpf_placement(**FOUR, **second, budget_bytes=100, search_ms=math.inf).members == (1,)


def twin(*arguments: Any, **named: Any) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "kernels", None)
        return search_tree(*arguments, **named)


@needs_native
@settings(quick, max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 40),
    levels=st.sampled_from([4, 10**6]),
    timing=TIMINGS,
    budget=st.sampled_from([0, 30, 150, NO_LIMIT]),
    fetch_limit=st.sampled_from([0, 60, NO_LIMIT]),
    most_nodes=st.sampled_from([0, 1, 7, 300]),
)
def test_the_kernel_and_its_twin_see_the_same_sets_in_the_same_order(
    seed: int, count: int, levels: int, timing: str, budget: int, fetch_limit: int, most_nodes: int
) -> None:
    rng = np.random.default_rng(seed)
    problem = wide_problem(count, seed)
    for name in ("duration_ms", "accuracy"):  # few levels: many ties
        problem[name] = np.round(problem[name] * levels) / levels
    ranked = Ranked.of(candidates_of(problem, timing), problem["horizon_ms"])
    limits = limits_of(problem, budget, rng.integers(0, 20, count).tolist(), fetch_limit)
    arguments = (ranked, rng.permutation(count), limits)
    mine = search_tree(*arguments, limit_ms=math.inf, most_nodes=most_nodes)
    its = twin(*arguments, limit_ms=math.inf, most_nodes=most_nodes)
    assert mine.ranks.tolist() == its.ranks.tolist()
    assert (mine.expectation, mine.nodes, mine.exhausted) == (its.expectation, its.nodes, its.exhausted)


@quick
@given(seed=st.integers(0, 2**32 - 1), timing=TIMINGS, data=st.data())
def test_a_gain_is_what_the_expectation_rises_by(seed: int, timing: str, data: st.DataObject) -> None:
    problem = crowded_problem(seed)
    ranked = Ranked.of(candidates_of(problem, timing), problem["horizon_ms"])
    drawn = sorted([int(ranked.rank[FINAL]), *ranked.rank[sorted(data.draw(st.sets(st.integers(0, 7))))].tolist()])
    best, rising = 0.0, []
    for rank in drawn:
        if ranked.accuracy[rank] > best:
            rising.append(rank)
            best = ranked.accuracy[rank]
    members = tuple(j for j in ranked.candidate[rising].tolist() if j != FINAL)
    before = value(problem, members, timing, None)
    for candidate, gain in enumerate(gains(ranked, np.array(rising, dtype=np.int64)).tolist()):
        if candidate in members:
            continue
        earlier = [rank for rank in rising if rank < ranked.rank[candidate]]
        raises = not earlier or ranked.accuracy[earlier[-1]] < problem["accuracy"][candidate]
        after = value(problem, (*members, candidate), timing, None)
        if raises and int(ranked.rank[FINAL]) in rising:
            assert gain == pytest.approx(after - before, abs=1e-12)
        elif not raises:
            assert gain == 0.0


SPREAD: dict[str, Any] = {
    "exit_index": [0, 1, 2, 3],
    "duration_ms": [0.1, 0.1, 0.1, 0.1],
    "accuracy": [0.05, 0.30, 0.62, 0.80],
    "size_bytes": [1, 8, 30, 60],
    "backbone_ms": [1.0, 2.0, 3.0, 4.0],
    "final_ms": 10.0,
    "final_accuracy": 0.9,
    "horizon_ms": 10.0,
}


def order_of(score: str, problem: dict[str, Any], budget: int, seed: int = 0) -> list[int]:
    candidates = candidates_of(problem)
    return priority_order(score, candidates, limits_of(problem, budget), problem["horizon_ms"], seed).tolist()


def test_m0_takes_the_smallest_first() -> None:
    assert order_of("m0", FOUR, 100) == [0, 3, 2, 1]


def test_m2_takes_the_largest_gain_m1_the_largest_a_byte_and_m4_favours_the_small_more() -> None:
    # With no byte to spend only empty sets are drawn: what each gains is what it gains alone, until the final exit.
    alone = [0.05 * 8.9, 0.30 * 7.9, 0.62 * 6.9, 0.80 * 5.9]
    sizes = SPREAD["size_bytes"]
    for score, power in (("m2", 0), ("m1", 1), ("m3", 1), ("m4", 2)):
        expected = sorted(range(4), key=lambda j: -alone[j] / sizes[j] ** power)
        assert order_of(score, SPREAD, 0) == expected, score


def test_sampled_scores_see_what_drawn_sets_hold_already() -> None:
    problem = {
        **SPREAD,
        "exit_index": [0, 1, 1],
        "duration_ms": [0.0, 0.0, 0.0],
        "accuracy": [0.3, 0.55, 0.56],
        "size_bytes": [1, 1, 1],
        "backbone_ms": [0.0, 1.0],
    }
    alone = [0.3 * 10, 0.55 * 9, 0.56 * 9]
    assert order_of("m2", problem, 0) == sorted(range(3), key=lambda j: -alone[j])
    # In sets of two of the three, 0 adds 0.3 for 1 ms, 2 adds 0.01 for 9 ms and 1 nothing.
    assert order_of("m2", problem, 2) == [0, 2, 1]


def test_drawing_is_repeated_by_its_seed_and_is_another_with_another() -> None:
    problem = wide_problem(80)
    assert order_of("m1", problem, 100, seed=3) == order_of("m1", problem, 100, seed=3)
    assert order_of("m1", problem, 100, seed=3) != order_of("m1", problem, 100, seed=4)
    assert order_of("m1", problem, 100) != order_of("m3", problem, 100)


def test_m5_is_the_first_path_of_m6(kernels: str) -> None:
    problem = wide_problem(60)
    greedy, searched = (
        hpf_placement(**problem, budget_bytes=120, score=score, search_ms=20.0) for score in ("m5", "m6")
    )
    order = order_of("m6", problem, 120)
    assert greedy.expectation == pytest.approx(first_path(problem, order, 120, "independent"), abs=1e-12)
    assert greedy.expectation <= searched.expectation
    assert order_of("m5", problem, 120) == order


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("budget_bytes", -1),
        ("search_ms", -1.0),
        ("search_ms", float("nan")),
        ("horizon_ms", 7.0),
        ("timing", "both"),
        ("score", "m8"),
        ("score", 7),
        ("seed", -1),
        ("seed", 0.5),
        ("fetch_bytes", [1, 1, 1, 1]),
        ("fetch_limit_bytes", 10),
    ],
)
def test_what_cannot_be_used_is_named(argument: str, bad: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        hpf_placement(**{**FOUR, "budget_bytes": 10, argument: bad})
    missing = {"fetch_bytes": "fetch_limit_bytes", "fetch_limit_bytes": "fetch_bytes"}
    assert caught.value.where == missing.get(argument, argument)


@pytest.mark.parametrize(
    ("argument", "bad"),
    [("fetch_bytes", [1, 1]), ("fetch_bytes", [1, 1, 1, -1]), ("fetch_limit_bytes", -1), ("fetch_limit_bytes", "much")],
)
def test_what_cannot_be_sent_is_named(argument: str, bad: Any) -> None:
    both = {"fetch_bytes": [1, 1, 1, 1], "fetch_limit_bytes": 4, argument: bad}
    with pytest.raises(InvalidInputError) as caught:
        hpf_placement(**FOUR, **both, budget_bytes=10)
    assert caught.value.where == argument
