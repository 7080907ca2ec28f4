import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime.subnet_pool import SubnetPool
from meedge_ray.search.subnet_search import Measured

MEASURED = st.lists(
    st.builds(
        Measured, st.tuples(st.integers(0, 9)), st.integers(1, 9).map(float), st.integers(0, 5).map(lambda x: x / 5)
    ),
    min_size=1,
)


@given(measured=MEASURED)
def test_a_pool_is_what_no_other_beats(measured):
    members = SubnetPool(measured).members
    beaten = [
        any(
            (other.latency_ms < each.latency_ms and other.accuracy >= each.accuracy)
            or (other.latency_ms <= each.latency_ms and other.accuracy > each.accuracy)
            for other in measured
        )
        for each in measured
    ]
    points = {
        (each.latency_ms, each.accuracy) for each, is_beaten in zip(measured, beaten, strict=True) if not is_beaten
    }
    assert [(each.latency_ms, each.accuracy) for each in members] == sorted(points)


@given(measured=MEASURED, latency_ms=st.integers(0, 10))
def test_the_best_is_the_most_accurate_within_a_latency(measured, latency_ms):
    best = SubnetPool(measured).best(latency_ms)
    within = [each for each in measured if each.latency_ms <= latency_ms]
    if best is None:
        assert not within
    else:
        assert best in within
        assert best.accuracy == max(each.accuracy for each in within)


def test_neighbours_are_the_next_in_the_pool():
    members = [Measured((index,), float(index + 1), index / 10) for index in range(5)]
    pool = SubnetPool(reversed(members))
    assert pool.fastest == members[0]
    assert pool.neighbours(members[0], 2) == (members[1], members[2])
    assert set(pool.neighbours(members[3], 2)) == {members[1], members[2], members[4]}
    assert pool.neighbours(members[3], 0) == ()


def test_a_pool_without_subnets_is_refused():
    with pytest.raises(InvalidInputError, match="no subnet to choose from"):
        SubnetPool([])


@pytest.mark.parametrize(
    ("latency_ms", "accuracy"), [(0, 0.5), (math.nan, 0.5), (math.inf, 0.5), (1, -0.1), (1, 1.1), (1, math.nan)]
)
def test_what_was_not_measured_is_refused(latency_ms, accuracy):
    with pytest.raises(InvalidInputError, match="not measured"):
        SubnetPool([Measured((0,), 1.0, 0.5), Measured((1,), latency_ms, accuracy)])
