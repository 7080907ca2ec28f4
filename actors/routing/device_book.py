"""What the fleet's scheduler knows of one device: its last report, its recent times, and what is under way there."""

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from meedge_ray.actors.device import DeviceReport, RemoteDevice
from meedge_ray.domain.answer import Answer
from meedge_ray.search.routing import Candidate

_KEPT, _KEPT_S = 64, 30.0
_LONGEST = 0.95
_MOST_TIMES_USUAL = 3.0  # one hiccup of a busy machine is not how long things take
# What a cut inference would have taken nobody knows: twice the time is tried next.
_CUT_FACTOR = 2.0


class Recent:
    """The last times measured, in ms. Old ones are forgotten, so that a bad hour keeps nobody away for good."""

    def __init__(self) -> None:
        self._times: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._sorted: list[float] = []

    def add(self, now_s: float, time_ms: float) -> None:
        """Note a time measured now."""
        self._times.append((now_s, time_ms))
        self.forget(now_s)

    def forget(self, now_s: float) -> None:
        """Drop what was measured too long ago."""
        while self._times and self._times[0][0] < now_s - _KEPT_S:
            self._times.popleft()
        self._sorted = sorted(time_ms for _, time_ms in self._times)

    def clear(self) -> None:
        """Drop all of them."""
        self._times.clear()
        self._sorted = []

    @property
    def usual_ms(self) -> float:
        """The median, 0 where nothing was measured."""
        return self._quantile(0.5)

    @property
    def longest_ms(self) -> float:
        """What 95 of 100 do not exceed, and at most a few times the median; 0 where nothing was measured."""
        return min(self._quantile(_LONGEST), _MOST_TIMES_USUAL * self.usual_ms)

    def _quantile(self, share: float) -> float:
        return self._sorted[math.ceil(share * len(self._sorted)) - 1] if self._sorted else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLoad:
    """A device as the scheduler knows it; `heard_s_ago` is None before its first report.

    `routed` counts what was sent there, `answered` what came back, be it after another's
    answer, `put_aside` how often it was silent or failed.
    """

    candidate: Candidate
    heard_s_ago: float | None
    routed: int
    answered: int
    put_aside: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A request under way: `ahead` others were so before it."""

    at_s: float
    ahead: int


class DeviceBook:
    """The book of one device. `asked_s` is when a report was asked for that has not come, `is_lost` an actor's end."""

    def __init__(self, device: RemoteDevice) -> None:
        self.device = device
        self.is_lost = False
        self.asked_s: float | None = None
        self._routed = self._answered = self._put_aside = 0
        self.candidate = Candidate(name=device.name, model=None)
        self._heard_s: float | None = None
        self._aside_s: float | None = None
        self._measured_s = 0.0
        self._placed: Any = None
        self._inferences, self._firsts, self._wholes, self._ways = Recent(), Recent(), Recent(), Recent()

    def renew(self, device: RemoteDevice) -> None:
        """Take the device's actor of now."""
        self.device, self.is_lost, self.asked_s = device, False, None

    def hear(self, report: DeviceReport, *, asked_s: float, now_s: float, silent_s: float) -> None:
        """Take a report: a device that was put aside is back, and measured anew where it was so for `silent_s`."""
        status = report.status
        placed = (status.model, status.bundle_sha256, status.branches) if status else None
        was_away = self._aside_s is not None and now_s - self._aside_s > silent_s
        if placed != self._placed or was_away:
            self._measure_anew(now_s)
        self._placed, self._aside_s, self._heard_s = placed, None, now_s
        if not was_away:
            self._ways.add(now_s, 1000 * (now_s - asked_s))
        for times in (self._inferences, self._firsts, self._wholes):
            times.forget(now_s)
        self._describe(
            model=report.settings.model,
            aside="" if status else f"has not loaded it ({report.problem or 'it is loading'})",
            expectation=status.expectation if status else 0.0,
            memory_bytes=(status.memory_bytes or 0) if status else 0,
        )

    def put_aside(self, why: str, *, now_s: float) -> None:
        """Send nothing there until its next report."""
        if self._aside_s is None:
            self._aside_s = now_s
            self._put_aside += 1
        self._describe(aside=why)

    def send(self, now_s: float) -> Sent:
        """Note a request that is sent now."""
        sent = Sent(now_s, self.candidate.ahead)
        self._routed += 1
        self._describe(ahead=sent.ahead + 1)
        return sent

    def end(self, sent: Sent, answer: Answer | None, *, now_s: float) -> None:
        """Note that a request has ended there, with its answer where it has one."""
        if answer is not None:
            self._answered += 1
            if sent.at_s >= self._measured_s:
                self._measure(sent, answer, now_s)
        self._describe(ahead=self.candidate.ahead - 1)

    def load(self, now_s: float) -> DeviceLoad:
        """Return what is known."""
        return DeviceLoad(
            candidate=self.candidate,
            heard_s_ago=None if self._heard_s is None else now_s - self._heard_s,
            routed=self._routed,
            answered=self._answered,
            put_aside=self._put_aside,
        )

    def _measure(self, sent: Sent, answer: Answer, now_s: float) -> None:
        took_ms = answer.elapsed_ms
        way_ms = 1000 * (now_s - sent.at_s) - took_ms - sent.ahead * self.candidate.usual_ms
        self._ways.add(now_s, max(0.0, way_ms))
        self._inferences.add(now_s, took_ms)
        if answer.outputs:
            self._firsts.add(now_s, answer.outputs[0].at_ms)
        elif answer.ending == "deadline":
            self._firsts.add(now_s, _CUT_FACTOR * took_ms)
        if answer.ending == "completed":
            self._wholes.add(now_s, took_ms)
        elif answer.ending == "deadline":
            self._wholes.add(now_s, _CUT_FACTOR * took_ms)

    def _measure_anew(self, now_s: float) -> None:
        self._measured_s = now_s
        for times in (self._inferences, self._firsts, self._wholes):
            times.clear()

    def _describe(self, **changed: Any) -> None:  # noqa: ANN401 - fields of a candidate
        # Here and not at each choice: a request changes two books, and a choice looks at all of them.
        self.candidate = replace(
            self.candidate,
            usual_ms=self._inferences.usual_ms,
            first_ms=self._firsts.longest_ms,
            whole_ms=self._wholes.longest_ms,
            beyond_ms=self._ways.longest_ms,
            **changed,
        )
