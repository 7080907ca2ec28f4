import itertools
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.prefix_tree import OUTPUT, schedule
from meedge_ray.search.subnets import SubnetSpace


@st.composite
def groups(draw):
    """A small space, some of its subnets, and what every link costs and every place holds."""
    places = draw(st.integers(1, 5))
    starts, ends = list(range(places)), list(range(1, places + 1))
    for start, length in draw(st.lists(st.tuples(st.integers(0, places - 1), st.integers(1, 3)), max_size=6)):
        starts.append(start)
        ends.append(min(places, start + length))
    space = SubnetSpace(starts, ends)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    subnets = [space.random(rng) for _ in range(draw(st.integers(1, 7)))]
    # Of few values, so that equal ones are common; whole, so that sums are exact.
    link_ms = rng.integers(0, 5, len(starts)).astype(float).tolist()
    place_bytes = rng.integers(0, 5, places + 1).tolist()
    return space, subnets, link_ms, place_bytes


def run(made, subnets):
    """Run a schedule on sequences of links in place of features; return what every subnet's output was made by."""
    slots = [None] * made.slots
    slots[0] = ()
    came = {}
    for number, step in enumerate(made.steps):
        value = (*slots[step.source], step.link)
        if step.last:
            slots[step.source] = None
        if step.target == OUTPUT:
            came |= dict.fromkeys(made.outputs[number], value)
        else:
            slots[step.target] = value
    assert slots[1:] == [None] * (made.slots - 1)  # nothing is left behind
    return [came[number] for number in range(len(subnets))]


def most_held(made, space, place_bytes):
    """Bytes held at worst besides the input and what a step reads for the last time or writes."""
    slots, most = {}, 0
    for number, step in enumerate(made.steps):
        read_later = set()
        for slot in slots:
            if slot == step.target:
                continue
            uses = [later for later in made.steps[number + 1 :] if slot in (later.source, later.target)]
            if uses and uses[0].source == slot:
                read_later.add(slot)
        most = max(most, sum(slots[slot] for slot in read_later))
        if step.target != OUTPUT:
            slots[step.target] = place_bytes[space.ends[step.link]]
    return most


def least_ms(subnets, link_ms, link_bytes, memory_bytes):
    """The best of all depth-first schedules, by trying every set of children for which every prefix may be held."""
    subnets = set(subnets)

    def below(prefix, free, again_ms):
        if prefix in subnets:
            return 0
        nexts = {one[: len(prefix) + 1] for one in subnets if one[: len(prefix)] == prefix}
        left = free - (link_bytes[prefix[-1]] if prefix else 0)
        best = inf
        for held in itertools.product([False, True], repeat=len(nexts)):
            if left < 0 and any(held):
                continue
            total = 0
            for child, stays in zip(nexts, held, strict=True):
                ms = link_ms[child[-1]]
                if stays:
                    total += ms + below(child, left, ms)
                else:
                    total += again_ms + ms + below(child, free, again_ms + ms)
            best = min(best, total if all(held) else total - again_ms)
        return best

    return below((), memory_bytes, 0)


@given(groups(), st.integers(0, 20))
def test_every_subnet_is_run_as_it_is_and_no_more_is_held_than_allowed(group, memory_bytes):
    space, subnets, link_ms, place_bytes = group
    made = schedule(space, subnets, link_ms, place_bytes, memory_bytes)
    assert run(made, subnets) == subnets
    assert most_held(made, space, place_bytes) == made.cached_bytes <= memory_bytes
    assert made.latency_ms == sum(link_ms[step.link] for step in made.steps)
    assert made.alone_ms == sum(link_ms[link] for subnet in set(subnets) for link in subnet)


@given(groups(), st.integers(0, 12))
def test_no_depth_first_schedule_is_quicker(group, memory_bytes):
    space, subnets, link_ms, place_bytes = group
    link_bytes = [place_bytes[end] for end in space.ends]
    made = schedule(space, subnets, link_ms, place_bytes, memory_bytes)
    assert made.latency_ms == least_ms(subnets, link_ms, link_bytes, memory_bytes)


