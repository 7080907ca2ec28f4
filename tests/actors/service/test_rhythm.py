"""How often devices are to say how they are, and when one that does not counts as silent."""

from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.actors.service.rhythm import HEARTBEAT_S, heartbeat_s, silent_after_s

COUNTS = st.integers(0, 20_000)


def test_few_devices_say_it_often_and_many_as_often_as_the_service_bears():
    assert [heartbeat_s(devices) for devices in (0, 1, 250, 1000, 20_000)] == [HEARTBEAT_S, HEARTBEAT_S, 5, 20, 400]


@given(COUNTS, COUNTS)
def test_more_devices_never_make_more_heartbeats_than_the_service_bears(few, more):
    few, more = sorted((few, more))
    assert HEARTBEAT_S <= heartbeat_s(few) <= heartbeat_s(more)
    assert more / heartbeat_s(more) <= 50 + 1e-9


@given(COUNTS)
def test_a_device_is_not_silent_before_it_could_have_said_it_twice(devices):
    # At its most uneven an agent waits one interval and a half.
    assert silent_after_s(heartbeat_s(devices)) >= 2 * 1.5 * heartbeat_s(devices)
