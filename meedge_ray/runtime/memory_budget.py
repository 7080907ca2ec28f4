"""How many bytes of units a device may hold now: the budget it is given, within the memory that there is.

MEEdge section 3.4, Memory Budget: changes are foreseen or sudden; memory is taken away faster than it comes back.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock

from meedge_ray.api.agent import MemoryPolicy, ScheduledMemory
from meedge_ray.domain.errors import BudgetError, InvalidInputError
from meedge_ray.runtime.memory_sources import MemoryReading, MemorySources

# What a loaded unit takes of the machine for each byte of its file; 1.01 to 1.05 were measured.
_REAL_BYTES_PER_UNIT_BYTE = 1.1

_MOST_FORESEEN = 1000
_DAY = timedelta(days=1)
_SET_ANEW = timedelta(hours=2)  # summer time and a clock's correction set it back by less

_PRESSURE_WINDOW_S = 0.5  # one stall fills a shorter one
_GIVEN_BACK = 1 / 8  # of the units, for each window under pressure
# Where more than this share is free, tasks stall for a limit that is not this process's.
_PLENTY = 0.25


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A budget that begins at `at_s` of the budget's clock."""

    memory_bytes: int
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """What a budget was made of last; None: no source told. `problem` says why the declared budget cannot be had."""

    source: str
    limit_bytes: int | None
    used_bytes: int | None
    pressure: float | None
    declared_bytes: int
    allowed_bytes: int
    problem: str


