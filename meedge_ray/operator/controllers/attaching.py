"""What EdgeDevices are to do, and how they are: pure functions of what is declared and of what was seen."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from meedge_ray.actors.device import DeviceReport
from meedge_ray.actors.fleet import EdgeNodeInfo
from meedge_ray.agent.status import MemoryState
from meedge_ray.api.agent import DeviceSettings, ScheduledMemory
from meedge_ray.api.edge_device import EdgeDeviceSpec
from meedge_ray.domain.device_status import DeviceStatus
from meedge_ray.domain.errors import (
    BudgetError,
    IntegrityError,
    InvalidInputError,
    MeedgeError,
    NotFoundError,
    UnavailableError,
)
from meedge_ray.domain.quantity import parse_bytes
from meedge_ray.operator.client.api_client import Object
from meedge_ray.operator.publishing import Condition, merge_patch
from meedge_ray.operator.view import Name

SILENT_AFTER_S = 15.0
HEARTBEAT_S = 15.0
_NOISE = frozenset({"heartbeatTime", "processRssBytes", "allowedBytes"})  # what changes all the time and is no news

_REASONS: Mapping[type[MeedgeError], str] = {
    BudgetError: "BudgetTooSmall",
    NotFoundError: "NotServed",
    IntegrityError: "Damaged",
    UnavailableError: "ServiceUnavailable",
    InvalidInputError: "Refused",
}

Step = Literal["none", "attach", "end", "place"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a device is to run. Where `waits` says for what, one that runs not or otherwise is not started yet.

    `bundle_sha256` is what its model is served by now, empty where nobody knows.
    """

    settings: DeviceSettings
    bundle_sha256: str
    waits: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why it cannot be said what a device is to run. One that runs goes on as it is."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a device: its live node, whether it has an actor, what that said last, and since when not."""

    node: EdgeNodeInfo | None
    attached: bool
    report: DeviceReport | None
    silent_s: float


def wanted_of(
    device: Object,
    services: Mapping[Name, Object],
    read_token: Callable[[str], str],
    certificate: Path | None = None,
) -> Wanted | Refusal:
    """Return what an EdgeDevice is to run.

    Args:
        device: the object.
        services: all ElasticServices.
        read_token: gives the content of a token's file; raises OSError.
        certificate: that services have which speak HTTPS, under the same path on the device.
    """
    try:
        spec = EdgeDeviceSpec.model_validate(device["spec"])
    except ValidationError as error:
        return Refusal(reason="Invalid", message=str(error.errors()[0]["msg"]))
    name = spec.service_ref.name
    service = services.get(Name(device["metadata"]["namespace"], name))
    if service is None:
        return Refusal(reason="ServiceNotFound", message=f"there is no ElasticService {name}")
    model = spec.model_ref.name
    if model not in {reference["name"] for reference in service["spec"]["modelRefs"]}:
        return Refusal(reason="ModelNotServed", message=f"ElasticService {name} has no reference to {model}")
    status = service.get("status", {})
    if "url" not in status or "tokenFile" not in status:
        return Refusal(reason="ServiceNotReady", message=f"ElasticService {name} has no URL yet")
    try:
        token = read_token(status["tokenFile"])
    except OSError as error:
        return Refusal(reason="TokenNotFound", message=f"{status['tokenFile']}: {error.strerror}")
    served = {each["name"]: each["bundleSha256"] for each in status.get("models", ())}
    is_https = status["url"].startswith("https:")
    ca_file = str(certificate) if certificate is not None and is_https else None
    settings = settings_of(spec, service_url=status["url"], token=token, ca_file=ca_file)
    waits = "" if model in served else f"ElasticService {name} does not serve {model} yet"
    return Wanted(settings=settings, bundle_sha256=served.get(model, ""), waits=waits)


def settings_of(spec: EdgeDeviceSpec, *, service_url: str, token: str, ca_file: str | None = None) -> DeviceSettings:
    """Return what a device is started with by its spec."""
    return DeviceSettings(
        service_url=service_url,
        token=token,
        ca_file=ca_file,
        model=spec.model_ref.name,
        cache_dir=spec.cache_dir,
        memory_bytes=parse_bytes(spec.memory),
        memory_policy=spec.memory_policy.policy(parse_bytes(spec.memory_policy.headroom)),
        schedule=tuple(
            ScheduledMemory(at=each.at, memory_bytes=parse_bytes(each.memory)) for each in spec.memory_schedule
        ),
        mode=spec.mode,
        latency_ms=_number(spec.latency_milliseconds),
        transfer_ms=_number(spec.transfer_milliseconds),
        planning=spec.planning,
        horizon_ms=_number(spec.horizon_milliseconds),
        distribution=spec.distribution(),
        device_type=spec.device_type,
        threads=spec.threads,
    )


def next_step(wanted: Wanted | Refusal, seen: Seen) -> Step:
    """Return what to do for a device now. Only "attach" and "place" may fail and then be tried again, later."""
    if isinstance(wanted, Refusal) or seen.node is None:
        return "none"
    if not seen.attached:
        return "none" if wanted.waits else "attach"
    report = seen.report
    if report is None:
        return "none"
    if not _runs_as(report, wanted):
        return "none" if wanted.waits else "end"
    status = report.status
    is_placed = (
        status is not None
        and (bool(wanted.settings.schedule) or status.memory_bytes == wanted.settings.memory_bytes)
        and (bool(wanted.waits) or (status.source == "service" and status.bundle_sha256 == wanted.bundle_sha256))
    )
    return "none" if report.busy or is_placed else "place"


