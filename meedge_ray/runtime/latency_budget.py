"""How long inferences may take, and the end of those that run (MEEdge 3.4: Latency Budget)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition
from time import monotonic

from meedge_ray.runtime.preemption import Preemption


@dataclass(slots=True, eq=False)
class Run:
    """One inference under way. `for_memory` says that it was ended because memory fell, not by its caller."""

    deadline_ms: float | None
    preemption: Preemption = field(default_factory=Preemption)
    for_memory: bool = False


class LatencyBudget:
    """Bounds inferences by what their callers say and by what is foreseen, and ends them when something is not.

    Thread-safe.
    """

    def __init__(self, latency_ms: float | None) -> None:
        """Take the deadline of inferences that name none; None: they have none."""
        self.latency_ms = latency_ms
        self._changed = Condition()
        self._running: set[Run] = set()

    def deadline_ms(self, asked_ms: float | None, change_in_s: float | None) -> float | None:
        """Return the deadline of an inference that begins now.

        Args:
            asked_ms: by its caller.
            change_in_s: when memory will fall, as far as that is foreseen.
        """
        limits = [asked_ms if asked_ms is not None else self.latency_ms]
        limits.append(None if change_in_s is None else change_in_s * 1e3)
        return min((limit for limit in limits if limit is not None), default=None)

    @contextmanager
    def running(self, deadline_ms: float | None) -> Iterator[Run]:
        """Let one inference be ended as long as the context lasts."""
        run = Run(deadline_ms)
        with self._changed:
            self._running.add(run)
        try:
            yield run
        finally:
            with self._changed:
                self._running.discard(run)
                self._changed.notify_all()

    def end(self, *, for_memory: bool) -> tuple[Run, ...]:
        """Tell all that run to return the best they have; return them."""
        with self._changed:
            ended = tuple(self._running)
            for run in ended:
                run.for_memory = run.for_memory or for_memory
                run.preemption.trip()
        return ended

    def wait(self, ended: tuple[Run, ...], *, timeout_s: float) -> bool:
        """Wait until these have returned; return whether they have."""
        until = monotonic() + timeout_s
        with self._changed:
            while self._running.intersection(ended):
                left_s = until - monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    return not self._running.intersection(ended)
        return True
