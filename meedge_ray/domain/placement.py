"""The set of branches resident on a device."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Names of the placed branches in the order they run, with what was promised for them.

    `size_bytes` counts backbone and branches, a shared unit once; `expectation` is the mAE over `horizon_ms`.
    """

    branches: tuple[str, ...]
    size_bytes: int
    expectation: float
    horizon_ms: float
    device_type: str
    method: str
    search_ms: float
