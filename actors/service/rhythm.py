"""How often devices say how they are, and for how long they may not before they count as silent: decided here alone."""

HEARTBEAT_S = 5.0  # no device is asked to say so more often

# Of all devices together. One replica behind Ray Serve's own proxy answers four times as many on one processor core,
# and devices ask for placements and units as well.
_HEARTBEATS_PER_S = 50.0
_MISSED = 3


def heartbeat_s(devices: int) -> float:
    """Return how often each of so many devices is to say how it is, in seconds."""
    return max(HEARTBEAT_S, devices / _HEARTBEATS_PER_S)


def silent_after_s(told_s: float) -> float:
    """Return for how long nothing may be heard of a device that was told to say every `told_s` how it is."""
    return _MISSED * told_s
