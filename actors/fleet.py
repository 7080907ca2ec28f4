"""The fleet: every edge node of the cluster gets a device actor."""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from meedge_ray.actors.cluster import DEVICE_LABEL, EDGE, NAMESPACE, ROLE_LABEL, detached_on_head
from meedge_ray.actors.device import detach_device, device_names, find_device, start_device
from meedge_ray.actors.routing.fleet_scheduler import start_scheduler, stop_scheduler
from meedge_ray.api.agent import DeviceSettings
from meedge_ray.domain.device_status import DeviceStatus
from meedge_ray.domain.errors import MeedgeError, NotFoundError

_NAME = "fleet"
_PERIOD_S = 1.0  # a look at the nodes takes 0.3 ms
_STATUS_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetDevice:
    """A device of the fleet. `status` is None, and `problem` says why, where it does not answer."""

    name: str
    alive: bool
    status: DeviceStatus | None
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeNodeInfo:
    """A live edge node: Ray's id of it, another one each time it joins, its address, and its labels."""

    id: str
    address: str
    labels: Mapping[str, str]


def live_nodes(nodes: Iterable[Mapping[str, Any]]) -> dict[str, EdgeNodeInfo]:
    """Return the live edge nodes by their devices, given `ray.nodes()`.

    By label and not by node: one that comes back is a new node to Ray, and the dead one keeps its labels.
    """
    return {
        node["Labels"][DEVICE_LABEL]: EdgeNodeInfo(
            id=node["NodeID"], address=node["NodeManagerAddress"], labels=node["Labels"]
        )
        for node in nodes
        if node["Alive"] and node["Labels"].get(ROLE_LABEL) == EDGE and DEVICE_LABEL in node["Labels"]
    }


def missing_devices(nodes: Iterable[Mapping[str, Any]], known: Collection[str]) -> list[str]:
    """Return the devices with a live node that are not among the `known`, sorted."""
    return sorted(live_nodes(nodes).keys() - known)


class Fleet:
    """Looks at the nodes every second and attaches what is missing."""

    async def __init__(self, settings: DeviceSettings) -> None:  # type: ignore[misc]
        # Here, for nothing else runs again when Ray restarts the actor.
        self._settings = settings
        self._watching = asyncio.create_task(self._watch())

    async def devices(self) -> tuple[FleetDevice, ...]:
        """Return every attached device, sorted by name."""
        live = live_nodes(ray.nodes())
        return tuple(await asyncio.gather(*(asyncio.to_thread(_look, name, live) for name in sorted(device_names()))))

    async def _watch(self) -> None:
        while True:
            try:
                for name in missing_devices(ray.nodes(), device_names()):
                    start_device(name, self._settings).wake()
            except Exception:
                # Whatever it was, the next look starts afresh.
                _log.exception("the fleet could not attach its devices")
            await asyncio.sleep(_PERIOD_S)


def _look(name: str, live: Collection[str]) -> FleetDevice:
    if name not in live:
        return FleetDevice(name=name, alive=False, status=None, problem="its node is away")
    try:
        status = find_device(name).status(timeout_s=_STATUS_TIMEOUT_S)
    except MeedgeError as error:
        return FleetDevice(name=name, alive=True, status=None, problem=str(error))
    return FleetDevice(name=name, alive=True, status=status, problem="")


def start_fleet(settings: DeviceSettings) -> None:
    """Attach every edge node there is and will be, all with the same settings; a running fleet goes on as it is.

    `find_scheduler` then gives what routes requests to the devices.
    """
    ray.remote(Fleet).options(**detached_on_head(_NAME)).remote(settings)
    start_scheduler()


def fleet_devices(*, timeout_s: float = 30.0) -> tuple[FleetDevice, ...]:
    """Return every device of the running fleet.

    Raises:
        NotFoundError: no fleet runs.
    """
    devices: tuple[FleetDevice, ...] = ray.get(_fleet().devices.remote(), timeout=timeout_s)
    return devices


def stop_fleet() -> None:
    """End the fleet, its scheduler too, and detach its devices.

    Raises:
        NotFoundError: no fleet runs.
    """
    ray.kill(_fleet())
    with suppress(NotFoundError):
        stop_scheduler()
    for name in device_names():
        detach_device(name)


def _fleet() -> Any:  # noqa: ANN401 - Ray's handles have no type
    try:
        return ray.get_actor(_NAME, NAMESPACE)
    except ValueError as error:
        raise NotFoundError("no fleet runs", where="fleet", do="Start one") from error
