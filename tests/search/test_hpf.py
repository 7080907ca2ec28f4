import math
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.hpf import greedy_order, hpf_placement, hull_first
from meedge_ray.search.inputs import Candidates, read_candidates
from meedge_ray.search.placement import placement_expectation, placement_frontier

sys.path.insert(0, str(Path(__file__).parent))
from placement_cases import problems, profile_of, value

TIMINGS = st.sampled_from(["cumulative", "independent"])
quick = settings(max_examples=120)


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
    problem: dict[str, Any], timing: str, budget: int, search_ms: float
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


def test_the_tree_is_left_when_the_time_is_up_but_not_before_the_greedy_path_ends() -> None:
    rng = np.random.default_rng(0)
    count = 60
    found = hpf_placement(
        rng.integers(0, 4, count),
        rng.uniform(0.1, 1.0, count),
        rng.uniform(0.2, 0.9, count),
        rng.integers(1, 50, count),
        backbone_ms=[1.0, 2.0, 3.0, 4.0],
        final_ms=5.0,
        final_accuracy=0.9,
        horizon_ms=6.0,
        budget_bytes=200,
        search_ms=0.0,
    )
    assert found.members
    assert not found.exhausted


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("budget_bytes", -1),
        ("search_ms", -1.0),
        ("search_ms", float("nan")),
        ("horizon_ms", 7.0),
        ("timing", "both"),
    ],
)
def test_what_cannot_be_used_is_named(argument: str, bad: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        hpf_placement(**{**FOUR, "budget_bytes": 10, argument: bad})
    assert caught.value.where == argument
