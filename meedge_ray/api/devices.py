"""Bodies of what a thin device says to its service over HTTPS, and is told: registration, credential, heartbeat.

POST /v1/devices/{device}             Registration -> CredentialBody; bears the enrolment token, or its own credential
POST /v1/devices/{device}/credential  nothing      -> CredentialBody; bears the credential that it replaces
PUT  /v1/devices/{device}/status      Heartbeat    -> HeartbeatAnswer; bears the credential
GET  /v1/devices                                   -> DeviceList; bears the service's token
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from meedge_ray.api.agent import AgentProblem, Mode
from meedge_ray.api.serving import Body

MOST_HEARTBEAT_BYTES = 64 * 1024

_Word = Annotated[str, Field(max_length=256)]
_Text = Annotated[str, Field(max_length=4096)]
_Bytes = Annotated[int, Field(ge=0, le=2**53)]
_Count = Annotated[int, Field(ge=0, le=2**53)]

DeviceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]


class Registration(Body):
    """What a device is when it comes."""

    model: str = Field(min_length=1, max_length=256, description="the served model that it runs")
    device_type: str | None = Field(default=None, max_length=256, description="whose profile counts")
    memory_bytes: int = Field(gt=0, le=2**53, description="budget of its units, until somebody declares another")
    version: str = Field(max_length=256, description="of its software")


class CredentialBody(Body):
    """What a device bears from now on. The one before is refused soon after this one was first used."""

    credential: str = Field(repr=False, description="send it as 'Authorization: Bearer CREDENTIAL'")
    expires_in_s: float = Field(gt=0, description="renew it before")
    heartbeat_s: float = Field(gt=0, description="how often to say how it is")


class _Said(BaseModel):
    """Base of what devices say. They may be newer than the service: what it does not know it leaves out."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class RunningBody(_Said):
    """What a device runs: the fields of its `DeviceStatus` that its operator needs."""

    model: _Word
    bundle_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    device_type: _Word
    memory_bytes: _Bytes | None
    resident_bytes: _Bytes
    process_rss_bytes: _Bytes
    branches: tuple[_Word, ...] = Field(max_length=4096)
    planner: _Word
    expectation: float = Field(ge=0, le=1)
    source: Literal["service", "local"]
    problem: _Text


class MemoryReport(_Said):
    """The memory that a device has, where it knows."""

    source: _Word
    limit_bytes: _Bytes | None
    used_bytes: _Bytes | None
    pressure: float | None = Field(ge=0)
    allowed_bytes: _Bytes
    rss_bytes: _Bytes


class CountsReport(_Said):
    """What a device has done since it began."""

    inferences: _Count = 0
    completed: _Count = 0
    deadline: _Count = 0
    preempted: _Count = 0
    empty: _Count = 0
    failed: _Count = 0
    drops: _Count = 0
    fetched_bytes: _Count = 0


class Heartbeat(_Said):
    """How a device is: its agent's status, as that is; 64 KiB at most."""

    device: _Word
    version: _Word
    started_at: float = Field(ge=0, description="seconds since 1970, by the device's clock")
    settings_sha256: _Word
    busy: bool
    problem: AgentProblem | None
    running: RunningBody | None = Field(description="null: its model is not loaded yet")
    mode: Mode
    latency_ms: float | None = Field(gt=0)
    memory: MemoryReport
    counts: CountsReport


class Desired(Body):
    """What a device is to do. What is null nobody has said: it does as it is set up."""

    generation: int = Field(default=0, ge=0, description="of the EdgeDevice that says so; 0: there is none")
    model: str = Field(description="another one than the credential's: renew that first, it then is for this one")
    bundle_sha256: str | None = Field(default=None, description="hash of the bundle the model is served by now")
    memory_bytes: int | None = Field(default=None, gt=0)
    latency_ms: float | None = Field(default=None, gt=0)
    mode: Mode | None = None


class HeartbeatAnswer(Body):
    """What a device is told when it says how it is."""

    desired: Desired
    renew: bool = Field(description="the credential is to be renewed now")
    heartbeat_s: float = Field(gt=0, description="how often to say how it is")


class DeviceEntry(Body):
    """A device as its service knows it."""

    device: str
    model: str
    device_type: str | None
    memory_bytes: int | None = Field(description="that it registered with; null: the registry's file was lost since")
    version: str
    silent_s: float = Field(description="since it last said how it is, registered, or was read from a file")
    is_silent: bool = Field(description="it has missed three of the heartbeats that it was told to send")
    status: Heartbeat | None = Field(description="what it said last; null: nothing yet")
    desired: Desired


class DeviceList(Body):
    """Every registered device, by name."""

    devices: list[DeviceEntry]
