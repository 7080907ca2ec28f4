"""What DeviceFleets are to do: a pure function of the fleets, the devices there are, and the live edge nodes.

A changed template reaches one device after the other. The one under way is marked by an annotation, which is taken off
once it is ready at its new spec; while a device is marked no other is touched. So of all devices only one can be
unavailable because of a rollout, whatever dies in between, and a template that does not work stops at the first.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from meedge_ray.actors.fleet import EdgeNodeInfo
from meedge_ray.api.edge_device import object_name
from meedge_ray.operator.client.api_client import Object
from meedge_ray.operator.publishing import Condition, condition_of, is_ready
from meedge_ray.operator.view import Name, name_of

FLEET_LABEL = "meedge.dev/fleet"
ROLLOUT_MARK = "meedge.dev/rollout"

Nodes = Mapping[str, EdgeNodeInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Make `after` of `before`, with None for an object that is not there."""

    before: Object | None
    after: Object | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """What to do for a fleet, and what to say of it."""

    fleet: Object
    actions: Sequence[Action]
    status: Mapping[str, int]
    conditions: Sequence[Condition]


def plan_fleets(fleets: Sequence[Object], devices: Sequence[Object], nodes: Nodes) -> list[FleetPlan]:
    """Return what to do for every fleet; of two that select one node the first has it.

    Args:
        fleets: all DeviceFleets, oldest first.
        devices: all EdgeDevices, oldest first.
        nodes: live edge nodes by device.
    """
    claims = _Claims(fleets, devices, nodes)
    return [_plan(fleet, claims, nodes) for fleet in fleets if not _is_going(fleet)]


class _Claims:
    """Which object stands for which device. There is one for a device in the whole cluster, for it is one actor."""

    def __init__(self, fleets: Sequence[Object], devices: Sequence[Object], nodes: Nodes) -> None:
        self.devices = devices
        by_uid = {fleet["metadata"]["uid"]: fleet for fleet in fleets}
        self.names = {name_of(device): device["spec"]["device"] for device in devices}
        self.holders: dict[str, Object] = {}
        for device in devices:
            self.holders.setdefault(device["spec"]["device"], device)
        self.leaving = {
            label
            for label, device in self.holders.items()
            if _is_going(device)
            or ((owner := _owner(device)) and (owner not in by_uid or _is_stray(device, by_uid[owner], nodes)))
        }

    def take(self, device: Object) -> None:
        self.holders[device["spec"]["device"]] = device
        self.names[name_of(device)] = device["spec"]["device"]


def _plan(fleet: Object, claims: _Claims, nodes: Nodes) -> FleetPlan:
    mine = [device for device in claims.devices if _is_of(device, fleet) and not _is_going(device)]
    strays = [device for device in mine if _is_stray(device, fleet, nodes)]
    mine = [device for device in mine if device not in strays]
    selected = sorted(label for label, node in nodes.items() if _selects(fleet, node))
    actions = [Action(before=device, after=None) for device in strays]
    actions += [_adoption(device, fleet) for device in mine if not _owner(device)]
    conflicts = []
    held = {device["spec"]["device"] for device in mine}
    for label in selected:
        if label in held or label in claims.leaving:
            continue
        device = _new_device(fleet, label)
        if conflict := _conflict(device, claims):
            conflicts.append(conflict)
        else:
            claims.take(device)
            actions.append(Action(before=None, after=device))
    actions += _rollout(fleet, mine, nodes)
    status = {
        "desired": len({*selected, *held}),
        "current": len(mine),
        "updated": sum(device["spec"] == _spec(fleet, device) for device in mine),
        "ready": sum(map(is_ready, mine)),
    }
    return FleetPlan(fleet=fleet, actions=actions, status=status, conditions=_conditions(mine, status, conflicts))


def _rollout(fleet: Object, mine: Sequence[Object], nodes: Nodes) -> list[Action]:
    under_way = [device for device in mine if _is_marked(device)]
    for device in under_way:
        if device["spec"] != _spec(fleet, device):
            return [_updated(device, fleet)]
        if is_ready(device):
            return [_unmarked(device)]
    outdated = [
        device for device in mine if device["spec"] != _spec(fleet, device) and device["spec"]["device"] in nodes
    ]
    if under_way or not outdated:
        return []
    # Who does not work anyway has nothing to lose.
    return [_updated(min(outdated, key=lambda device: (is_ready(device), name_of(device))), fleet)]


