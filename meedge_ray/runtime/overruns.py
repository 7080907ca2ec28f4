"""What placements take besides what equation 1 of MEEdge knows of: search and transmission."""

from collections import deque

_REMEMBERED = 4
_MOST = 0.5  # of the time there is: with less to send in, nothing would be sent, and nothing learnt, ever again


class Overruns:
    """Keeps free of the next placement's time what the last few took besides, at most.

    That is the round trips of the requests, for the placement and for its units, the units' loading, and what a busy
    device waits for its processor.
    """

    def __init__(self) -> None:
        self._ms: deque[float] = deque(maxlen=_REMEMBERED)

    def add(self, took_ms: float, foretold_ms: float) -> None:
        """Count a placement that had units to fetch."""
        self._ms.append(took_ms - foretold_ms)

    def left_ms(self, budget_ms: float) -> float:
        """Return what search and transmission may take of the time there is, half of it at least."""
        return budget_ms - min(_MOST * budget_ms, max((0.0, *self._ms)))
