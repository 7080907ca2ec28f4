import math
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.inputs import Law, read_law
from meedge_ray.search.laws import histogram_law, normal_law
from meedge_ray.search.placement import placement_expectation, placement_frontier, result_times

sys.path.insert(0, str(Path(__file__).parent))
from placement_cases import best_by_budget, crowded_problem, problems, profile_of

quick = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def laws(draw: st.DrawFn, horizon_ms: float) -> tuple[Law, Any]:
    """A law over the horizon, and its density as a function of an array of times."""
    if draw(st.booleans()):
        cuts = draw(st.lists(st.floats(0.01, 0.99), unique=True, max_size=4))
        edges = np.array([0.0, *sorted(cuts), 1.0]) * horizon_ms
        shares = np.array(draw(st.lists(st.integers(0, 9), min_size=len(edges) - 1, max_size=len(edges) - 1)), float)
        assume(shares.sum() > 0)
        densities = shares / shares.sum() / np.diff(edges)
        return histogram_law(edges, shares / shares.sum(), horizon_ms=horizon_ms), lambda times: densities[
            np.clip(np.searchsorted(edges, times, side="right") - 1, 0, len(densities) - 1)
        ]
    mean, deviation = draw(st.floats(-0.2, 1.2)) * horizon_ms, draw(st.floats(0.15, 5)) * horizon_ms
    inside = (math.erf((horizon_ms - mean) / deviation / 2**0.5) - math.erf(-mean / deviation / 2**0.5)) / 2
    scale = deviation * math.sqrt(2 * math.pi) * inside
    return normal_law(
        mean, deviation, horizon_ms=horizon_ms
    ), lambda times: np.exp(-(((times - mean) / deviation) ** 2) / 2) / scale


@quick
@given(problem=problems(most=6), data=st.data(), timing=st.sampled_from(["cumulative", "independent"]))
def test_every_budget_gets_the_best_of_all_subsets(
    kernels: str, problem: dict[str, Any], data: st.DataObject, timing: str
) -> None:
    law, _ = data.draw(laws(problem["horizon_ms"]))
    frontier = placement_frontier(**problem, timing=timing, survival=law)
    scalar = lambda time: law(np.array([time]))[0]  # noqa: E731
    for budget, best in best_by_budget(problem, timing, False, scalar).items():
        assert frontier.expectation[frontier.at(budget)] == pytest.approx(best, abs=2e-12)


