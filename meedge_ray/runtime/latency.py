"""What an inference takes, against what was estimated."""

from collections import deque
from math import inf
from statistics import median
from threading import Lock

from meedge_ray.domain.errors import InvalidInputError

WINDOW = 9
HYSTERESIS = 0.1


class LatencyMonitor:
    """Tells by what factor inferences take longer than estimated (AdaptiveNet 5.3): r, the latency scaling ratio.

    That is the median over the last `window` inferences, so that fewer than half of them cannot move it. A budget has
    room for a slower subnet only where that would leave the share `hysteresis` of it free: then neither noise nor an
    error of that size in an estimate leads to and fro. Thread-safe.
    """

    def __init__(self, *, window: int = WINDOW, hysteresis: float = HYSTERESIS) -> None:
        """Begin with r = 1.

        Args:
            window: number of inferences.
            hysteresis: share of the budget, 0 or more and less than 1.

        Raises:
            InvalidInputError: the window has no inference, or the share is none.
        """
        if window < 1:
            raise InvalidInputError(f"{window} inferences say nothing", where="window", do="Give 1 or more")
        if not 0 <= hysteresis < 1:
            raise InvalidInputError(
                f"{hysteresis} is no share of a budget", where="hysteresis", do="Give 0 or more, and less than 1"
            )
        self.hysteresis = hysteresis
        self._lock = Lock()
        self._last: deque[float] = deque(maxlen=window)
        self._ratio = 1.0

    @property
    def ratio(self) -> float:
        """Actual / estimated latency: of the last full window, 1 before the first."""
        return self._ratio

    def observe(self, actual_ms: float, estimated_ms: float) -> bool:
        """Take in one inference; return whether the window is full, so that `ratio` is news.

        Raises:
            InvalidInputError: a latency is not above 0 or not finite; nothing is taken in.
        """
        if not (0 < actual_ms < inf and 0 < estimated_ms < inf):
            raise InvalidInputError(f"{actual_ms} ms against {estimated_ms} ms estimated are no latencies")
        with self._lock:
            self._last.append(actual_ms / estimated_ms)
            if len(self._last) < (self._last.maxlen or 0):
                return False
            self._ratio = median(self._last)
            return True

    def restart(self) -> None:
        """Forget the window: another subnet runs. `ratio` stays until the next is full."""
        with self._lock:
            self._last.clear()

    def within_ms(self, budget_ms: float) -> float:
        """Return the highest estimate that keeps to the budget now: budget / r."""
        return budget_ms / self._ratio

    def room_ms(self, budget_ms: float) -> float:
        """Return the highest estimate that surely does: the same for what hysteresis leaves of the budget."""
        return self.within_ms(budget_ms * (1 - self.hysteresis))
