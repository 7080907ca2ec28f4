import dataclasses
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.domain.errors import InvalidInputError, NotFoundError, UnavailableError
from meedge_ray.search.routing import Candidate, Refusal, Request, Route, choose

QUEUE, ASIDE_MS = 4, 1000.0

# Exact in binary, so that no rounding decides who is in time, and few, so that some are just in time.
times = st.integers(0, 8).map(lambda quarters: quarters / 4)
accuracies = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@st.composite
def candidates(draw, name):
    first_ms = draw(times)
    return Candidate(
        name=name,
        model=draw(st.sampled_from(["a", "a", "a", "b", None])),
        expectation=draw(accuracies),
        memory_bytes=draw(st.integers(0, 3)),
        aside=draw(st.sampled_from(["", "", "", "is silent"])),
        ahead=draw(st.integers(0, QUEUE + 1)),
        usual_ms=draw(times),
        first_ms=first_ms,
        whole_ms=first_ms + draw(times),
        beyond_ms=draw(times),
    )


fleets = st.integers(0, 5).flatmap(lambda count: st.tuples(*(candidates(name) for name in "vwxyz"[:count])))
requests = st.builds(
    Request,
    model=st.just("a"),
    deadline_ms=st.none() | times.map(lambda time_ms: 2 * time_ms),
    least_expectation=st.just(0.0) | accuracies,
    least_memory_bytes=st.integers(0, 2),
)


def chosen(fleet, request):
    return choose(fleet, request, queue=QUEUE, aside_ms=ASIDE_MS)


def outcome(device, request):
    """Play the request on the device, event by event; the worth and the time of its answer, None where it has none."""
    if device.model != request.model or device.aside or device.ahead >= QUEUE:
        return None
    if device.memory_bytes < request.least_memory_bytes:
        return None
    begin_ms = device.beyond_ms
    for _ in range(device.ahead):
        begin_ms += device.usual_ms
    end_ms = begin_ms + device.whole_ms
    worth = device.expectation
    deadline_ms = inf if request.deadline_ms is None else request.deadline_ms
    if deadline_ms < begin_ms + max(device.first_ms, 0.01):
        return None
    if deadline_ms < end_ms:
        worth *= (deadline_ms - begin_ms) / (end_ms - begin_ms)
    return (worth, end_ms) if worth >= request.least_expectation else None


@given(fleet=fleets, request=requests)
def test_the_choice_is_that_of_playing_the_request_on_every_device(fleet, request):
    played = {device.name: outcome(device, request) for device in fleet}
    able = [(-ends[0], ends[1], name) for name, ends in played.items() if ends]
    choice = chosen(fleet, request)
    if able:
        assert isinstance(choice, Route)
        assert (-choice.worth, choice.device) == (min(able)[0], min(able)[2])
    else:
        assert isinstance(choice, Refusal)
        assert {name for name, _ in choice.reasons} == {each.name for each in fleet if each.model in ("a", None)}


@given(fleet=fleets, request=requests, order=st.randoms())
def test_neither_the_order_nor_who_is_not_chosen_matters(fleet, request, order):
    choice = chosen(fleet, request)
    shuffled = list(fleet)
    order.shuffle(shuffled)
    assert chosen(shuffled, request) == choice
    if isinstance(choice, Route):
        assert chosen([each for each in fleet if each.name == choice.device], request) == choice


@given(fleet=fleets, request=requests)
def test_a_chosen_device_gets_the_time_that_is_left_and_is_due_by_the_deadline(fleet, request):
    choice = chosen(fleet, request)
    if isinstance(choice, Refusal):
        return
    [device] = [each for each in fleet if each.name == choice.device]
    before_ms = device.ahead * device.usual_ms + device.beyond_ms
    if request.deadline_ms is None:
        assert choice.deadline_ms is None
        assert choice.silent_after_ms == (device.finish_ms if device.whole_ms else before_ms + 1000)
    else:
        assert choice.deadline_ms == request.deadline_ms - before_ms > 0
        assert before_ms < choice.silent_after_ms <= request.deadline_ms


