"""Keeps EdgeDevices true: on its node each has its actor, which runs what it is to run; other actors are ended."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import kopf
import ray

from meedge_ray.actors.device import device_names, end_device, find_device, start_device
from meedge_ray.actors.fleet import EdgeNodeInfo, live_nodes
from meedge_ray.actors.routing.fleet_scheduler import start_scheduler
from meedge_ray.domain.errors import NotFoundError
from meedge_ray.operator.client.api_client import Object
from meedge_ray.operator.controllers.attaching import (
    SILENT_AFTER_S,
    Refusal,
    Seen,
    Wanted,
    conditions_of,
    next_step,
    status_of,
    wanted_of,
)
from meedge_ray.operator.controllers.reports import Reports
from meedge_ray.operator.controllers.thin_plan import is_thin
from meedge_ray.operator.publishing import is_ready
from meedge_ray.operator.view import Name, name_of
from meedge_ray.operator.world import World

_PERIOD_S = 0.5
_ANSWER_S = 0.5  # most that one look waits for answers
_ASK_READY_EVERY_S, _ASK_OTHERS_EVERY_S = 5.0, 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
_WRITERS = 8  # of statuses at a time: the server commits them together
_MOST_STEPS = 50  # of one look, so that a thousand devices do not all fetch at once


def register(_registry: kopf.OperatorRegistry, world: World) -> None:
    """Add the controller to those of the operator."""
    world.sweeps.every(_PERIOD_S, DeviceController(world).sweep)


@dataclass(frozen=True, slots=True)
class _Try:
    """What was tried of late, and when it may be tried again."""

    wanted: Wanted
    pause_s: float
    again_at: float


class DeviceController:
    """Looks at all devices at once, in one loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._reports = Reports()
        self._tries: dict[str, _Try] = {}
        self._tokens: dict[str, tuple[int, str]] = {}
        self._node_ids: dict[str, str] = {}
        self._has_scheduler = False
        self._looked_at: dict[str, tuple[object, ...]] = {}
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="devices")

    def sweep(self) -> None:
        """Look at every device once.

        Raises:
            UnavailableError: the API server is away.
        """
        devices = [
            each
            for each in self._world.devices.objects()
            if "deletionTimestamp" not in each["metadata"] and not is_thin(each)
        ]
        services = self._world.services.by_name()
        nodes, attached = live_nodes(ray.nodes()), device_names()
        declared: dict[str, Object] = {}
        for device in devices:
            declared.setdefault(device["spec"]["device"], device)
        if declared and not self._has_scheduler:
            start_scheduler()  # which is to be found wherever there are devices; it comes back by itself
            self._has_scheduler = True
        for name in attached - declared.keys():
            _end(name)
        self._forget(nodes, attached)
        self._listen(declared, nodes, attached)
        steps = 0
        writing: list[Future[None]] = []
        for device in devices:
            label = device["spec"]["device"]
            if declared[label] is not device:
                writing.append(self._say_taken(device, declared[label], nodes))
                continue
            seen = self._seen(label, nodes, attached)
            if self._is_settled(device, services, seen):
                continue
            wanted = wanted_of(device, services, self._read_token, self._world.settings.serve_certificate)
            if isinstance(wanted, Wanted) and steps < _MOST_STEPS:
                steps += self._do(label, wanted, seen)
            if not self._is_about_to_answer(seen):
                writing.append(self._publish(device, wanted, seen))
        for each in writing:
            each.result()

    def _say_taken(self, device: Object, holder: Object, nodes: Mapping[str, EdgeNodeInfo]) -> "Future[None]":
        label = device["spec"]["device"]
        taken = Refusal(reason="DeviceTaken", message=f"{label} is {'/'.join(name_of(holder))} already")
        return self._publish(device, taken, Seen(node=nodes.get(label), attached=False, report=None, silent_s=0.0))

    def _is_settled(self, device: Object, services: Mapping[Name, Object], seen: Seen) -> bool:
        """Whether nothing has changed since a device that is ready was looked at: of a thousand, most."""
        label, name = device["spec"]["device"], Name(name_of(device).namespace, device["spec"]["serviceRef"]["name"])
        versions = [content["metadata"]["resourceVersion"] for content in (device, services.get(name)) if content]
        heard = self._reports.heard(label)
        looked_at = (*versions, heard and heard.at, seen.node, seen.attached, seen.silent_s > SILENT_AFTER_S)
        if is_ready(device) and self._looked_at.get(label) == looked_at:
            return True
        self._looked_at[label] = looked_at
        return False

    def _forget(self, nodes: Mapping[str, EdgeNodeInfo], attached: frozenset[str]) -> None:
        # An actor whose node came back has begun afresh: what it said before is not so any more.
        ids = {label: node.id for label, node in nodes.items()}
        moved = {label for label in self._node_ids.keys() | ids.keys() if self._node_ids.get(label) != ids.get(label)}
        self._reports.forget(moved | (self._reports.known() - attached))
        self._node_ids = ids

    def _is_about_to_answer(self, seen: Seen) -> bool:
        # What is written about it may be true: this operator, or its node, has just come back.
        return seen.attached and seen.node is not None and seen.report is None and seen.silent_s <= SILENT_AFTER_S

    def _listen(
        self, declared: Mapping[str, Object], nodes: Mapping[str, EdgeNodeInfo], attached: frozenset[str]
    ) -> None:
        here = [label for label in declared if label in nodes and label in attached]
        settled = {label for label in here if is_ready(declared[label])}
        self._reports.ask((label for label in here if label not in settled), every_s=_ASK_OTHERS_EVERY_S)
        self._reports.ask(settled, every_s=_ASK_READY_EVERY_S)
        self._reports.collect(_ANSWER_S)

    def _seen(self, label: str, nodes: Mapping[str, EdgeNodeInfo], attached: frozenset[str]) -> Seen:
        heard = self._reports.heard(label)
        return Seen(
            node=nodes.get(label),
            attached=label in attached,
            report=None if heard is None else heard.report,
            silent_s=self._reports.silent_s(label) if label in nodes else 0.0,
        )

    def _do(self, label: str, wanted: Wanted, seen: Seen) -> bool:
        step = next_step(wanted, seen)
        if step == "none":
            if seen.report is not None and not seen.report.busy:
                self._tries.pop(label, None)
            return False
        if step != "end" and not self._may_try(label, wanted):
            return False
        if step == "end":
            _end(label)
        elif step == "attach":
            start_device(label, wanted.settings).tell_memory(wanted.settings.memory_bytes)
        else:
            try:
                find_device(label).tell_memory(wanted.settings.memory_bytes)
            except NotFoundError:
                return False  # gone meanwhile
        self._reports.ask_again(label)
        return True

    def _may_try(self, label: str, wanted: Wanted) -> bool:
        now, last = time.monotonic(), self._tries.get(label)
        if last is not None and last.wanted == wanted:
            if now < last.again_at:
                return False
            pause_s = min(2 * last.pause_s, _LONGEST_PAUSE_S)
        else:
            pause_s = _FIRST_PAUSE_S
        self._tries[label] = _Try(wanted, pause_s, now + pause_s)
        return True

    def _publish(self, device: Object, wanted: Wanted | Refusal, seen: Seen) -> "Future[None]":
        now = datetime.now(UTC)
        heard = self._reports.heard(device["spec"]["device"])
        status = status_of(device.get("status", {}), seen, None if heard is None else heard.at, now)
        publish, conditions = self._world.publisher.publish, conditions_of(wanted, seen)
        return self._writers.submit(publish, self._world.devices, device, status, conditions, now)

    def _read_token(self, path: str) -> str:
        changed_ns = Path(path).stat().st_mtime_ns
        known = self._tokens.get(path)
        if known is None or known[0] != changed_ns:
            known = self._tokens[path] = (changed_ns, Path(path).read_text().strip())
        return known[1]


def _end(label: str) -> None:
    with suppress(NotFoundError):  # gone meanwhile
        end_device(label)
