"""What a device says of itself."""

from dataclasses import dataclass
from typing import Literal

Source = Literal["service", "local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """What a device does now.

    `memory_bytes` is the budget, None before the first; `resident_bytes` counts the units loaded. `source` says
    who chose the resident branches; where the service did not, `problem` says why. `planning` is what was asked for,
    `planner` what chooses among the resident branches now: "static", "samplewise", "finiteTime", or "none", which runs
    all of them.
    """

    model: str
    bundle_sha256: str
    device_type: str
    memory_bytes: int | None
    resident_bytes: int
    process_rss_bytes: int
    branches: tuple[str, ...]
    planning: str
    planner: str
    expectation: float
    units_held: int
    fetched_bytes: int
    source: Source
    problem: str