def _conditions(mine: Sequence[Object], status: Mapping[str, int], conflicts: Sequence[str]) -> list[Condition]:
    under_way = [device["metadata"]["name"] for device in mine if _is_marked(device)]
    unready = [_state(device) for device in mine if not is_ready(device)]
    conflict = Condition(type="Conflict", status="False", reason="NoConflict")
    if conflicts:
        conflict = Condition(
            type="Conflict", status="True", reason="DeviceTaken", message=_listed(conflicts), warning=True
        )
    if under_way or status["updated"] < status["current"]:
        waits = f"; waiting for {_listed(under_way)}" if under_way else ""
        ready = _ready(False, "RollingOut", f"{status['updated']} of {status['current']} devices have it{waits}")
    elif conflicts:
        ready = _ready(False, "Conflict", _listed(conflicts))
    elif unready or status["current"] < status["desired"]:
        missing = status["desired"] - status["current"]
        ready = _ready(
            False, "DevicesNotReady", _listed([*unready, *([f"{missing} still to be made"] if missing else [])])
        )
    elif not mine:
        ready = _ready(True, "NoNodes", "no edge node is selected yet")
    else:
        ready = _ready(True, "AllReady", f"{len(mine)} devices")
    return [ready, conflict]


def _ready(is_so: bool, reason: str, message: str) -> Condition:
    return Condition(type="Ready", status="True" if is_so else "False", reason=reason, message=message)


def _state(device: Object) -> str:
    return f"{device['metadata']['name']} {condition_of(device, 'Ready').get('reason', 'is new')}"


def _listed(words: Sequence[str]) -> str:
    shown = ", ".join(words[:5])
    return shown if len(words) <= 5 else f"{shown} and {len(words) - 5} more"


def _conflict(device: Object, claims: _Claims) -> str:
    label, name = device["spec"]["device"], name_of(device)
    holder = claims.holders.get(label)
    if holder is not None:
        owner = next(iter(holder["metadata"].get("ownerReferences", ())), None)
        whose = f"DeviceFleet {name_of(holder).namespace}/{owner['name']}" if owner else "no fleet"
        return f"{label} is {'/'.join(name_of(holder))} of {whose}"
    if name in claims.names:
        return f"{label} would be {name.name}, which is {claims.names[name]}"
    return ""


def _new_device(fleet: Object, label: str) -> Object:
    metadata = fleet["metadata"]
    return {
        "apiVersion": fleet["apiVersion"],
        "kind": "EdgeDevice",
        "metadata": {
            "name": object_name(label),
            "namespace": metadata["namespace"],
            "labels": {FLEET_LABEL: metadata["name"]},
            "ownerReferences": [_reference(fleet)],
        },
        "spec": {"device": label, **deepcopy(fleet["spec"]["template"])},
    }


def _spec(fleet: Object, device: Object) -> dict[str, Any]:
    return {"device": device["spec"]["device"], **fleet["spec"]["template"]}


def _updated(device: Object, fleet: Object) -> Action:
    after = deepcopy(device)
    after["spec"] = deepcopy(_spec(fleet, device))
    after["metadata"].setdefault("annotations", {})[ROLLOUT_MARK] = "under-way"
    return Action(before=device, after=after)


def _unmarked(device: Object) -> Action:
    after = deepcopy(device)
    del after["metadata"]["annotations"][ROLLOUT_MARK]
    return Action(before=device, after=after)


def _adoption(device: Object, fleet: Object) -> Action:
    after = deepcopy(device)
    after["metadata"]["ownerReferences"] = [_reference(fleet)]
    return Action(before=device, after=after)


def _reference(fleet: Object) -> dict[str, Any]:
    return {
        "apiVersion": fleet["apiVersion"],
        "kind": fleet["kind"],
        "name": fleet["metadata"]["name"],
        "uid": fleet["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _owner(device: Object) -> str:
    owners = device["metadata"].get("ownerReferences", ())
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def _is_of(device: Object, fleet: Object) -> bool:
    if owner := _owner(device):
        return owner == str(fleet["metadata"]["uid"])
    # Left behind by a fleet of this name that was deleted without its devices.
    left_by = Name(device["metadata"]["namespace"], device["metadata"].get("labels", {}).get(FLEET_LABEL, ""))
    return left_by == name_of(fleet)


def _is_stray(device: Object, fleet: Object, nodes: Nodes) -> bool:
    # Of a node that is away nobody knows its labels: it may come back as it was.
    node = nodes.get(device["spec"]["device"])
    return node is not None and not _selects(fleet, node)


def _selects(fleet: Object, node: EdgeNodeInfo) -> bool:
    wanted: Mapping[str, str] = fleet["spec"]["selector"].get("matchLabels", {})
    return wanted.items() <= node.labels.items()


def _is_marked(device: Object) -> bool:
    return ROLLOUT_MARK in device["metadata"].get("annotations", {})


def _is_going(content: Object) -> bool:
    return "deletionTimestamp" in content["metadata"]
