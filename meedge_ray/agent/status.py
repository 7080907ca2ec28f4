"""How an agent stands; goes over its socket as JSON."""

from dataclasses import dataclass

from meedge_ray.api.agent import AgentProblem, Mode
from meedge_ray.domain.device_status import DeviceStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryState:
    """The memory there is, where that is known, and what is made of it.

    `allowed_bytes` are those that units may take now; None of the others: no source says so. `problem` is why the
    declared budget cannot be had, if it cannot.
    """

    source: str
    limit_bytes: int | None
    used_bytes: int | None
    pressure: float | None
    allowed_bytes: int
    rss_bytes: int
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What an agent has done since it began; `empty` are inferences that ended before any result was at hand."""

    inferences: int = 0
    completed: int = 0
    deadline: int = 0
    preempted: int = 0
    empty: int = 0
    failed: int = 0
    drops: int = 0
    fetched_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeseenBudget:
    """A budget that is to come."""

    memory_bytes: int
    in_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatus:
    """How an agent stands. `running` is None before its model is loaded, `problem` why that or a placement failed.

    `heartbeat_problem` is why a device without Ray could not say how it is.
    """

    device: str
    pid: int
    version: str
    started_at: float
    settings_sha256: str
    busy: bool
    problem: AgentProblem | None
    running: DeviceStatus | None
    mode: Mode
    latency_ms: float | None
    memory: MemoryState
    counts: Counts
    foreseen: tuple[ForeseenBudget, ...] = ()
    heartbeat_problem: AgentProblem | None = None
