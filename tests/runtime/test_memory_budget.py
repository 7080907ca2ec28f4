import os
import time
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.api.agent import MemoryPolicy, ScheduledMemory
from meedge_ray.domain.errors import BudgetError, InvalidInputError
from meedge_ray.runtime.memory_budget import Foreseen, MemoryBudget
from meedge_ray.runtime.memory_sources import MemoryReading, MemorySources

LIMIT = 1000
POLICY = MemoryPolicy(headroom_bytes=100, hysteresis=0.05, grow_after_s=1.0, pressure=0.2)
NOON = datetime(2024, 1, 10, 12).timestamp()


class Told:
    """Sources that tell what a test says."""

    def __init__(self, used=0, limit=LIMIT):
        self.used, self.limit, self.stalled = used, limit, None

    def read(self):
        return None if self.used is None else MemoryReading("/told", self.limit, self.used)

    def pressure(self):
        return self.stalled


class Rig:
    """A budget whose memory and clocks a test moves."""

    def __init__(self, declared=10_000, *, policy=POLICY, used=0, schedule=(), wall_s=NOON):
        self.told, self.now_s, self.wall_s = Told(used), 0.0, wall_s
        self.schedule = tuple(ScheduledMemory(at=at, memory_bytes=size) for at, size in schedule)
        self.budget = MemoryBudget(
            declared, policy, self.told, schedule=self.schedule, clock=lambda: self.now_s, wall=lambda: self.wall_s
        )

    def look(self, *, after_s=0.0, used=None, resident=0):
        self.now_s += after_s
        self.wall_s += after_s
        if used is not None:
            self.told.used = used
        return self.budget.allowed_bytes(resident)

    def at(self, text, day=10):
        """Let the local time jump to a time of a day; return the budget then."""
        self.wall_s = datetime.fromisoformat(f"2024-01-{day:02} {text}").timestamp()
        return self.budget.declared_bytes


looks = st.lists(
    st.tuples(
        st.sampled_from([0.125, 0.25, 0.625, 2.0]),  # seconds since the look before, exact as binary fractions
        st.integers(0, 1500),  # used
        st.integers(0, 800),  # resident
        st.sampled_from([None, 0.0, 0.1, 0.5]),  # pressure
        st.none() | st.integers(1, 2000),  # declared anew
    ),
    min_size=1,
    max_size=30,
)


def run(steps, *, calm=False, extra_free=0, extra_declared=0):
    """Yield the rig after each look, and what it allowed."""
    rig = Rig(1000 + extra_declared)
    for after_s, used, resident, stalled, declared in steps:
        rig.told.stalled = None if calm else stalled
        if declared:
            rig.budget.declare(declared + extra_declared)
        yield rig, rig.look(after_s=after_s, used=used - extra_free, resident=resident)


@given(looks)
def test_never_above_what_is_declared_or_what_is_free_less_the_head_room(steps):
    for (_, used, resident, _, _), (rig, allowed) in zip(steps, run(steps), strict=True):
        fits = resident + (LIMIT - used - POLICY.headroom_bytes) / 1.1
        assert 0 <= allowed <= max(0, min(rig.budget.declared_bytes, fits))


@given(looks, st.integers(0, 500), st.integers(0, 500))
def test_more_memory_and_a_larger_budget_never_allow_less(steps, extra_free, extra_declared):
    less = [allowed for _, allowed in run(steps, calm=True)]
    more = [allowed for _, allowed in run(steps, calm=True, extra_free=extra_free, extra_declared=extra_declared)]
    assert all(left <= right for left, right in zip(less, more, strict=True))


@given(looks)
def test_it_never_rises_under_pressure(steps):
    before = 0
    for rig, allowed in run(steps):
        pressure = rig.budget.state().pressure
        if pressure is not None and pressure > POLICY.pressure:
            assert allowed <= before
        before = allowed


@given(looks)
def test_it_rises_only_to_what_has_fitted_for_a_while(steps):
    """Brute force: the least room of all looks whose finding held within the last second."""
    rooms, now = [], 0.0
    before = None
    for (after_s, used, resident, _, _), (rig, allowed) in zip(steps, run(steps, calm=True), strict=True):
        now += after_s
        spare = LIMIT - used - POLICY.headroom_bytes - 0.05 * LIMIT
        rooms.append((now, resident + (spare / 1.1 if spare > 0 else spare)))
        lasting = [room for i, (_, room) in enumerate(rooms) if i + 1 == len(rooms) or rooms[i + 1][0] > now - 1.0]
        declared = rig.budget.declared_bytes
        if before is not None and allowed > before[0] and declared <= before[1]:
            assert allowed <= min(lasting) + 1
        if min(lasting) >= 0:
            assert allowed >= min(declared, int(min(lasting)) - 1)
        before = allowed, declared


