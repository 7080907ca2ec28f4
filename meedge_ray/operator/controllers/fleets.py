"""Keeps DeviceFleets true: every edge node they select gets its EdgeDevice within seconds of joining."""

import logging
from datetime import UTC, datetime

import kopf
import ray

from meedge_ray.actors.fleet import live_nodes
from meedge_ray.domain.errors import MeedgeError, NotFoundError, UnavailableError
from meedge_ray.operator.client.api_client import ConflictError
from meedge_ray.operator.controllers.rollout import Action, plan_fleets
from meedge_ray.operator.publishing import MANAGER, merge_patch
from meedge_ray.operator.world import World

_PERIOD_S = 1.0

_log = logging.getLogger(__name__)


def register(_registry: kopf.OperatorRegistry, world: World) -> None:
    """Add the controller to those of the operator."""
    world.sweeps.every(_PERIOD_S, FleetController(world).sweep)


class FleetController:
    """Looks at all fleets at once: of two that select one node only one can have it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._refusals: set[str] = set()

    def sweep(self) -> None:
        """Do what is to be done for every fleet now.

        Raises:
            UnavailableError: the API server is away.
        """
        fleets = self._world.fleets.objects()
        if not fleets:
            return
        nodes = live_nodes(ray.nodes())
        for plan in plan_fleets(fleets, self._world.devices.objects(), nodes):
            for action in plan.actions:
                self._do(action)
            self._world.publisher.publish(
                self._world.fleets, plan.fleet, plan.status, plan.conditions, datetime.now(UTC)
            )

    def _do(self, action: Action) -> None:
        try:
            self._write(action)
        except ConflictError:
            pass  # somebody was quicker: the next look starts from what is there now
        except UnavailableError:
            raise
        except MeedgeError as error:
            # One object that the server does not take keeps no other away.
            if str(error) not in self._refusals:
                self._refusals.add(str(error))
                _log.warning("the API server refuses a device: %s", error)

    def _write(self, action: Action) -> None:
        view, api = self._world.devices, self._world.api
        before, after = action.before, action.after
        metadata = (after or before or {})["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        if before is None and after is not None:
            view.see(api.create(view.resource, namespace, after, manager=MANAGER))
            return
        try:
            if before is not None and after is not None:
                change = merge_patch(before, after)
                # Only if it is still as it was when this was decided.
                change.setdefault("metadata", {})["resourceVersion"] = metadata["resourceVersion"]
                view.see(api.patch(view.resource, namespace, name, change, manager=MANAGER))
            else:
                api.delete(view.resource, namespace, name)
        except NotFoundError:
            if before is not None:
                view.forget(before)
