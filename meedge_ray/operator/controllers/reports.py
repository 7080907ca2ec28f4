"""Asks many devices how they are without waiting for any of them."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ray
from ray.exceptions import RayError

from meedge_ray.actors.device import DeviceReport, RemoteDevice, find_device
from meedge_ray.domain.errors import NotFoundError

_GIVEN_UP_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Heard:
    """A device's report, and when it came."""

    report: DeviceReport
    at: datetime


@dataclass(frozen=True, slots=True)
class _Question:
    ref: Any
    asked_at: float


class Reports:
    """The last report of every device, and the questions under way; at most one for a device."""

    def __init__(self) -> None:
        self._devices: dict[str, RemoteDevice] = {}
        self._heard: dict[str, Heard] = {}
        self._open: dict[str, _Question] = {}
        self._unanswered_since: dict[str, float] = {}
        self._next_at: dict[str, float] = {}

    def ask(self, names: Iterable[str], *, every_s: float) -> None:
        """Ask the devices that were not asked for so long."""
        now = time.monotonic()
        for name in names:
            if name in self._open or now < self._next_at.get(name, 0.0):
                continue
            try:
                device = self._devices.get(name) or find_device(name)
            except NotFoundError:
                continue  # gone meanwhile
            self._devices[name] = device
            self._open[name] = _Question(device.ask_report(), now)
            self._unanswered_since.setdefault(name, now)
            self._next_at[name] = now + every_s

    def collect(self, timeout_s: float) -> None:
        """Take in what has been answered, waiting so long at most while questions are open."""
        refs = [question.ref for question in self._open.values()]
        if not refs:
            return
        answered, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
        done = set(answered)
        for name, question in list(self._open.items()):
            if question.ref in done:
                del self._open[name]
                self._take(name, question)
            elif time.monotonic() - question.asked_at > _GIVEN_UP_AFTER_S:
                del self._open[name]
                ray.cancel(question.ref)

    def heard(self, name: str) -> Heard | None:
        """Return what the device said last since it was attached."""
        return self._heard.get(name)

    def silent_s(self, name: str) -> float:
        """Return for how long the device has been asked in vain."""
        since = self._unanswered_since.get(name)
        return 0.0 if since is None else time.monotonic() - since

    def ask_again(self, name: str) -> None:
        """Ask the device at the next opportunity: something was done to it."""
        self._next_at.pop(name, None)

    def forget(self, names: Iterable[str]) -> None:
        """Forget devices that have no actor any more."""
        for name in names:
            for known in (self._devices, self._heard, self._open, self._unanswered_since, self._next_at):
                known.pop(name, None)

    def known(self) -> set[str]:
        """Return the devices that anything is known of."""
        return set(self._devices)

    def _take(self, name: str, question: _Question) -> None:
        try:
            report: DeviceReport = ray.get(question.ref, timeout=0)
        except RayError:
            return  # its node went away; it is asked again
        self._heard[name] = Heard(report, datetime.now(UTC))
        self._unanswered_since.pop(name, None)
