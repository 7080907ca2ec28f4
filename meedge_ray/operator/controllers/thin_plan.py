"""Thin devices, which are no nodes of the cluster: what to make of those that registered, and how they are.

Pure functions of what is declared and of what the registry of a service knows.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from meedge_ray.actors.service.registry import Presence
from meedge_ray.api.devices import Desired, Heartbeat, MemoryReport, RunningBody
from meedge_ray.api.edge_device import EdgeDeviceSpec, object_name
from meedge_ray.domain.quantity import parse_bytes
from meedge_ray.operator.client.api_client import Object
from meedge_ray.operator.publishing import Condition, merge_patch
from meedge_ray.operator.view import Name, name_of

TIER_LABEL = "meedge.dev/tier"
THIN = "thin"
# What a device is told, and who it is. It does the rest as it is set up.
_FOLLOWED = frozenset({"device", "serviceRef", "modelRef", "memory", "latencyMilliseconds", "mode"})
_WRITTEN_EVERY_S = 60.0  # a heartbeat that is no news; a thousand devices are written one by one
_NOISE = frozenset({"heartbeatTime", "processRssBytes", "allowedBytes"})
_REASONS = {
    "BudgetError": "BudgetTooSmall",
    "NotFoundError": "NotServed",
    "IntegrityError": "Damaged",
    "UnavailableError": "ServiceUnavailable",
    "InvalidInputError": "Refused",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinPlan:
    """What to do for the thin devices of a service.

    Objects to make; credentials to revoke, for somebody has deleted their objects; what the registry is to tell; and
    registered devices for which nothing can be made, with the reason.
    """

    create: Sequence[Object]
    revoke: Sequence[str]
    desire: Mapping[str, Desired]
    refused: Mapping[str, str]


def is_thin(device: Object) -> bool:
    """Return whether an EdgeDevice stands for a device that is no node."""
    return bool(device["metadata"].get("labels", {}).get(TIER_LABEL) == THIN)


def devices_of(service: Object, devices: Sequence[Object]) -> tuple[dict[str, Object], list[Object]]:
    """Return the thin EdgeDevices that refer to a service: by device, the oldest of each; and the others."""
    found: dict[str, Object] = {}
    others: list[Object] = []
    namespace, name = name_of(service)
    for device in devices:
        is_its = device["metadata"]["namespace"] == namespace and device["spec"]["serviceRef"]["name"] == name
        if not is_its or not is_thin(device) or "deletionTimestamp" in device["metadata"]:
            continue
        if found.setdefault(device["spec"]["device"], device) is not device:
            others.append(device)
    return found, others


def plan_thin(service: Object, presences: Sequence[Presence], devices: Sequence[Object]) -> ThinPlan:
    """Return what to do for the thin devices of a service.

    Args:
        service: the ElasticService.
        presences: all that its registry knows.
        devices: all EdgeDevices, oldest first.
    """
    mine, uid = devices_of(service, devices)[0], service["metadata"]["uid"]
    names = {name_of(device): device["spec"]["device"] for device in devices}
    create, revoke, refused = [], [], {}
    desire: dict[str, Desired] = {}
    for presence in presences:
        record = presence.record
        if (device := mine.get(record.device)) is not None:
            desired = desired_of(device)
            if desired is not None and (record.desired, record.declared_by) != (desired, uid):
                desire[record.device] = desired
        elif record.declared_by == uid:
            revoke.append(record.device)
        elif record.memory_bytes is not None:
            made = _new_object(service, presence)
            if (holder := names.get(name_of(made))) is None:
                create.append(made)
            else:
                refused[record.device] = f"EdgeDevice {'/'.join(name_of(made))} is there already, for {holder}"
    return ThinPlan(create=create, revoke=revoke, desire=desire, refused=refused)


def desired_of(device: Object) -> Desired | None:
    """Return what an EdgeDevice says its device is to do, None where that cannot be understood."""
    try:
        spec = EdgeDeviceSpec.model_validate(device["spec"])
    except ValidationError:
        return None
    return Desired(
        generation=device["metadata"]["generation"],
        model=spec.model_ref.name,
        memory_bytes=parse_bytes(spec.memory),
        latency_ms=None if spec.latency_milliseconds is None else float(spec.latency_milliseconds),
        mode=spec.mode,
    )


def thin_conditions(device: Object, presence: Presence | None, said: Heartbeat | None) -> list[Condition]:
    """Return what is true of a thin device now.

    Args:
        device: its EdgeDevice.
        presence: what the registry knows of it, None where nothing.
        said: how it said last that it is.
    """
    conditions = [_ready(device, presence, said), _reachable(presence), _followed(device, presence, said)]
    if said is not None and said.running is not None:
        conditions.append(_memory_pressure(said.running, said.memory))
    return conditions


def no_service(device: Object, services: Collection[Name]) -> Condition | None:
    """Return what is true of an EdgeDevice whose service is not among those there are, None if it is."""
    service = Name(name_of(device).namespace, device["spec"]["serviceRef"]["name"])
    if service in services:
        return None
    return _no("Ready", "ServiceNotFound", f"there is no ElasticService {service.name}", warning=True)


def taken_by(holder: Object) -> Condition:
    """Return what is true of an EdgeDevice whose thin device another one, the holder, stands for."""
    message = f"{holder['spec']['device']} is {'/'.join(name_of(holder))} already, and does as that says"
    return _no("Ready", "DeviceTaken", message, warning=True)


def thin_status(
    before: Mapping[str, Any], presence: Presence | None, said: Heartbeat | None, now: datetime
) -> dict[str, Any]:
    """Return the status of a thin device without its conditions.

    Args:
        before: the status as it is written. A mere heartbeat does not change it while the one in it is young.
        presence: what the registry knows of it.
        said: how it said last that it is.
        now: the time.
    """
    written = {key: value for key, value in before.items() if key not in ("conditions", "observedGeneration")}
    if presence is None or said is None:
        return written
    heard_at = now - timedelta(seconds=presence.silent_s)
    status = {
        **written,
        "heartbeatTime": heard_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "allowedBytes": said.memory.allowed_bytes,
        "processRssBytes": said.memory.rss_bytes,
        "settingsHash": said.settings_sha256[:12],
    }
    if (running := said.running) is not None:
        status |= {
            "residentBytes": running.resident_bytes,
            "branches": len(running.branches),
            "expectation": f"{running.expectation:.6f}",
            "planner": running.planner,
            "source": running.source,
            "bundleSha256": running.bundle_sha256,
        }
        if running.memory_bytes is not None:
            status["memoryBytes"] = running.memory_bytes
    is_news = not merge_patch(written, status).keys() <= _NOISE
    heartbeat = written.get("heartbeatTime")
    is_old = heartbeat is None or (heard_at - datetime.fromisoformat(heartbeat)).total_seconds() >= _WRITTEN_EVERY_S
    return status if is_news or is_old else written


def _new_object(service: Object, presence: Presence) -> Object:
    metadata, record = service["metadata"], presence.record
    profile = {} if record.device_type is None else {"deviceType": record.device_type}
    return {
        "apiVersion": service["apiVersion"],
        "kind": "EdgeDevice",
        "metadata": {
            "name": object_name(record.device),
            "namespace": metadata["namespace"],
            "labels": {TIER_LABEL: THIN},
            # Not as its controller: it goes with its service, but no fleet's claim to the name is lost on it.
            "ownerReferences": [
                {
                    "apiVersion": service["apiVersion"],
                    "kind": service["kind"],
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                }
            ],
        },
        "spec": {
            "device": record.device,
            "serviceRef": {"name": metadata["name"]},
            "modelRef": {"name": record.model},
            "memory": str(record.memory_bytes),
            **profile,
        },
    }


def _reachable(presence: Presence | None) -> Condition:
    if presence is None:
        return _no("Reachable", "NotRegistered", "no device of that name has registered, or its credential was revoked")
    if presence.is_silent:
        return _no("Reachable", "NotAnswering", "it has not said for long how it is", warning=True)
    return Condition(type="Reachable", status="True", reason="Heartbeat")


def _ready(device: Object, presence: Presence | None, said: Heartbeat | None) -> Condition:
    reachable, desired = _reachable(presence), desired_of(device)
    if desired is None:
        return _no("Ready", "Invalid", "its spec cannot be understood", warning=True)
    if reachable.status != "True":
        return _no("Ready", reachable.reason, reachable.message)
    if said is None:
        return _no("Ready", "Registered", "it has not said yet how it is")
    running, problem = said.running, said.problem
    if running is None:
        if problem is None or said.busy:
            return _no("Ready", "Loading", "it fetches and loads its model")
        return _no("Ready", _REASONS.get(problem.kind, "Failed"), problem.what, warning=True)
    if running.model != desired.model:
        return _no("Ready", "Switching", f"it runs {running.model} until it has {desired.model}")
    if running.memory_bytes is None or running.resident_bytes > running.memory_bytes:
        return _no("Ready", "BudgetTooSmall", problem.what if problem else running.problem, warning=True)
    if desired.memory_bytes != running.memory_bytes:
        return _no("Ready", "Placing", f"it makes do with {desired.memory_bytes} bytes soon")
    reason = "Placed" if running.source == "service" else "PlacedLocally"
    return Condition(type="Ready", status="True", reason=reason, message=running.problem)


def _followed(device: Object, presence: Presence | None, said: Heartbeat | None) -> Condition:
    spec = device["spec"]
    unheard = {field for field, value in spec.items() if value not in (None, [], {})} - _FOLLOWED
    # Its profile it names itself when it registers, or takes the only one there is.
    running = said.running if said else None
    profiles = {presence and presence.record.device_type, running and running.device_type}
    if presence is None or spec.get("deviceType") in profiles:
        unheard -= {"deviceType"}
    if not unheard:
        return Condition(type="Followed", status="True", reason="Told")
    fields = ", ".join(f"spec.{field}" for field in sorted(unheard))
    message = f"a device without Ray is not told {fields}: set it on the device (`meedge agent run --settings FILE`), "
    return _no("Followed", "SetOnTheDevice", f"{message}and take it out here", warning=True)


def _memory_pressure(running: RunningBody, memory: MemoryReport) -> Condition:
    if running.memory_bytes is None or running.resident_bytes > running.memory_bytes:
        message = f"{running.resident_bytes} bytes of units are in memory, {running.memory_bytes} are allowed"
        return Condition(type="MemoryPressure", status="True", reason="BudgetTooSmall", message=message, warning=True)
    if memory.allowed_bytes < running.memory_bytes:
        # Without numbers, which change all the time: allowedBytes has them.
        message = f"{memory.source} leaves its units less than is declared"
        return Condition(type="MemoryPressure", status="True", reason="LittleLeft", message=message)
    return Condition(type="MemoryPressure", status="False", reason="WithinBudget")


def _no(type: str, reason: str, message: str, *, warning: bool = False) -> Condition:
    return Condition(type=type, status="False", reason=reason, message=message, warning=warning)
