"""Waiting for what happens elsewhere in the cluster, and never for ever."""

import time
from collections.abc import Callable

_POLL_S = 0.05


def eventually(holds: Callable[[], bool], *, timeout_s: float) -> bool:
    """Return whether a condition held within the time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
