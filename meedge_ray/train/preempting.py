"""Takes the processor away from a running inference, from another thread, at a given time."""

import threading
import time
from math import inf
from types import TracebackType
from typing import Self

from meedge_ray.runtime.preemption import Preemption


class Preemptor:
    """A thread that trips a preemption when its time has come; used as a context.

    It sleeps until then, so a trip comes as late as the system wakes it: about 0.1 ms. What counts is the time of the
    trip, which each preemption remembers.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next, self._at, self._ended = Preemption(), inf, False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def after(self, wait_ms: float) -> Preemption:
        """Return a preemption that is tripped so long after this call; an earlier one that was not yet never is."""
        with self._changed:
            self._next, self._at = Preemption(), time.perf_counter() + wait_ms / 1e3
            self._changed.notify()
            return self._next

    def _run(self) -> None:
        with self._changed:
            while not self._ended:
                left_s = self._at - time.perf_counter()
                if left_s > 0:
                    self._changed.wait(None if left_s == inf else left_s)
                else:
                    self._next.trip()
                    self._at = inf
