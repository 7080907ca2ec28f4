from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from subnet_cases import ENDS, STARTS, every_subnet, large_space, timed_spaces

from meedge_ray.domain.errors import BudgetError, InvalidInputError
from meedge_ray.search.subnet_search import Found, Measured, anneal, evolve
from meedge_ray.search.subnets import Subnet, SubnetSpace, fastest

LINK_MS = [1.0, 2.0, 3.0, 1.5, 1.0, 0.5, 0.75, 2.5, 4.0]
SPACE = SubnetSpace(STARTS, ENDS)
SEARCHES = [evolve, anneal]
Search = Callable[..., Found]

both = pytest.mark.parametrize("search", SEARCHES)
forms = pytest.mark.parametrize("nearby", [True, False])


class Table:
    """Accuracies drawn at random, one a subnet; keeps what it was asked for."""

    def __init__(self, space: SubnetSpace, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.accuracy = {subnet: float(rng.random()) for subnet in every_subnet(space)}
        self.asked: list[Subnet] = []

    def __call__(self, subnets: Sequence[Subnet]) -> list[float]:
        assert len(subnets)
        self.asked += subnets
        return [self.accuracy[subnet] for subnet in subnets]


def run(search: Search, evaluate: Any, **changes: Any) -> Found:
    settings = {"budget_ms": 6.0, "tolerance_ms": 1.0, "nearby": True, "rng": np.random.default_rng(0)}
    return search(SPACE, LINK_MS, evaluate, **{**settings, **changes})


@given(
    timed_spaces(variants=4),
    st.sampled_from(SEARCHES),
    st.booleans(),
    st.floats(0, 1),
    st.integers(0, 100),
)
def test_a_small_space_is_measured_whole_once_and_its_optimum_found(
    timed: tuple[SubnetSpace, list[float]], search: Search, nearby: bool, share: float, seed: int
) -> None:
    space, link_ms = timed
    table = Table(space, seed)
    latencies = {subnet: space.latency_ms(subnet, link_ms) for subnet in table.accuracy}
    budget_ms = min(latencies.values()) + share * (max(latencies.values()) - min(latencies.values()))
    found = search(
        space,
        link_ms,
        table,
        budget_ms=budget_ms,
        tolerance_ms=1000.0,
        nearby=nearby,
        population=3,
        iterations=2000,
        rng=np.random.default_rng(seed),
    )
    eligible = [subnet for subnet, latency_ms in latencies.items() if nearby or latency_ms <= budget_ms]
    assert sorted(table.asked) == sorted(eligible)
    assert [each.subnet for each in found.measured] == table.asked
    best = max(table.accuracy[subnet] for subnet, latency_ms in latencies.items() if latency_ms <= budget_ms)
    assert found.best.accuracy == best
    assert found.best == Measured(found.best.subnet, latencies[found.best.subnet], best)


@both
@forms
def test_only_subnets_of_the_range_are_measured_and_none_above_the_budget_is_the_answer(
    search: Search, nearby: bool
) -> None:
    table = Table(SPACE)
    found = run(search, table, nearby=nearby, budget_ms=6.5, tolerance_ms=0.5, iterations=500)
    low_ms, high_ms = (6.0, 7.0) if nearby else (0.0, 6.5)
    assert {each.latency_ms for each in found.measured} == {
        latency_ms
        for latency_ms in (SPACE.latency_ms(subnet, LINK_MS) for subnet in table.accuracy)
        if low_ms <= latency_ms <= high_ms
    }
    assert found.best.latency_ms <= 6.5


@both
def test_the_trail_tells_the_best_within_the_budget_so_far(search: Search) -> None:
    found = run(search, Table(SPACE), population=2)
    expected, best = [], 0.0
    for number, each in enumerate(found.measured, start=1):
        if each.latency_ms <= 6.0:
            best = max(best, each.accuracy)
        expected.append((number, best))
    assert list(found.trail) == expected
    assert found.trail[-1][1] == found.best.accuracy


@both
@forms
def test_the_same_state_finds_the_same(search: Search, nearby: bool) -> None:
    space, link_ms = large_space()
    results = [
        search(
            space,
            link_ms,
            lambda subnets: [len(subnet) / 30 for subnet in subnets],
            budget_ms=20.0,
            tolerance_ms=1.0,
            nearby=nearby,
            population=4,
            iterations=5,
            rng=np.random.default_rng(5),
        )
        for _ in range(2)
    ]
    assert results[0] == results[1]


@both
def test_of_equals_the_faster_is_the_answer(search: Search) -> None:
    found = run(search, lambda subnets: [0.5] * len(subnets), tolerance_ms=100.0, iterations=500)
    assert found.best.latency_ms == SPACE.latency_ms(fastest(SPACE, LINK_MS), LINK_MS)


@both
def test_the_search_ends_when_told(search: Search) -> None:
    told: list[int] = []

    def stop(measured: Sequence[Measured]) -> bool:
        told.append(len(measured))
        return len(told) == 2

    found = run(search, Table(SPACE), population=1, stop=stop, tolerance_ms=100.0)
    assert len(told) == 2
    assert told[-1] == len(found.measured)


@both
def test_without_iterations_the_first_group_is_all(search: Search) -> None:
    found = run(search, Table(SPACE), population=3, iterations=0)
    assert len(found.measured) == 3


@both
@forms
@pytest.mark.parametrize("budget_ms", [5.0, 5.1, 6.1, 1000.0])
def test_without_a_tolerance_the_range_reaches_down_to_a_subnet(search: Search, nearby: bool, budget_ms: float) -> None:
    found = run(search, Table(SPACE), nearby=nearby, budget_ms=budget_ms, tolerance_ms=0.0)
    assert found.best.latency_ms <= budget_ms


@both
@forms
def test_the_budget_of_the_fastest_alone_finds_it_in_a_large_space(search: Search, nearby: bool) -> None:
    space, link_ms = large_space()
    least = fastest(space, link_ms)
    found = search(
        space,
        link_ms,
        lambda subnets: [0.5] * len(subnets),
        budget_ms=space.latency_ms(least, link_ms),
        tolerance_ms=0.001,
        nearby=nearby,
        population=2,
        iterations=2,
        rng=np.random.default_rng(0),
    )
    assert found.best.subnet == least


@both
def test_a_space_of_one_subnet_gives_it(search: Search) -> None:
    found = search(
        SubnetSpace([0, 1], [1, 2]),
        [1.0, 2.0],
        lambda subnets: [0.9] * len(subnets),
        budget_ms=5.0,
        tolerance_ms=1.0,
        nearby=True,
        rng=np.random.default_rng(0),
    )
    assert found.measured == (Measured((0, 1), 3.0, 0.9),)


@both
def test_near_a_high_budget_the_nearby_form_needs_fewer_subnets(search: Search) -> None:
    """Every variant loses the more the more time it saves; the losses add up (the shape of the paper's Figure 12a)."""
    space, link_ms = large_space()
    rng = np.random.default_rng(1)
    loss = np.zeros(len(link_ms))
    for link in range(space.places, len(link_ms)):
        start, end = space.spans[link]
        loss[link] = rng.uniform(0.02, 0.06) * (1 - link_ms[link] / sum(link_ms[start:end])) ** 1.5

    def evaluate(subnets: Sequence[Subnet]) -> list[float]:
        return [max(0.0, 0.95 - float(loss[list(subnet)].sum())) for subnet in subnets]

    budget_ms = 0.9 * sum(link_ms[: space.places])
    needed: dict[bool, int] = {}
    for nearby in (True, False):
        found = search(
            space,
            link_ms,
            evaluate,
            budget_ms=budget_ms,
            tolerance_ms=0.05 * budget_ms,
            nearby=nearby,
            iterations=150,
            rng=np.random.default_rng(0),
            stop=lambda measured: max(each.accuracy for each in measured if each.latency_ms <= budget_ms) > 0.9,
        )
        assert found.best.accuracy > 0.9
        needed[nearby] = len(found.measured)
    assert 2 * needed[True] < needed[False]


@both
@pytest.mark.parametrize(
    ("argument", "bad", "where"),
    [
        ("budget_ms", 1.0, "latency_ms"),
        ("budget_ms", float("nan"), "latency_ms"),
        ("tolerance_ms", -1.0, "tolerance_ms"),
        ("population", 0, "population"),
        ("iterations", -1, "iterations"),
        ("iterations", 1.5, "iterations"),
    ],
)
def test_what_cannot_be_used_is_named(search: Search, argument: str, bad: object, where: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        run(search, Table(SPACE), **{argument: bad})
    assert caught.value.where == where


def test_a_budget_below_the_fastest_says_by_how_much() -> None:
    with pytest.raises(BudgetError, match=r"1 ms is 4 ms less than the fastest subnet takes\. Allow 5 ms"):
        run(evolve, Table(SPACE), budget_ms=1.0)


@pytest.mark.parametrize("accuracies", [[0.5], [float("nan")] * 4, [50.0] * 4])
def test_accuracies_that_cannot_be_are_refused(accuracies: list[float]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        run(evolve, lambda subnets: accuracies, population=4)
    assert caught.value.where == "evaluate"
