from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from subnet_cases import ENDS, STARTS, every_subnet, spaces

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.subnets import SubnetSpace, fastest, random_below, slowest


@given(spaces())
def test_all_subnets_are_counted_and_pass_the_check(space: SubnetSpace) -> None:
    subnets = every_subnet(space)
    assert space.count == len(subnets)
    assert space.original in subnets
    for subnet in subnets:
        space.check(subnet)


@given(spaces(), st.lists(st.integers(-1, 10), max_size=5))
def test_whatever_is_no_way_fails_the_check(space: SubnetSpace, links: list[int]) -> None:
    if tuple(links) in every_subnet(space):
        space.check(links)
        return
    with pytest.raises(InvalidInputError) as caught:
        space.check(links)
    assert caught.value.where == "subnet"


def test_a_way_of_no_whole_numbers_fails_the_check() -> None:
    with pytest.raises(InvalidInputError, match="no link"):
        SubnetSpace(STARTS, ENDS).check((0.0, 1.0, 2.0, 3.0))  # type: ignore[arg-type]


def test_the_count_is_exact_where_floats_are_not() -> None:
    blocks = list(range(60))
    space = SubnetSpace(blocks * 3, [place + 1 for place in blocks] * 3)
    assert space.count == 3**60
    space.check(space.random(np.random.default_rng(0)))


def test_every_subnet_is_drawn_about_as_often() -> None:
    space = SubnetSpace(STARTS, ENDS)
    subnets = every_subnet(space)
    rng = np.random.default_rng(1)
    drawn = Counter(space.random(rng) for _ in range(200 * len(subnets)))
    assert set(drawn) == set(subnets)
    assert sum((times - 200) ** 2 / 200 for times in drawn.values()) < 3 * len(subnets)  # chi-square


def test_the_same_state_draws_the_same() -> None:
    space = SubnetSpace(STARTS, ENDS)
    draws = [[space.random(rng) for _ in range(20)] for rng in (np.random.default_rng(7), np.random.default_rng(7))]
    assert draws[0] == draws[1]


@pytest.mark.parametrize("bound", [1, 2, 3, 256, 10**30])
def test_random_numbers_stay_below_their_bound(bound: int) -> None:
    rng = np.random.default_rng(0)
    numbers = [random_below(bound, rng) for _ in range(200)]
    assert all(0 <= number < bound for number in numbers)
    assert max(numbers) >= bound * 9 // 10


@given(spaces(), st.data())
def test_the_fastest_and_the_slowest_are_the_ends(space: SubnetSpace, data: st.DataObject) -> None:
    link_ms = data.draw(st.lists(st.integers(0, 9), min_size=len(space.starts), max_size=len(space.starts)))
    latencies = [sum(link_ms[link] for link in subnet) for subnet in every_subnet(space)]
    for subnet, expected in ((fastest(space, link_ms), min(latencies)), (slowest(space, link_ms), max(latencies))):
        space.check(subnet)
        assert space.latency_ms(subnet, link_ms) == expected


@pytest.mark.parametrize(
    ("starts", "ends", "where"),
    [
        ([], [], "starts"),
        ([0, 2], [1, 3], "starts"),
        ([0, 0], [1, 10**12], "starts"),
        ([0, 1], [1, 1], "ends"),
        ([0, 1, 2], [1, 3, 3], "ends"),
        ([0, 1, 1], [1, 2, 1], "ends"),
        ([0, 1, 1], [1, 2, 0], "ends"),
        ([0, 1, 2], [1, 2, 2], "ends"),
        ([0, 1], [1, 2, 2], "ends"),
        ([0, -1], [1, 2], "starts"),
        ([0.0, 1.0], [1, 2], "starts"),
        ([0], [0], "ends"),
    ],
)
def test_links_that_are_no_chain_are_refused(starts: list[int], ends: list[int], where: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        SubnetSpace(starts, ends)
    assert caught.value.where == where


@pytest.mark.parametrize("bad", [[1.0] * 8, [float("nan")] * 9, [-1.0] * 9, [float("inf")] * 9, "fast"])
def test_times_that_cannot_be_are_refused(bad: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        fastest(SubnetSpace(STARTS, ENDS), bad)  # type: ignore[arg-type]
    assert caught.value.where == "link_ms"
