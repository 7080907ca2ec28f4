"""Loops that compare what is declared with what there is, each in a thread of its own."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from meedge_ray.domain.errors import MeedgeError

_LONGEST_PAUSE_S = 30.0
_STOP_TIMEOUT_S = 10.0

_log = logging.getLogger(__name__)


class Sweeps:
    """All loops of an operator. One that fails begins afresh, after longer and longer pauses."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()

    def every(self, period_s: float, sweep: Callable[[], None]) -> None:
        """Add a loop: call `sweep` with such pauses in between."""
        self._threads.append(
            threading.Thread(target=self._repeat, args=(sweep, period_s), name=sweep.__qualname__, daemon=True)
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the loops while the context lasts."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(_STOP_TIMEOUT_S)

    def _repeat(self, sweep: Callable[[], None], period_s: float) -> None:
        pause_s, said = period_s, ""
        while not self._stop.wait(pause_s):
            try:
                sweep()
                pause_s, said = period_s, ""
            except Exception as error:
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                if str(error) != said:
                    said = str(error)
                    # A server that is away is no defect of ours.
                    _log.warning("%s: %s", sweep.__qualname__, error, exc_info=not isinstance(error, MeedgeError))
