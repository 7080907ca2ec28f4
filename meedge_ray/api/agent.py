"""What an agent is started with, and the bodies of what it is asked and answers on its socket."""

import datetime
import hashlib
from typing import Literal

from pydantic import Field, field_validator

from meedge_ray.api.serving import Body
from meedge_ray.api.time_distribution import UNIFORM, TimeDistribution

Mode = Literal["anytime", "finiteTime"]


class MemoryPolicy(Body):
    """How an agent holds itself within the memory that its group and its machine leave it."""

    headroom_bytes: int = Field(
        default=8 * 2**20, ge=0, description="kept free: for the answers under way, and for what falls suddenly"
    )
    hysteresis: float = Field(
        default=0.05, ge=0, lt=1, description="share of the limit that must be free beyond the head-room to load units"
    )
    grow_after_s: float = Field(default=1.0, ge=0, description="free for so long before units are loaded")
    pressure: float = Field(
        default=0.2, gt=0, le=1, description="share of time stalled for memory above which some is given back"
    )


class ScheduledMemory(Body):
    """A budget that begins at a time of every day."""

    at: str = Field(description="local time, HH:MM or HH:MM:SS")
    memory_bytes: int = Field(gt=0)

    @field_validator("at")
    @classmethod
    def _is_a_time(cls, at: str) -> str:
        if datetime.time.fromisoformat(at).tzinfo is not None:
            raise ValueError("must be a local time, without an offset")
        return at

    @property
    def time(self) -> datetime.time:
        """The time of day."""
        return datetime.time.fromisoformat(self.at)


class DeviceSettings(Body):
    """What a device runs, and within what bounds."""

    service_url: str = Field(min_length=1, description="of the placement service")
    token: str = Field(default="", repr=False, description="that the service asks for")
    ca_file: str | None = Field(default=None, description="PEM file that an HTTPS service's certificate is checked by")
    model: str = Field(min_length=1, description="the served model's name")
    cache_dir: str = Field(default="~/.cache/meedge", min_length=1, description="where units are kept")
    memory_bytes: int = Field(gt=0, description="budget of units: backbone and branches")
    memory_policy: MemoryPolicy = MemoryPolicy()
    schedule: tuple[ScheduledMemory, ...] = ()
    mode: Mode = Field(
        default="anytime",
        description="anytime: an inference may be ended at an unknown moment; finiteTime: its deadline is known",
    )
    latency_ms: float | None = Field(default=None, gt=0, description="deadline of an inference that names none")
    transfer_ms: float | None = Field(default=None, gt=0, description="time until a new placement must be complete")
    planning: Literal["auto", "static", "samplewise"] = "auto"
    horizon_ms: float | None = Field(default=None, gt=0, description="span in which the kill may come")
    distribution: TimeDistribution = UNIFORM
    device_type: str | None = Field(default=None, description="whose profile counts; default: the only one there is")
    threads: int = Field(default=1, ge=1, le=1024)
    rate_limit_bps: float | None = Field(default=None, gt=0, description="most that downloads take of the link")


class AgentSettings(DeviceSettings):
    """The same, of one device."""

    device: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$", description="the device's name")
    http_port: int | None = Field(default=None, ge=0, le=65535, description="also on loopback HTTP; 0: any free port")
    heartbeat_s: float | None = Field(default=None, gt=0, description="a device without Ray: it registers, and reports")

    @property
    def sha256(self) -> str:
        """Hash of what only another process can change: all but the budget and the token."""
        return hashlib.sha256(self.model_dump_json(exclude={"memory_bytes", "token"}).encode()).hexdigest()


class MemoryBody(Body):
    """A budget, at once or foreseen."""

    memory_bytes: int = Field(gt=0)
    in_ms: float = Field(default=0.0, ge=0, description="when it begins, from now")


class LatencyBody(Body):
    """The deadline of inferences that name none; null: they have none."""

    latency_ms: float | None = Field(gt=0)


class AgentProblem(Body):
    """An error as every error of the agent is; `kind` is the class of the error."""

    kind: str
    what: str
    where: str = ""
    do: str = ""