@given(groups())
def test_with_memory_enough_every_prefix_runs_once(group):
    space, subnets, link_ms, place_bytes = group
    made = schedule(space, subnets, link_ms, place_bytes, 10**9)
    prefixes = {subnet[:length] for subnet in subnets for length in range(1, len(subnet) + 1)}
    assert len(made.steps) == len(prefixes)


@given(groups())
def test_without_memory_every_subnet_runs_alone(group):
    space, subnets, link_ms, place_bytes = group
    made = schedule(space, subnets, link_ms, [size + 1 for size in place_bytes], 0)
    assert sorted(step.link for step in made.steps) == sorted(link for subnet in set(subnets) for link in subnet)
    assert made.latency_ms == made.alone_ms
    assert made.cached_bytes == 0


@given(groups())
def test_more_memory_never_costs_time(group):
    latencies_ms = [schedule(*group, memory_bytes).latency_ms for memory_bytes in range(22)]
    assert latencies_ms == sorted(latencies_ms, reverse=True)


@given(groups(), st.integers(0, 60_000))
def test_sizes_without_a_common_unit_are_held_within_the_memory_too(group, memory_bytes):
    space, subnets, link_ms, place_bytes = group
    odd = [size * 4999 + place for place, size in enumerate(place_bytes)]
    made = schedule(space, subnets, link_ms, odd, memory_bytes)
    assert run(made, subnets) == subnets
    assert most_held(made, space, odd) == made.cached_bytes <= memory_bytes


def test_the_prefix_that_saves_most_is_held_where_not_all_fit():
    # Two heads after each of two bodies: one feature of the first place, or one of the second, fits.
    space = SubnetSpace([0, 1, 2, 1, 2], [1, 2, 3, 2, 3])
    subnets = [(0, 1, 2), (0, 1, 4), (0, 3, 2), (0, 3, 4)]
    both = schedule(space, subnets, [1, 5, 1, 5, 1], [9, 1, 1, 9], 1)
    assert (both.latency_ms, both.cached_bytes) == (1 + 1 + 5 + 5 + 4, 1)
    # The first place's goes once its last body runs, whose own is held then.
    first = schedule(space, subnets, [5, 1, 1, 1, 1], [9, 1, 1, 9], 1)
    assert (first.latency_ms, first.cached_bytes) == (5 + (1 + 1 + 1 + 1) + (1 + 1 + 1), 1)
    assert schedule(space, subnets, [5, 1, 1, 1, 1], [9, 1, 1, 9], 2).latency_ms == 5 + 1 + 1 + 4


def test_a_supernet_of_many_places_is_no_problem():
    places = 250
    space = SubnetSpace([*range(places), *range(places)], [*range(1, places + 1)] * 2)
    subnets = [(*range(place), place + places, *range(place + 1, places)) for place in range(places)]
    made = schedule(space, subnets, [1.0] * 2 * places, [1] * (places + 1), 1)
    assert run(made, subnets) == subnets
    assert made.cached_bytes == 1
    assert made.latency_ms < made.alone_ms * 0.6


def test_equal_subnets_run_once():
    made = schedule(SubnetSpace([0, 1], [1, 2]), [(0, 1), (0, 1)], [1, 2], [1, 1, 1], 0)
    assert made.outputs == {1: (0, 1)}
    assert made.latency_ms == made.alone_ms == 3


def test_nothing_to_run_takes_nothing():
    made = schedule(SubnetSpace([0], [1]), [], [1], [1, 1], 0)
    assert (made.steps, made.latency_ms, made.cached_bytes) == ((), 0, 0)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"subnets": [(0,)]}, "subnet"),
        ({"link_ms": [1, float("nan")]}, "link_ms"),
        ({"place_bytes": [1, 1]}, "place_bytes"),
        ({"memory_bytes": -1}, "memory_bytes"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(change, where):
    given_ = {"subnets": [(0, 1)], "link_ms": [1, 1], "place_bytes": [1, 1, 1], "memory_bytes": 0} | change
    with pytest.raises(InvalidInputError) as caught:
        schedule(SubnetSpace([0, 1], [1, 2]), **given_)
    assert caught.value.where == where