def test_the_first_look_waits_for_nothing():
    assert Rig(500).look(used=0) == 500
    assert Rig(10_000).look(used=150) == 636  # (1000 - 150 - 100 - 50) / 1.1


def test_memory_taken_away_lowers_it_at_once_and_given_back_raises_it_late():
    rig = Rig()
    assert rig.look(used=299) == 500
    assert rig.look(after_s=0.01, used=679) == 200
    assert rig.look(after_s=0.01, used=299) == 200
    assert rig.look(after_s=0.9, used=299) == 200
    assert rig.look(after_s=0.11, used=299) == 500


def test_what_is_over_the_limit_is_given_back_byte_for_byte():
    assert Rig().look(used=960, resident=300) == 240  # 60 of the head-room are taken


def test_a_little_more_free_memory_changes_nothing():
    rig = Rig()
    assert rig.look(used=520, resident=100) == 400
    assert rig.look(after_s=5, used=740, resident=300) == 400  # within the band, up and down
    assert rig.look(after_s=5, used=850, resident=400) == 400
    assert rig.look(after_s=5, used=900, resident=400) == 400


def test_a_larger_budget_counts_at_once_where_there_has_been_room():
    rig = Rig(200)
    rig.look(used=0)
    rig.look(after_s=2)
    rig.budget.declare(400)
    assert rig.look(after_s=0.01) == 400


def test_pressure_takes_a_step_for_every_window_and_no_more():
    rig = Rig(400)
    assert rig.look(used=0) == 400
    rig.told.stalled = 0.5
    assert rig.look(after_s=0.6, used=800, resident=400) == 350
    assert rig.look(after_s=0.1, used=800, resident=350) == 350
    assert rig.look(after_s=0.6, used=800, resident=350) == 306
    rig.told.stalled = 0.0
    assert rig.look(after_s=0.6, used=100, resident=306) == 306
    assert rig.look(after_s=1.0, used=100, resident=306) == 400


def test_pressure_with_plenty_of_memory_is_somebody_elses():
    rig = Rig(400)
    rig.look(used=0)
    rig.told.stalled = 0.9
    assert rig.look(after_s=0.6, used=500, resident=400) == 400


def test_no_source_leaves_the_declared_budget_and_a_silent_one_what_there_was():
    rig = Rig(300)
    rig.told.used = None
    assert rig.look() == 300
    assert rig.budget.state().limit_bytes is None
    assert rig.look(after_s=1, used=700) == 181
    rig.told.used = None
    rig.budget.declare(500)
    assert rig.look(after_s=100, resident=181) == 181


def test_a_budget_larger_than_the_memory_there_is_is_bounded_and_said():
    rig = Rig(5000)
    assert rig.look(used=299) == 500
    state = rig.budget.state()
    assert (state.source, state.limit_bytes, state.used_bytes) == ("/told", LIMIT, 299)
    assert (state.declared_bytes, state.allowed_bytes) == (5000, 500)
    assert state.problem.startswith("the budget of 5000 bytes is more than the 1000 bytes of /told")
    rig.budget.declare(900)
    assert rig.budget.state().problem == ""


@pytest.mark.parametrize("nothing", [0, -5])
def test_no_memory_is_no_budget(nothing):
    rig = Rig(100)
    for change in (rig.budget.declare, lambda size: rig.budget.foresee(size, 1.0), Rig):
        with pytest.raises(BudgetError, match="memory_bytes"):
            change(nothing)
    assert rig.budget.declared_bytes == 100


def test_foreseen_changes_come_in_their_order_and_at_their_time():
    rig = Rig(100)
    rig.budget.foresee(300, 20.0)
    rig.budget.foresee(50, 10.0)
    rig.budget.foresee(60, 10.0)  # instead
    assert rig.budget.foreseen() == (Foreseen(60, 10.0), Foreseen(300, 20.0))
    assert rig.look(after_s=9.9) == 100
    assert rig.look(after_s=0.1) == 60
    rig.budget.declare(80)  # sudden; what is foreseen still comes
    assert rig.look(after_s=1) == 80
    assert rig.look(after_s=9) == 300
    assert rig.budget.foreseen() == ()


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(1, 9), st.integers(1, 20)), max_size=6), st.integers(0, 20))
def test_the_next_drop_is_the_first_budget_below_the_one_before_it(declared, changes, now):
    rig = Rig(declared)
    for size, at_s in changes:
        rig.budget.foresee(size, at_s)
    rig.now_s = now
    level, expected = declared, None
    for at_s, size in sorted({at_s: size for size, at_s in changes}.items()):
        if at_s > now and size < level:
            expected = at_s - now
            break
        level = size
    assert rig.budget.next_drop_s(now) == expected