@settings(quick, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_every_budget_gets_the_best_where_many_sets_are_nearly_as_good(
    kernels: str, seed: int, data: st.DataObject
) -> None:
    problem = crowded_problem(seed)
    law, _ = data.draw(laws(problem["horizon_ms"]))
    frontier = placement_frontier(**problem, survival=law)
    scalar = lambda time: law(np.array([time]))[0]  # noqa: E731
    for budget, best in best_by_budget(problem, "cumulative", False, scalar).items():
        assert frontier.expectation[frontier.at(budget)] == pytest.approx(best, abs=2e-12)


@quick
@given(problem=problems(), data=st.data(), timing=st.sampled_from(["cumulative", "independent"]))
def test_the_expectation_is_the_accuracy_at_hand_weighted_by_the_density(
    problem: dict[str, Any], data: st.DataObject, timing: str
) -> None:
    horizon = problem["horizon_ms"]
    law, density = data.draw(laws(horizon))
    count = len(problem["size_bytes"])
    members = tuple(data.draw(st.sets(st.integers(0, count - 1)))) if count else ()
    arrays, named = profile_of(problem)
    expectation = placement_expectation(members, *arrays, **named, timing=timing, survival=law)
    named.pop("horizon_ms")
    at, accuracy = result_times(members, *arrays, **named, timing=timing)
    steps = 20_000
    times = (np.arange(steps) + 0.5) * horizon / steps
    at_hand = np.append(0.0, np.maximum.accumulate(accuracy))[np.searchsorted(at, times, side="right")]
    assert expectation == pytest.approx((at_hand * density(times)).mean() * horizon, abs=1e-2)


@given(data=st.data(), horizon=st.floats(0.01, 1e4))
def test_a_law_falls_from_one_to_zero_and_never_faster_than_its_steepness(data: st.DataObject, horizon: float) -> None:
    law, density = data.draw(laws(horizon))
    times = np.linspace(0.0, horizon, 1001)
    chances = law(times)
    assert chances[0] == pytest.approx(1)
    assert chances[-1] == pytest.approx(0, abs=1e-12)
    assert law(np.array([2 * horizon])) == pytest.approx(0, abs=1e-12)
    falls = -np.diff(chances) / np.diff(times)
    assert (falls >= -1e-12).all()
    assert (falls <= law.steepness * (1 + 1e-6)).all()
    assert density(times).max() <= law.steepness * (1 + 1e-9)
    assert read_law(law, horizon_ms=horizon, final_ms=0.0).steepness == law.steepness


def test_an_even_histogram_is_the_uniform_law() -> None:
    problem = crowded_problem(3)
    horizon = problem["horizon_ms"]
    even = histogram_law([0, horizon / 2, horizon], [0.5, 0.5], horizon_ms=horizon)
    assert even.steepness == pytest.approx(1 / horizon)
    uniform, same = placement_frontier(**problem), placement_frontier(**problem, survival=even)
    assert same.size_bytes.tolist() == uniform.size_bytes.tolist()
    assert same.expectation == pytest.approx(uniform.expectation)


def test_a_late_kill_is_met_with_another_placement() -> None:
    problem = {
        "exit_index": [0, 1],
        "duration_ms": [1.0, 1.0],
        "accuracy": [0.5, 0.8],
        "size_bytes": [10, 10],
        "backbone_ms": [1.0, 5.0],
        "final_ms": 9.0,
        "final_accuracy": 0.8,
        "horizon_ms": 10.0,
    }
    placed = {}
    for when, law in {
        "soon": histogram_law([0, 4], [1.0], horizon_ms=10.0),
        "late": normal_law(8.0, 0.5, horizon_ms=10.0),
    }.items():
        frontier = placement_frontier(**problem, survival=law)
        placed[when] = frontier.members(frontier.at(10))
    assert placed == {"soon": (0,), "late": (1,)}


@pytest.mark.parametrize(
    ("edges", "shares", "where"),
    [
        ([0, 5, 12], [0.5, 0.5], "edges_ms"),  # kills after the horizon
        ([1, 5], [1.0], "edges_ms"),
        ([0, 5, 5], [0.5, 0.5], "edges_ms"),
        ([0], [], "edges_ms"),
        ([0, 5], [0.0], "probabilities"),
        ([0, 5, 10], [1.5, -0.5], "probabilities"),
        ([0, 5, 10], [1.0], "probabilities"),
    ],
)
def test_a_histogram_that_cannot_be_used_is_refused(edges: list[float], shares: list[float], where: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        histogram_law(edges, shares, horizon_ms=10.0)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("mean", "deviation", "where"),
    [
        (40.0, 3.0, "mean_ms"),
        (-40.0, 3.0, "mean_ms"),
        (5.0, 1e9, "mean_ms"),
        (float("nan"), 1.0, "mean_ms"),
        (5.0, 0.0, "standard_deviation_ms"),
        (5.0, -1.0, "standard_deviation_ms"),
        (5.0, float("inf"), "standard_deviation_ms"),
    ],
)
def test_a_normal_law_that_cannot_be_used_is_refused(mean: float, deviation: float, where: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        normal_law(mean, deviation, horizon_ms=10.0)
    assert caught.value.where == where


def test_edges_beyond_the_horizon_are_allowed_where_no_kill_comes() -> None:
    law = histogram_law([0, 5, 12], [1.0, 0.0], horizon_ms=6.0)
    assert law(np.array([0.0, 2.5, 5.0, 11.0])).tolist() == [1.0, 0.5, 0.0, 0.0]
