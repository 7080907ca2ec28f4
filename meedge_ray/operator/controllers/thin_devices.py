"""Keeps the EdgeDevices of thin devices: one for each that registers; what is declared its service tells it."""

import logging
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime

import kopf
from pydantic import ValidationError

from meedge_ray.actors.service.registry import Presence
from meedge_ray.actors.service.registry_actor import OperatorLink, end_registry, services_with_registries
from meedge_ray.api.devices import Heartbeat
from meedge_ray.domain.errors import MeedgeError, NotFoundError, UnavailableError
from meedge_ray.operator.client.api_client import ConflictError, Object
from meedge_ray.operator.controllers.rendering import application_name
from meedge_ray.operator.controllers.thin_plan import (
    devices_of,
    is_thin,
    no_service,
    plan_thin,
    taken_by,
    thin_conditions,
    thin_status,
)
from meedge_ray.operator.publishing import MANAGER, Condition
from meedge_ray.operator.view import Name, name_of
from meedge_ray.operator.world import World

_PERIOD_S = 2.0
_WRITERS = 8  # at a time: the server commits them together

_log = logging.getLogger(__name__)


def register(_registry: kopf.OperatorRegistry, world: World) -> None:
    """Add the controller to those of the operator."""
    world.sweeps.every(_PERIOD_S, ThinDeviceController(world).sweep)


class ThinDeviceController:
    """Looks at the registries of all services."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="thin-devices")
        self._said: set[str] = set()

    def sweep(self) -> None:
        """Look at every service's devices once.

        Raises:
            UnavailableError: the API server or a registry is away.
        """
        services = {application_name(service): service for service in self._world.services.objects()}
        running = services_with_registries()
        for name in running - services.keys():
            if "." in name:  # one that somebody runs from a program of theirs is none of ours
                end_registry(name)
        for name, service in services.items():
            if "deletionTimestamp" not in service["metadata"]:
                self._keep(service, name if name in running else None)
        self._find_lost({name_of(service) for service in services.values()})

    def _find_lost(self, services: Collection[Name]) -> None:
        for device in self._world.devices.objects():
            if is_thin(device) and (lost := no_service(device, services)):
                self._say(device, lost)

    def _keep(self, service: Object, name: str | None) -> None:
        devices = self._world.devices.objects()
        presences: Sequence[Presence] = ()
        if name is not None:
            try:
                link = OperatorLink(name)
                presences = link.presences()
            except NotFoundError:
                return  # gone meanwhile
            plan = plan_thin(service, presences, devices)
            if plan.revoke:
                link.revoke(list(plan.revoke))
            if plan.desire:
                link.desire(dict(plan.desire), service["metadata"]["uid"])
            for device, reason in plan.refused.items():
                self._warn(f"thin device {device}: {reason}")
            self._wait([self._writers.submit(self._create, made) for made in plan.create])
        by_name = {presence.record.device: presence for presence in presences}
        mine, others = devices_of(service, devices)
        self._wait([self._writers.submit(self._publish, each, by_name.get(name)) for name, each in mine.items()])
        for each in others:
            self._say(each, taken_by(mine[each["spec"]["device"]]))

    def _create(self, made: Object) -> None:
        view = self._world.devices
        try:
            view.see(self._world.api.create(view.resource, made["metadata"]["namespace"], made, manager=MANAGER))
        except ConflictError:
            pass  # somebody was quicker, or the one before is still going
        except UnavailableError:
            raise
        except MeedgeError as error:
            # One object that the server does not take keeps no other away.
            self._warn(f"the API server refuses a thin device: {error}")

    def _publish(self, device: Object, presence: Presence | None) -> None:
        now = datetime.now(UTC)
        said = _heartbeat(presence)
        status = thin_status(device.get("status", {}), presence, said, now)
        conditions = thin_conditions(device, presence, said)
        self._world.publisher.publish(self._world.devices, device, status, conditions, now)

    def _say(self, device: Object, condition: Condition) -> None:
        now = datetime.now(UTC)
        status = thin_status(device.get("status", {}), None, None, now)
        self._world.publisher.publish(self._world.devices, device, status, [condition], now)

    def _wait(self, writing: Sequence["Future[None]"]) -> None:
        for each in writing:
            each.result()

    def _warn(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            _log.warning("%s", message)


def _heartbeat(presence: Presence | None) -> Heartbeat | None:
    if presence is None or presence.status is None:
        return None
    try:
        return Heartbeat.model_validate_json(presence.status)
    except ValidationError:
        return None  # of a replica of another version
