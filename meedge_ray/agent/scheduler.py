"""The on-device scheduler: Memory Budget, Latency Budget, SBRAN and MODE, kept together (MEEdge 3.4)."""

import logging
from contextlib import suppress
from dataclasses import replace
from math import inf
from threading import Event, Lock, Thread
from time import monotonic, perf_counter
from typing import Any

from meedge_ray.domain.answer import Answer
from meedge_ray.domain.errors import BudgetError, MeedgeError
from meedge_ray.runtime.device import Device
from meedge_ray.runtime.latency_budget import LatencyBudget, Run
from meedge_ray.runtime.memory import release_to_os
from meedge_ray.runtime.memory_budget import Foreseen, MemoryBudget

_LOOK_S = 0.02  # a look takes 0.1 ms
_TRIM_S = 1.0  # between attempts to give back what is freed, while that is short: 0.1 to 1 ms each
_ASK_AGAIN_S = 60.0  # the service, which may have learnt something new
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0  # between attempts while the service is away
_RETURN_S = 1.0  # longest wait for inferences that were told to end: a block's time
PARTING_S = 0.5  # that a thread is given to end
_TRIES = 4  # of one inference that memory takes the units from

_log = logging.getLogger(__name__)


class Scheduler:
    """Keeps a device within the memory that it is left, at every moment, and its inferences answering.

    One thread looks at the memory and lets go at once of what no longer fits; another speaks with the service, so
    that nothing waits for the network.
    """

    def __init__(self, device: Device, memory: MemoryBudget, latency: LatencyBudget) -> None:
        """Take a device without a budget yet; `start` begins to look after it."""
        self.device, self.memory, self.latency = device, memory, latency
        self.drops = 0
        self._looking = Lock()
        self._allowed_bytes: int | None = None
        self._trimmed_s = -inf
        self._asked_for: tuple[str, ...] | None = None  # the best placement when the service was asked last
        self._prepared_for: tuple[int, int] | None = None
        self._stop, self._wake = Event(), Event()
        self._threads = [
            Thread(target=self._watch, name="memory", daemon=True),
            Thread(target=self._follow, name="placements", daemon=True),
        ]

    def start(self) -> None:
        """Keep to the memory there is from now on; the service has placed, or is away, when this returns."""
        watch, follow = self._threads
        watch.start()
        with suppress(MeedgeError):  # the device's status says so
            self.device.make_do()
        self._ask()
        follow.start()

    def close(self) -> None:
        """Stop looking; inferences go on. A thread that waits for the service ends when that has answered."""
        self._stop.set()
        self._wake.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(PARTING_S)

    def infer(self, sample: Any, *, deadline_ms: float | None = None) -> Answer:  # noqa: ANN401 - as Device.infer
        """Answer for one raw sample; see `Device.infer`.

        An inference that memory is taken from before it has any result is begun again on what is left: only its
        deadline, or whoever ends it, leaves it without an answer.
        """
        start = perf_counter()
        asked_ms = self.latency.deadline_ms(deadline_ms, None)
        change_in_s = self.memory.next_drop_s(monotonic())
        for _ in range(_TRIES):
            left_ms = None if asked_ms is None else _left_ms(asked_ms, start)
            bound_ms = self.latency.deadline_ms(left_ms, change_in_s)
            with self.latency.running(bound_ms) as run:
                answer = self.device.infer(sample, deadline_ms=bound_ms, preemption=run.preemption)
            if answer.label is not None or not _is_cut_for_memory(run, answer, left_ms):
                break
            change_in_s = None  # met, or about to be: now it is ended only by the change itself
        return replace(answer, elapsed_ms=(perf_counter() - start) * 1e3)

    def set_memory(self, memory_bytes: int) -> None:
        """Keep to another declared budget: at once, then as the service advises.

        Raises:
            BudgetError: it is below the backbone, which goes on alone.
            MeedgeError: a held unit cannot be loaded; the resident branches fit the budget.
        """
        self.memory.declare(memory_bytes)
        self.look()
        self.device.placer.place(memory_bytes)
        self._asked_for = self._best()
        self.device.follow()

    def foresee(self, memory_bytes: int, in_s: float) -> None:
        """Be told of a budget that will begin so soon: what it wants is fetched ahead."""
        self.memory.foresee(memory_bytes, monotonic() + in_s)
        self._wake.set()

    def ask_service(self) -> None:
        """Ask the service anew, soon."""
        self._wake.set()

    def look(self) -> None:
        """Make the units in memory fit what they may take now."""
        with self._looking:
            allowed_bytes = self._read()
            if allowed_bytes < self.device.resident_bytes and self.device.can_unload:
                self._drop(allowed_bytes)
            elif allowed_bytes != self._allowed_bytes:
                self._limit(allowed_bytes)
            self._allowed_bytes = allowed_bytes
            if self._best() != self._asked_for:
                self._wake.set()

    def _read(self) -> int:
        is_bound = (self._allowed_bytes or 0) < self.memory.declared_bytes
        if is_bound and monotonic() >= self._trimmed_s + _TRIM_S:
            release_to_os()  # what inferences have freed is no reason to hold less
            self._trimmed_s = monotonic()
        with self.device.still():
            return self.memory.allowed_bytes(self.device.resident_bytes)

    def _drop(self, allowed_bytes: int) -> None:
        # Inferences hold on to the units they began with.
        ended = self.latency.end(for_memory=True)
        self._limit(allowed_bytes)
        self.drops += 1
        if not self.latency.wait(ended, timeout_s=_RETURN_S):
            _log.warning("an inference did not return when memory fell")
        release_to_os()

    def _limit(self, allowed_bytes: int) -> None:
        with suppress(BudgetError):  # the device's status says so; the bare backbone goes on
            self.device.limit(allowed_bytes)

    def _best(self) -> tuple[str, ...]:
        try:
            return self.device.placer.place(self._allowed_bytes or 0).branches
        except BudgetError:
            return ()

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                self.look()
            except Exception:
                _log.exception("the memory could not be looked at")

    def _follow(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stop.is_set():
            if self.device.follows_service:
                pause_s = _FIRST_PAUSE_S
                self._wake.wait(_ASK_AGAIN_S)
            else:
                # Not at once, however often it is woken: the service is away.
                self._stop.wait(_FIRST_PAUSE_S)
                self._wake.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self._wake.clear()
            if not self._stop.is_set():
                self._ask()

    def _ask(self) -> None:
        self._asked_for = self._best()
        for step in (self._prepare, self.device.follow):
            try:
                step()
            except MeedgeError as error:
                _log.info("no placement: %s", error)
            except Exception:
                if not self._stop.is_set():
                    _log.exception("the service could not be followed")

    def _prepare(self) -> None:
        coming = self.memory.foreseen()
        if coming and _key(coming[0]) != self._prepared_for:
            in_ms = max(1.0, (coming[0].at_s - monotonic()) * 1e3)
            self.device.prepare(coming[0].memory_bytes, within_ms=in_ms)
            self._prepared_for = _key(coming[0])


def _key(change: Foreseen) -> tuple[int, int]:
    # A time of day is counted anew at every look.
    return change.memory_bytes, round(change.at_s)


def _left_ms(deadline_ms: float, start: float) -> float:
    # What is no deadline is left as it is, for the engine to refuse.
    return max(0.0, deadline_ms - (perf_counter() - start) * 1e3) if deadline_ms > 0 else deadline_ms


def _is_cut_for_memory(run: Run, answer: Answer, left_ms: float | None) -> bool:
    if run.for_memory:
        return True
    return answer.ending == "deadline" and (left_ms is None or (run.deadline_ms or 0.0) < left_ms)
