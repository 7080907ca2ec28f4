import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.placement import (
    PlacementFrontier,
    placement_expectation,
    placement_frontier,
    result_times,
)

sys.path.insert(0, str(Path(__file__).parent))
from placement_cases import LAWS, best_by_budget, crowded_problem, problems, profile_of, results, value

TIMINGS = ("cumulative", "independent")
OPTIONS = st.tuples(st.sampled_from(TIMINGS), st.booleans(), st.sampled_from(LAWS))
quick = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_points(frontier: PlacementFrontier, problem: dict[str, Any], timing: str, survival: Any) -> None:
    assert (np.diff(frontier.size_bytes) > 0).all()
    assert (np.diff(frontier.expectation) > 0).all()
    assert frontier.size_bytes[0] == 0
    for point, (size, expectation) in enumerate(zip(frontier.size_bytes, frontier.expectation, strict=True)):
        members = frontier.members(point)
        assert size == sum(problem["size_bytes"][j] for j in members)
        assert expectation == pytest.approx(value(problem, members, timing, survival), abs=1e-12)


@quick
@given(problem=problems(), options=OPTIONS)
def test_every_budget_gets_the_best_of_all_subsets(kernels: str, problem: dict[str, Any], options: Any) -> None:
    timing, one_per_exit, survival = options
    frontier = placement_frontier(**problem, timing=timing, one_per_exit=one_per_exit, survival=survival)
    check_points(frontier, problem, timing, survival)
    for budget, best in best_by_budget(problem, timing, one_per_exit, survival).items():
        point = frontier.at(budget)
        assert point is not None
        assert frontier.expectation[point] == pytest.approx(best, abs=2e-12)


@settings(quick, max_examples=300)
@given(seed=st.integers(0, 2**32 - 1), timing=st.sampled_from(TIMINGS), one_per_exit=st.booleans())
def test_every_budget_gets_the_best_where_many_sets_are_nearly_as_good(
    kernels: str, seed: int, timing: str, one_per_exit: bool
) -> None:
    problem = crowded_problem(seed)
    frontier = placement_frontier(**problem, timing=timing, one_per_exit=one_per_exit)
    for budget, best in best_by_budget(problem, timing, one_per_exit, None).items():
        assert frontier.expectation[frontier.at(budget)] == pytest.approx(best, abs=2e-12)


@quick
@given(problem=problems(), options=OPTIONS, tolerance=st.sampled_from([1e-3, 0.02, 0.2]))
def test_tolerance_bounds_what_is_lost(kernels: str, problem: dict[str, Any], options: Any, tolerance: float) -> None:
    timing, one_per_exit, survival = options
    frontier = placement_frontier(
        **problem, timing=timing, one_per_exit=one_per_exit, survival=survival, tolerance=tolerance
    )
    check_points(frontier, problem, timing, survival)
    for budget, best in best_by_budget(problem, timing, one_per_exit, survival).items():
        point = frontier.at(budget)
        assert point is not None
        assert best - tolerance - 2e-12 <= frontier.expectation[point] <= best + 2e-12


@quick
@given(problem=problems(), one_per_exit=st.booleans(), timing=st.sampled_from(TIMINGS))
def test_one_per_exit_never_places_two_at_one_exit(
    kernels: str, problem: dict[str, Any], one_per_exit: bool, timing: str
) -> None:
    frontier = placement_frontier(**problem, timing=timing, one_per_exit=True)
    for point in range(len(frontier.size_bytes)):
        exits = [problem["exit_index"][j] for j in frontier.members(point)]
        assert len(set(exits)) == len(exits)


@quick
@given(problem=problems(), survival=st.sampled_from(LAWS), timing=st.sampled_from(TIMINGS), data=st.data())
def test_a_given_set_is_worth_what_its_results_are_worth(
    problem: dict[str, Any], survival: Any, timing: str, data: st.DataObject
) -> None:
    count = len(problem["size_bytes"])
    members = tuple(data.draw(st.sets(st.integers(0, count - 1)))) if count else ()
    arrays, named = profile_of(problem)
    expectation = placement_expectation(members, *arrays, **named, timing=timing, survival=survival)
    assert expectation == pytest.approx(value(problem, members, timing, survival), abs=1e-12)
    named.pop("horizon_ms")
    times, accuracies = result_times(members, *arrays, **named, timing=timing)
    expected_times, expected_accuracies = zip(*results(problem, members, timing), strict=True)
    assert times == pytest.approx(expected_times)
    if len(set(expected_times)) == len(expected_times):
        assert accuracies == pytest.approx(expected_accuracies)
    assert (np.diff(times) >= 0).all() or timing == "cumulative"


@quick
@given(problem=problems(), timing=st.sampled_from(TIMINGS))
def test_members_come_in_the_order_they_run(problem: dict[str, Any], timing: str) -> None:
    frontier = placement_frontier(**problem, timing=timing)
    arrays, named = profile_of(problem)
    named.pop("horizon_ms")
    for point in range(len(frontier.size_bytes)):
        members = frontier.members(point)
        ran = result_times(members, *arrays, **named, timing=timing)[1].tolist()
        rising = [problem["accuracy"][j] for j in members]
        assert rising == sorted(set(rising))
        assert [accuracy for accuracy in ran if accuracy in rising] == rising or problem["final_accuracy"] in rising