class MemoryBudget:
    """Bytes of units that may be resident: at most the declared budget, at most what the memory there is can hold.

    They fall at once. They rise to what has fitted at every look of the last `grow_after_s`, and where that much has
    been there already, to a larger declared budget at once. From any thread.
    """

    def __init__(
        self,
        declared_bytes: int,
        policy: MemoryPolicy,
        sources: MemorySources,
        *,
        schedule: tuple[ScheduledMemory, ...] = (),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Begin with a declared budget, or with the one that the schedule has for this time of day.

        Args:
            declared_bytes: the budget where there is no schedule.
            policy: head-room and hysteresis.
            sources: what tells of the memory there is.
            schedule: budgets that begin at local times of every day.
            clock: seconds that always go on, which foreseen changes are counted in.
            wall: seconds since 1970, which may jump; a time of the schedule that is jumped over counts once.

        Raises:
            BudgetError: the declared budget is not above zero.
        """
        self._policy, self._sources, self._clock = policy, sources, clock
        self._daily = _Daily(schedule, wall)
        self._declared = _checked(declared_bytes)
        self._foreseen: tuple[Foreseen, ...] = ()
        self._lock = Lock()
        self._room = _LeastSince(policy.grow_after_s)
        self._within: int | None = None  # what the memory allows, whatever is declared
        self._allowed = 0
        self._reading: MemoryReading | None = None
        self._told = False
        self._pressure: float | None = None
        self._pressure_at_s = -math.inf

    @property
    def declared_bytes(self) -> int:
        """The budget as it is asked for now."""
        with self._lock:
            self._begin(self._clock())
            return self._declared

    def declare(self, memory_bytes: int) -> None:
        """Set the budget now; what is foreseen still comes.

        Raises:
            BudgetError: it is not above zero.
        """
        with self._lock:
            self._begin(self._clock())
            self._declared = _checked(memory_bytes)

    def foresee(self, memory_bytes: int, at_s: float) -> None:
        """Let the budget become another one at a time of the clock; it replaces one foreseen for the same time.

        Raises:
            BudgetError: it is not above zero.
            InvalidInputError: too many are foreseen, or the time is no number.
        """
        if math.isnan(at_s):
            raise InvalidInputError("the time is no number", where="in_ms", do="Give the milliseconds from now")
        change = Foreseen(_checked(memory_bytes), at_s)
        with self._lock:
            others = [other for other in self._foreseen if other.at_s != at_s]
            if len(others) >= _MOST_FORESEEN:
                raise InvalidInputError(
                    f"{_MOST_FORESEEN} changes of memory are foreseen already", do="Foresee fewer, or a daily schedule"
                )
            self._foreseen = tuple(sorted((*others, change), key=_when))

    def foreseen(self) -> tuple[Foreseen, ...]:
        """Return what is to come, soonest first; of the schedule, each time once."""
        with self._lock:
            return self._ahead(self._clock())

    def next_drop_s(self, now: float) -> float | None:
        """Return the seconds from `now`, a time of the clock, to the first foreseen budget below the one before it.

        None: none is foreseen.
        """
        with self._lock:
            ahead = self._ahead(self._clock())
            before = self._declared
        for change in ahead:
            if change.memory_bytes < before:
                return max(0.0, change.at_s - now)
            before = change.memory_bytes
        return None

    def allowed_bytes(self, resident_bytes: int) -> int:
        """Look at the memory there is, and return the bytes of units that may be resident from now on.

        Args:
            resident_bytes: of the units held now. What was unloaded must have gone back to the system before this
                call, and what was loaded must be counted: else the memory in use is taken for somebody else's.
        """
        with self._lock:
            now = self._clock()
            self._begin(now)
            stalled = self._look(now)
            bound, grown = self._bounds(resident_bytes)
            if self._within is None:
                self._within = max(grown, min(bound, resident_bytes))  # what is there may stay
            under_pressure = self._pressure is not None and self._pressure > self._policy.pressure
            if under_pressure:
                self._within = grown = min(self._within, self._allowed)
                if stalled and self._is_short():
                    bound = min(bound, int(min(self._allowed, resident_bytes) * (1 - _GIVEN_BACK)))
            self._room.add(now, min(bound, grown))
            self._within = max(0, min(bound, max(self._within, self._room.least)))
            self._allowed = min(self._declared, self._within)
            return self._allowed

    def has_room(self, needed_bytes: int, *, within_headroom: bool) -> bool:
        """Return whether so many bytes may be taken now for a moment, of the head-room too or not."""
        kept_bytes = 0 if within_headroom else self._policy.headroom_bytes
        with self._lock:
            reading = self._sources.read()
        return reading is None or needed_bytes + kept_bytes <= reading.free_bytes

    def state(self) -> BudgetState:
        """Return what the last look found and what is declared now; takes no look."""
        with self._lock:
            self._begin(self._clock())
            reading = self._reading
            return BudgetState(
                source=reading.source if reading else "",
                limit_bytes=reading.limit_bytes if reading else None,
                used_bytes=reading.used_bytes if reading else None,
                pressure=self._pressure,
                declared_bytes=self._declared,
                allowed_bytes=self._allowed,
                problem=self._problem(),
            )

    def _begin(self, now: float) -> None:
        begun = [change for change in self._foreseen if change.at_s <= now]
        self._foreseen = self._foreseen[len(begun) :]
        for change in sorted((*self._daily.begun(now), *begun), key=_when):
            self._declared = change.memory_bytes

    def _ahead(self, now: float) -> tuple[Foreseen, ...]:
        self._begin(now)
        return tuple(sorted((*self._daily.ahead(now), *self._foreseen), key=_when))

    def _look(self, now: float) -> bool:
        """Read the sources; return whether a window under pressure has just ended."""
        self._reading = self._sources.read()
        if now < self._pressure_at_s + _PRESSURE_WINDOW_S:
            return False
        self._pressure, self._pressure_at_s = self._sources.pressure(), now
        return True

    def _bounds(self, resident_bytes: int) -> tuple[int, int]:
        """Return the most units there may be, and the most that may be grown to."""
        if self._reading is None:
            # No source at all leaves what is declared; one that has fallen silent, what there was.
            known = self._allowed if self._told else sys.maxsize
            return known, known
        self._told = True
        spare = self._reading.limit_bytes - self._reading.used_bytes - self._policy.headroom_bytes
        band = math.ceil(self._policy.hysteresis * self._reading.limit_bytes)
        return _fitting(resident_bytes, spare), _fitting(resident_bytes, spare - band)

    def _is_short(self) -> bool:
        reading = self._reading
        return reading is None or reading.free_bytes < self._policy.headroom_bytes + _PLENTY * reading.limit_bytes

    def _problem(self) -> str:
        if self._reading is None or self._declared <= self._reading.limit_bytes - self._policy.headroom_bytes:
            return ""
        return (
            f"the budget of {self._declared} bytes is more than the {self._reading.limit_bytes} bytes of "
            f"{self._reading.source} less the head-room of {self._policy.headroom_bytes}: what is free bounds it"
        )


class _LeastSince:
    """The least of the values that held within a span of time up to now."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._spans: deque[tuple[float, int]] = deque()  # since when the values have been at least this: both rise

    def add(self, now: float, value: int) -> None:
        since = now
        while self._spans and self._spans[-1][1] >= value:
            since, _ = self._spans.pop()
        self._spans.append((since, value))
        while len(self._spans) > 1 and self._spans[1][0] <= now - self._span_s:
            self._spans.popleft()

    @property
    def least(self) -> int:
        return self._spans[0][1]


class _Daily:
    """Budgets that begin at local times of every day, by a clock that may jump."""

    def __init__(self, schedule: tuple[ScheduledMemory, ...], wall: Callable[[], float]) -> None:
        self._schedule, self._wall = sorted(schedule, key=lambda entry: entry.time), wall
        self._passed: datetime | None = None  # all up to here have begun

    def begun(self, now: float) -> list[Foreseen]:
        """Return the budget that has begun since the last call, if one has; the clock's time is now."""
        if not self._schedule:
            return []
        wall_s = self._wall()
        local = datetime.fromtimestamp(wall_s)
        if self._passed is None or local < self._passed - _SET_ANEW:
            self._passed = local - _DAY
        begin, entry = max(
            ((_latest(entry, local), entry) for entry in self._schedule), key=lambda occurrence: occurrence[0]
        )
        if begin <= self._passed:
            self._passed = max(self._passed, local)
            return []
        self._passed = local
        return [Foreseen(entry.memory_bytes, now - (wall_s - begin.timestamp()))]

    def ahead(self, now: float) -> list[Foreseen]:
        """Return each budget when it begins next; the clock's time is now."""
        wall_s = self._wall()
        passed = max(self._passed or datetime.min, datetime.fromtimestamp(wall_s))
        return [
            Foreseen(entry.memory_bytes, now + (_latest(entry, passed) + _DAY).timestamp() - wall_s)
            for entry in self._schedule
        ]


def _latest(entry: ScheduledMemory, local: datetime) -> datetime:
    """Return when an entry began last, that moment included."""
    today = datetime.combine(local, entry.time)
    return today if today <= local else today - _DAY


def _when(change: Foreseen) -> float:
    return change.at_s


def _fitting(resident_bytes: int, spare_bytes: int) -> int:
    """Return the units that fit: more cost more than their files' bytes, fewer surely give back as much as those."""
    more = spare_bytes / _REAL_BYTES_PER_UNIT_BYTE if spare_bytes > 0 else spare_bytes
    return resident_bytes + math.floor(more)


def _checked(memory_bytes: int) -> int:
    if memory_bytes <= 0:
        raise BudgetError(
            f"a budget of {memory_bytes} bytes holds no model", where="memory_bytes", do="Give one above zero"
        )
    return memory_bytes
