from collections import Counter, deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from subnet_cases import ENDS, STARTS, every_subnet, large_space, timed_spaces

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.nearby import mutate, nearby_init, nearby_mutate
from meedge_ray.search.subnets import Subnet, SubnetSpace

LINK_MS = [1.0, 2.0, 3.0, 1.5, 1.0, 0.5, 0.75, 2.5, 4.0]
SPACE = SubnetSpace(STARTS, ENDS)


def within(space: SubnetSpace, link_ms: list[float], low_ms: float, high_ms: float) -> set[Subnet]:
    return {way for way in every_subnet(space) if low_ms <= space.latency_ms(way, link_ms) <= high_ms}


def one_more_link(space: SubnetSpace, subnet: Subnet) -> set[Subnet]:
    """All subnets that keep the links around a run of links and have one new link among what replaces it."""
    found = set()
    for other in every_subnet(space):
        for link in set(other) - set(subnet):
            start, end = space.starts[link], space.ends[link]
            kept_before = [step for step in subnet if space.ends[step] <= start]
            kept_after = [step for step in subnet if space.starts[step] >= end]
            if other[: len(kept_before)] == tuple(kept_before) and other[len(other) - len(kept_after) :] == tuple(
                kept_after
            ):
                found.add(other)
    return found


@given(timed_spaces(), st.floats(0, 40), st.floats(0, 20), st.integers(0, 2**32))
def test_drawing_all_of_a_range_gives_exactly_those_in_it(
    timed: tuple[SubnetSpace, list[float]], low_ms: float, span_ms: float, seed: int
) -> None:
    space, link_ms = timed
    expected = within(space, link_ms, low_ms, low_ms + span_ms)
    drawn = nearby_init(space, link_ms, low_ms, low_ms + span_ms, space.count, np.random.default_rng(seed))
    assert len(drawn) == len(expected)
    assert set(drawn) == expected


def test_fewer_are_all_different() -> None:
    drawn = nearby_init(SPACE, LINK_MS, 3.0, 6.0, 3, np.random.default_rng(0))
    assert len(set(drawn)) == 3
    assert set(drawn) <= within(SPACE, LINK_MS, 3.0, 6.0)


@pytest.mark.parametrize(("low_ms", "high_ms"), [(-3.0, -1.0), (0.0, 2.0), (100.0, 200.0), (100.0, float("inf"))])
def test_a_range_with_no_subnet_gives_none(low_ms: float, high_ms: float) -> None:
    assert nearby_init(SPACE, LINK_MS, low_ms, high_ms, 5, np.random.default_rng(0)) == []


def test_links_that_take_no_time_are_drawn() -> None:
    assert set(nearby_init(SPACE, [0.0] * 9, -1.0, 0.0, 100, np.random.default_rng(0))) == set(every_subnet(SPACE))


def test_every_subnet_of_a_range_is_drawn_about_as_often() -> None:
    rng = np.random.default_rng(2)
    expected = within(SPACE, LINK_MS, 4.0, 7.0)
    drawn = Counter(nearby_init(SPACE, LINK_MS, 4.0, 7.0, 1, rng)[0] for _ in range(100 * len(expected)))
    assert set(drawn) == expected
    assert sum((times - 100) ** 2 / 100 for times in drawn.values()) < 3 * len(expected)  # chi-square


def test_a_space_too_large_to_list_is_sampled_within_the_range() -> None:
    space, link_ms = large_space()
    assert space.count > 10**15
    drawn = nearby_init(space, link_ms, 14.0, 16.0, 300, np.random.default_rng(0))
    assert len(set(drawn)) == 300
    for subnet in drawn:
        space.check(subnet)
        assert 14.0 <= space.latency_ms(subnet, link_ms) <= 16.0


def test_a_large_space_is_sampled_like_random_ones_that_are_in_range() -> None:
    space, link_ms = large_space()
    rng = np.random.default_rng(0)
    everywhere = [space.random(rng) for _ in range(3000)]
    low_ms, high_ms = np.quantile([space.latency_ms(subnet, link_ms) for subnet in everywhere], [0.3, 0.7])
    kept = [subnet for subnet in everywhere if low_ms <= space.latency_ms(subnet, link_ms) <= high_ms]
    drawn = nearby_init(space, link_ms, low_ms, high_ms, len(kept), rng)
    shares = [np.bincount(np.concatenate(ways), minlength=len(link_ms)) / len(kept) for ways in (kept, drawn)]
    assert np.abs(shares[0] - shares[1]).max() < 0.08  # four standard errors of a share