def test_too_many_or_timeless_changes_are_refused():
    rig = Rig(100)
    with pytest.raises(InvalidInputError, match="no number"):
        rig.budget.foresee(1, float("nan"))
    for at_s in range(1, 1001):
        rig.budget.foresee(1, at_s)
    rig.budget.foresee(2, 1000)
    with pytest.raises(InvalidInputError, match="foreseen already"):
        rig.budget.foresee(1, 2000)


DAY = (("22:00", 10), ("08:00", 100), ("12:30:30", 50))


def test_the_schedule_holds_from_the_start_and_is_foreseen():
    rig = Rig(7, schedule=DAY)
    assert rig.budget.declared_bytes == 100
    assert rig.budget.foreseen() == (Foreseen(50, 1830.0), Foreseen(10, 36_000.0), Foreseen(100, 72_000.0))
    assert rig.budget.next_drop_s(0.0) == 1830
    assert rig.look(after_s=1829) == 100
    assert rig.look(after_s=1) == 50
    assert rig.look(after_s=36_000 - 1830) == 10
    assert rig.look(after_s=36_000) == 100


def test_a_budget_declared_by_hand_holds_until_the_schedules_next():
    rig = Rig(7, schedule=DAY)
    rig.budget.declare(33)
    rig.budget.foresee(44, 100.0)
    assert rig.look(after_s=60) == 33
    assert rig.look(after_s=60) == 44
    assert rig.at("12:30:30") == 50


def test_a_time_that_is_jumped_over_counts_once():
    rig = Rig(7, schedule=DAY)
    assert rig.at("23:00") == 10
    rig.budget.declare(33)
    assert rig.at("21:59") == 33  # set back across it, and passed again
    assert rig.budget.foreseen()[-1].memory_bytes == 10
    assert rig.at("22:01") == 33
    assert rig.at("07:59", day=20) == 10  # the last of all those that ten days had
    assert rig.at("08:00", day=20) == 100


def test_a_clock_set_far_back_begins_anew():
    rig = Rig(7, schedule=DAY)
    assert rig.at("09:00", day=30) == 100
    assert rig.at("23:00", day=2) == 10
    assert rig.at("08:00", day=3) == 100


@given(st.lists(st.tuples(st.integers(0, 24 * 60 - 1), st.integers(1, 1000)), min_size=1, max_size=5), st.data())
def test_whatever_the_clock_jumps_ahead_the_budget_is_the_one_begun_last(entries, data):
    entries = list(dict(entries).items())
    schedule = [(f"{minute // 60:02}:{minute % 60:02}", size) for minute, size in entries]
    rig = Rig(7, schedule=schedule)
    for jump_s in data.draw(st.lists(st.integers(0, 3 * 86_400), min_size=1, max_size=6)):
        rig.wall_s += jump_s
        local = datetime.fromtimestamp(rig.wall_s)
        began = [
            (datetime(local.year, local.month, local.day) + timedelta(days=day, minutes=minute), size)
            for minute, size in entries
            for day in (-1, 0, 1)
        ]
        assert rig.budget.declared_bytes == max(past for past in began if past[0] <= local)[1]
        assert rig.budget.foreseen()[0].memory_bytes == min(ahead for ahead in began if ahead[0] > local)[1]


def test_the_hour_that_summer_time_repeats_does_not_repeat_the_schedule(monkeypatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        rig = Rig(7, schedule=(("02:30", 10), ("12:00", 100)), wall_s=datetime(2024, 10, 27, 1, 59).timestamp())
        assert rig.look(after_s=1860) == 10
        rig.budget.declare(33)
        assert rig.look(after_s=3600) == 33  # 02:30 again
        assert rig.look(after_s=9 * 3600 + 1800) == 100
        spring = Rig(7, schedule=(("02:30", 10), ("12:00", 100)), wall_s=datetime(2024, 3, 31, 1, 59).timestamp())
        assert spring.budget.declared_bytes == 100
        assert spring.look(after_s=60) == 10  # 03:00: 02:30 was left out
    finally:
        monkeypatch.undo()
        time.tzset()


def test_this_machines_own_memory_bounds_a_budget_that_nobody_could_have():
    sources = MemorySources()
    budget = MemoryBudget(2**60, MemoryPolicy(), sources)
    machine_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 <= budget.allowed_bytes(0) < machine_bytes
    assert budget.state().problem
    sources.close()