@given(fleet=fleets, request=requests)
def test_a_refused_request_is_taken_at_the_time_the_refusal_names_and_not_before(fleet, request):
    choice = chosen(fleet, request)
    if isinstance(choice, Route):
        return
    # As requests under way end, for those that are refused for nothing else.
    waits = [
        over * device.usual_ms
        for device in fleet
        for over in range(1, device.ahead + 1)
        if outcome(dataclasses.replace(device, ahead=device.ahead - over), request)
    ]
    waits += [ASIDE_MS for each in fleet if each.model is None or (each.model == "a" and each.aside)]
    assert choice.again_ms == min(waits, default=None)


@given(fleet=fleets, request=requests)
def test_the_deadline_a_refusal_asks_for_is_enough_for_an_idle_device(fleet, request):
    choice = chosen(fleet, request)
    if isinstance(choice, Refusal) and choice.needs_ms is not None:
        assert choice.needs_ms > request.deadline_ms
        patient = dataclasses.replace(request, deadline_ms=choice.needs_ms + 1e-6)
        assert isinstance(chosen([dataclasses.replace(each, ahead=0) for each in fleet], patient), Route)


def test_a_slow_device_that_would_be_cut_short_gives_way_to_a_fast_one():
    slow = Candidate(name="slow", model="a", expectation=0.62, whole_ms=50, first_ms=5)
    fast = Candidate(name="fast", model="a", expectation=0.60, whole_ms=5, first_ms=1)
    assert chosen([slow, fast], Request(model="a", deadline_ms=20)).device == "fast"
    assert chosen([slow, fast], Request(model="a", deadline_ms=60)).device == "slow"
    assert chosen([slow, fast], Request(model="a")).device == "slow"


def test_equal_devices_share_the_load():
    one, two = (Candidate(name=name, model="a", expectation=0.5, usual_ms=1, whole_ms=1) for name in ("one", "two"))
    assert chosen([one, two], Request(model="a")).device == "one"
    assert chosen([dataclasses.replace(one, ahead=1), two], Request(model="a")).device == "two"


def test_a_refusal_says_who_was_there_how_loaded_and_what_to_do():
    fleet = [
        Candidate(name="pi-1", model="a", ahead=QUEUE, usual_ms=7.0, whole_ms=7.0),
        Candidate(name="pi-2", model="a", aside="is silent"),
        Candidate(name="pi-3", model="b"),
    ]
    error = chosen(fleet, Request(model="a", deadline_ms=50.0)).error()
    assert type(error) is UnavailableError
    assert error.where == "model a"
    assert "pi-1 has 4 of 4 requests under way; pi-2 is silent" in error.what
    assert "pi-3" not in str(error)
    assert error.do == "Come again in 7 ms"
    assert chosen(fleet[:1], Request(model="a", deadline_ms=3.0)).error().do == "Come again in 28 ms"
    assert "more memory" in chosen(fleet[:1], Request(model="a", least_memory_bytes=1)).error().do


def test_a_deadline_that_no_device_can_meet_is_told_the_shortest_that_one_could():
    fleet = [Candidate(name="pi-1", model="a", first_ms=7.0, whole_ms=9.0, beyond_ms=2.0)]
    error = chosen(fleet, Request(model="a", deadline_ms=3.0)).error()
    assert "pi-1 takes 9.0 ms when idle" in error.what
    assert error.do == "Allow at least 9.0 ms"


def test_a_model_that_nobody_runs_is_not_found():
    error = chosen([Candidate(name="pi-3", model="b")], Request(model="a")).error()
    assert type(error) is NotFoundError
    assert error.do == "The fleet runs: b"
    unheard = [Candidate(name="pi-3", model=None)]
    assert type(chosen(unheard, Request(model="a")).error()) is UnavailableError


def test_a_refusal_by_many_devices_stays_readable():
    fleet = [Candidate(name=f"pi-{number}", model="a", aside="is silent") for number in range(100)]
    assert "and 95 more" in str(chosen(fleet, Request(model="a")).error())


@pytest.mark.parametrize(
    ("field", "bad"),
    [("deadline_ms", nan), ("deadline_ms", inf), ("least_expectation", 2.0), ("least_memory_bytes", -1)],
)
def test_a_number_that_asks_for_nothing_is_named(field, bad):
    with pytest.raises(InvalidInputError) as caught:
        Request(**{"model": "a", field: bad})
    assert caught.value.where == field