def test_a_narrow_range_near_the_fastest_is_hit() -> None:
    space, link_ms = large_space()
    fast = nearby_init(space, link_ms, 0.0, 12.0, 20, np.random.default_rng(0))
    assert len(fast) == 20
    one = space.latency_ms(fast[0], link_ms)
    assert nearby_init(space, link_ms, one * 0.999, one * 1.001, 20, np.random.default_rng(1))


@given(timed_spaces(), st.integers(0, 2**32))
def test_a_mutation_is_another_subnet(timed: tuple[SubnetSpace, list[float]], seed: int) -> None:
    space, _ = timed
    rng = np.random.default_rng(seed)
    subnet = space.random(rng)
    changed = mutate(space, subnet, rng)
    space.check(changed)
    assert (changed != subnet) == (space.count > 1)


def test_mutations_lead_from_every_subnet_to_every_other() -> None:
    rng = np.random.default_rng(0)
    subnets = every_subnet(SPACE)
    neighbours = {subnet: {mutate(SPACE, subnet, rng) for _ in range(300)} for subnet in subnets}
    for first in subnets:
        reached, waiting = {first}, deque([first])
        while waiting:
            new = neighbours[waiting.popleft()] - reached
            reached |= new
            waiting.extend(new)
        assert reached == set(subnets)


@given(timed_spaces(), st.floats(0, 20), st.floats(0, 5), st.integers(0, 2**32))
def test_a_nearby_mutation_is_in_range_if_one_more_link_can_bring_it_there(
    timed: tuple[SubnetSpace, list[float]], low_ms: float, span_ms: float, seed: int
) -> None:
    space, link_ms = timed
    subnet = space.random(np.random.default_rng(seed))
    inside = within(space, link_ms, low_ms, low_ms + span_ms)
    # The same state makes the same first change.
    first = mutate(space, subnet, np.random.default_rng(seed))
    changed = nearby_mutate(space, subnet, link_ms, low_ms, low_ms + span_ms, np.random.default_rng(seed))
    space.check(changed)
    if first in inside or space.count == 1:
        assert changed == first
        return
    assert changed == first or changed in one_more_link(space, first)
    new = set(first) - set(subnet)
    reachable = [other for other in one_more_link(space, first) if new <= set(other)]
    if inside.intersection(reachable):
        assert changed in inside


def test_a_nearby_mutation_out_of_reach_comes_as_near_as_it_can() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        changed = nearby_mutate(SPACE, SPACE.original, LINK_MS, 100.0, 101.0, rng)
        assert changed != SPACE.original
        SPACE.check(changed)


def test_a_gap_with_very_many_ways_is_filled() -> None:
    places = range(12)
    space = SubnetSpace([*places, *places, *places, 0], [*(place + 1 for place in [*places] * 3), 12])
    rng = np.random.default_rng(0)
    link_ms = [1.0] * 12 + [0.5] * 12 + [0.25] * 12 + [2.0]
    changed = nearby_mutate(space, (36,), link_ms, 6.0, 7.0, rng)
    space.check(changed)
    assert 6.0 <= space.latency_ms(changed, link_ms) <= 7.0


@pytest.mark.parametrize(
    ("argument", "bad", "where"),
    [
        ("link_ms", [float("nan")] * 9, "link_ms"),
        ("link_ms", [-1.0] * 9, "link_ms"),
        ("link_ms", [1.0], "link_ms"),
        ("low_ms", 9.0, "high_ms"),
        ("low_ms", float("nan"), "high_ms"),
        ("high_ms", float("nan"), "high_ms"),
    ],
)
def test_what_cannot_be_used_is_named(argument: str, bad: object, where: str) -> None:
    good = {"link_ms": LINK_MS, "low_ms": 3.0, "high_ms": 6.0, "rng": np.random.default_rng(0)}
    for call in (
        lambda arguments: nearby_init(SPACE, count=3, **arguments),
        lambda arguments: nearby_mutate(SPACE, SPACE.original, **arguments),
    ):
        with pytest.raises(InvalidInputError) as caught:
            call({**good, argument: bad})
        assert caught.value.where == where