def test_a_slow_branch_at_an_earlier_exit_does_not_displace_a_later_one(kernels: str) -> None:
    # Branch 0 is no larger, no slower and no less accurate than 2, and earlier; but 1 answers long before it.
    problem = {
        "exit_index": [0, 1, 2],
        "duration_ms": [9.0, 0.1, 9.0],
        "accuracy": [0.5, 0.3, 0.5],
        "size_bytes": [10, 1, 10],
        "backbone_ms": [1.0, 2.0, 10.0],
        "final_ms": 30.0,
        "final_accuracy": 0.5,
        "horizon_ms": 40.0,
    }
    frontier = placement_frontier(**problem)
    assert frontier.members(len(frontier.size_bytes) - 1) == (1, 2)


def test_without_candidates_only_the_final_exit_answers(kernels: str) -> None:
    frontier = placement_frontier(
        [], [], [], [], backbone_ms=[], final_ms=4.0, final_accuracy=0.8, horizon_ms=8.0, timing="cumulative"
    )
    assert frontier.size_bytes.tolist() == [0]
    assert frontier.expectation.tolist() == [0.4]
    assert frontier.members(0) == ()


def test_look_up_takes_the_largest_point_that_fits() -> None:
    frontier = PlacementFrontier(np.array([0, 10, 25]), np.array([0.1, 0.2, 0.3]), [(), (1,), (1, 2)])
    assert [frontier.at(budget) for budget in (-1, 0, 9, 10, 24, 25, 10**15)] == [None, 0, 0, 1, 1, 2, 2]


def test_more_than_64_exits_that_overlap_in_time_are_refused_with_one_per_exit() -> None:
    exits = 65
    index = np.tile(np.arange(exits), 2)
    # At each exit a small poor branch before all large ones: all exits are open at once.
    slow = np.repeat([0, 1], exits)
    problem = {
        "exit_index": index,
        "duration_ms": 1.0 + 100.0 * slow,
        "accuracy": 0.3 + 0.4 * slow + 0.001 * index,
        "size_bytes": 10 + 10 * slow,
        "backbone_ms": np.arange(exits) * 0.1,
        "final_ms": 200.0,
        "final_accuracy": 0.9,
        "horizon_ms": 200.0,
    }
    with pytest.raises(InvalidInputError) as caught:
        placement_frontier(**problem, timing="independent", one_per_exit=True)
    assert caught.value.where == "one_per_exit"
    assert len(placement_frontier(**problem, one_per_exit=True).size_bytes) > 1


GOOD: dict[str, Any] = {
    "exit_index": [0, 1],
    "duration_ms": [1.0, 2.0],
    "accuracy": [0.5, 0.6],
    "size_bytes": [10, 20],
    "backbone_ms": [1.0, 2.0],
    "final_ms": 3.0,
    "final_accuracy": 0.9,
    "horizon_ms": 4.0,
}


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("exit_index", [0, 2]),
        ("exit_index", [-1, 0]),
        ("exit_index", [0.5, 1.0]),
        ("exit_index", [[0, 1]]),
        ("duration_ms", [1.0]),
        ("duration_ms", [1.0, -2.0]),
        ("duration_ms", [1.0, float("nan")]),
        ("duration_ms", ["fast", "slow"]),
        ("accuracy", [0.5, 1.5]),
        ("accuracy", [0.5, float("nan")]),
        ("accuracy", [0.5, 0.6, 0.7]),
        ("size_bytes", [10, -1]),
        ("size_bytes", [10, 0.5]),
        ("size_bytes", [2**62, 2**62]),
        ("size_bytes", [10]),
        ("backbone_ms", [2.0, 1.0]),
        ("backbone_ms", [float("inf"), float("inf")]),
        ("final_ms", -1.0),
        ("final_ms", 1.5),
        ("final_ms", float("nan")),
        ("final_ms", None),
        ("final_accuracy", 1.01),
        ("horizon_ms", 2.9),
        ("horizon_ms", float("inf")),
        ("horizon_ms", float("nan")),
        ("timing", "parallel"),
        ("tolerance", -0.1),
        ("tolerance", float("nan")),
        ("survival", lambda time: 1.0 + time),
        ("survival", lambda time: time / 4.0),
        ("survival", lambda time: float("nan")),
        ("survival", lambda time: 1.0 / time if isinstance(time, float) else None),
        ("survival", lambda time: "often"),
    ],
)
def test_what_cannot_be_used_is_named(argument: str, bad: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        placement_frontier(**{**GOOD, argument: bad})
    assert caught.value.where == argument


@pytest.mark.parametrize("members", [[0, 0], [2], [-1], [0.5]])
def test_members_that_cannot_be_placed_are_refused(members: list[Any]) -> None:
    arrays, named = profile_of(GOOD)
    with pytest.raises(InvalidInputError) as caught:
        placement_expectation(members, *arrays, **named)
    assert caught.value.where == "members"