def conditions_of(wanted: Wanted | Refusal, seen: Seen) -> list[Condition]:
    """Return what is true of a device now."""
    conditions = [_ready(wanted, seen), _reachable(seen)]
    if seen.report is not None and seen.report.status is not None:
        status = seen.report.status
        conditions.append(_pressure(status, seen.report.memory))
    return conditions


def status_of(before: Mapping[str, Any], seen: Seen, heard_at: datetime | None, now: datetime) -> dict[str, Any]:
    """Return the status of a device without its conditions: what it said last, and where it is.

    Args:
        before: the status as it is written. A mere heartbeat does not change it while the one in it is young.
        seen: what is known of the device.
        heard_at: when its report came, None if none did.
        now: the time.
    """
    written = {key: value for key, value in before.items() if key not in ("conditions", "observedGeneration")}
    status = {key: value for key, value in written.items() if key != "node"}
    if seen.node is not None:
        status["node"] = {"id": seen.node.id, "address": seen.node.address}
    if seen.report is None or seen.report.status is None or heard_at is None:
        return status
    said = seen.report.status
    status |= {
        "heartbeatTime": heard_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "memoryBytes": said.memory_bytes,
        "residentBytes": said.resident_bytes,
        "processRssBytes": said.process_rss_bytes,
        "branches": len(said.branches),
        "expectation": f"{said.expectation:.6f}",
        "planner": said.planner,
        "source": said.source,
        "bundleSha256": said.bundle_sha256,
        "settingsHash": settings_hash(seen.report.settings, said.memory_bytes),
    }
    if seen.report.memory is not None:
        status["allowedBytes"] = seen.report.memory.allowed_bytes
    is_news = not merge_patch(written, status).keys() <= _NOISE
    return status if is_news or _is_old(written.get("heartbeatTime"), now) else written


def settings_hash(settings: DeviceSettings, memory_bytes: int | None) -> str:
    """Return a hash of what a device runs by: its budget is among it, its token is not."""
    # A schedule changes the budget by itself.
    budget = None if settings.schedule else memory_bytes
    content = settings.model_dump(mode="json") | {"memory_bytes": budget, "token": ""}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _number(decimal: str | None) -> float | None:
    return None if decimal is None else float(decimal)


def _is_old(heartbeat: str | None, now: datetime) -> bool:
    return heartbeat is None or (now - datetime.fromisoformat(heartbeat)).total_seconds() >= HEARTBEAT_S


def _runs_as(report: DeviceReport, wanted: Wanted) -> bool:
    # A budget changes while it runs.
    same = {"memory_bytes": wanted.settings.memory_bytes}
    return report.settings.model_copy(update=same) == wanted.settings


def _reachable(seen: Seen) -> Condition:
    if seen.node is None:
        return _no("Reachable", "NodeAway", "its node is away", warning=True)
    if seen.silent_s > SILENT_AFTER_S:
        return _no("Reachable", "NotAnswering", "its node is there, and it does not answer", warning=True)
    return Condition(type="Reachable", status="True", reason="NodeLive")


def _ready(wanted: Wanted | Refusal, seen: Seen) -> Condition:
    report = seen.report
    status = None if report is None else report.status
    if isinstance(wanted, Refusal):
        runs_on = "; it runs on as it did" if status is not None else ""
        return _no("Ready", wanted.reason, f"{wanted.message}{runs_on}", warning=True)
    if seen.node is None or seen.silent_s > SILENT_AFTER_S:
        reachable = _reachable(seen)
        return _no("Ready", reachable.reason, reachable.message)
    if report is None or not seen.attached:
        return _no("Ready", "ServiceNotReady" if wanted.waits else "Attaching", wanted.waits)
    if not _runs_as(report, wanted):
        return _no("Ready", "ServiceNotReady" if wanted.waits else "Restarting", wanted.waits)
    if status is None:
        if report.problem is None or report.busy:
            return _no("Ready", "Loading", "it fetches and loads its model")
        reason = next((word for kind, word in _REASONS.items() if isinstance(report.problem, kind)), "Failed")
        return _no("Ready", reason, str(report.problem), warning=True)
    if not wanted.settings.schedule and status.memory_bytes != wanted.settings.memory_bytes:
        return _no("Ready", "Placing", f"it makes do with {wanted.settings.memory_bytes} bytes soon")
    if status.memory_bytes is not None and status.resident_bytes > status.memory_bytes:
        return _no("Ready", "BudgetTooSmall", status.problem, warning=True)
    reason = "Placed" if status.source == "service" else "PlacedLocally"
    return Condition(type="Ready", status="True", reason=reason, message=status.problem)


def _pressure(status: DeviceStatus, memory: MemoryState | None) -> Condition:
    declared_bytes = status.memory_bytes
    if declared_bytes is not None and status.resident_bytes > declared_bytes:
        message = f"{status.resident_bytes} bytes of units are in memory, {declared_bytes} are allowed"
        return Condition(type="MemoryPressure", status="True", reason="BudgetTooSmall", message=message, warning=True)
    if memory is not None and declared_bytes is not None and memory.allowed_bytes < declared_bytes:
        # Without numbers, which change all the time: allowedBytes has them.
        message = f"{memory.source} leaves its units less than is declared"
        return Condition(type="MemoryPressure", status="True", reason="LittleLeft", message=message)
    return Condition(type="MemoryPressure", status="False", reason="WithinBudget")


def _no(type: str, reason: str, message: str, *, warning: bool = False) -> Condition:
    return Condition(type=type, status="False", reason=reason, message=message, warning=warning)
