"""How long inferences may take, and the end of those that run."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.runtime.latency_budget import LatencyBudget

TIMES = st.none() | st.floats(0, 1000)


@given(asked_ms=TIMES, default_ms=TIMES, change_in_s=TIMES)
def test_an_inference_ends_by_what_its_caller_says_and_before_memory_falls(asked_ms, default_ms, change_in_s):
    deadline_ms = LatencyBudget(default_ms).deadline_ms(asked_ms, change_in_s)
    own_ms = default_ms if asked_ms is None else asked_ms
    known = [limit for limit in (own_ms, None if change_in_s is None else change_in_s * 1e3) if limit is not None]
    assert deadline_ms == (min(known) if known else None)


def test_the_default_can_be_changed_while_inferences_run():
    budget = LatencyBudget(5.0)
    with budget.running(5.0):
        budget.latency_ms = 2.0
        assert budget.deadline_ms(None, None) == 2.0
        assert budget.deadline_ms(3.0, None) == 3.0


def test_ending_tells_all_that_run_and_none_that_begin_later():
    budget = LatencyBudget(None)
    with budget.running(None) as first, budget.running(7.0) as second:
        assert set(budget.end(for_memory=False)) == {first, second}
        with budget.running(None) as later:
            assert later.preemption.at == float("inf")
        assert max(first.preemption.at, second.preemption.at) < float("inf")
    assert budget.end(for_memory=False) == ()


def test_an_inference_ended_twice_keeps_the_first_moment_and_that_memory_fell():
    budget = LatencyBudget(None)
    with budget.running(None) as run:
        budget.end(for_memory=False)
        at = run.preemption.at
        assert not run.for_memory
        budget.end(for_memory=True)
        budget.end(for_memory=False)
        assert (run.preemption.at, run.for_memory) == (at, True)


def test_waiting_lasts_until_the_ended_ones_have_returned_whatever_else_runs():
    budget = LatencyBudget(None)
    returning, done = threading.Event(), threading.Event()

    def infer():
        with budget.running(None):
            returning.wait()
        done.set()

    thread = threading.Thread(target=infer)
    thread.start()
    while not (ended := budget.end(for_memory=True)):
        pass
    with budget.running(None):
        assert not budget.wait(ended, timeout_s=0)
        assert not done.is_set()
        returning.set()
        assert budget.wait(ended, timeout_s=60)
    thread.join()
    assert budget.wait((), timeout_s=0)


def test_a_failed_inference_is_not_waited_for():
    budget, ended = LatencyBudget(None), []

    def fail():
        with budget.running(None):
            ended.extend(budget.end(for_memory=True))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(ended) == 1
    assert budget.wait(tuple(ended), timeout_s=0)
