"""Writes what is so into objects' status, only where it changed, and events where people should hear of it."""

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from meedge_ray.api.conditions import with_condition
from meedge_ray.domain.errors import MeedgeError, NotFoundError, UnavailableError
from meedge_ray.operator.client.api_client import ApiClient, Object
from meedge_ray.operator.client.resources import EVENTS
from meedge_ray.operator.view import View, name_of

MANAGER = "meedge-operator"
_LONGEST_MESSAGE = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One thing that is true of an object now, or is not; a `warning` is for people to look at."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    warning: bool = False


def condition_of(content: Mapping[str, Any], type: str) -> Mapping[str, Any]:
    """Return a condition of an object as it was written last, empty if it was not."""
    conditions = content.get("status", {}).get("conditions", ())
    return next((condition for condition in conditions if condition["type"] == type), {})


def is_ready(content: Mapping[str, Any]) -> bool:
    """Return whether an object is ready as its spec is now."""
    ready = condition_of(content, "Ready")
    generation = content["metadata"]["generation"]
    return ready.get("status") == "True" and ready.get("observedGeneration") == generation


def status_with(
    content: Mapping[str, Any], status: Mapping[str, Any], conditions: Iterable[Condition], now: datetime
) -> dict[str, Any]:
    """Return the status to write for an object, given what to say beside its conditions."""
    generation = content["metadata"]["generation"]
    written: list[dict[str, Any]] = list(content.get("status", {}).get("conditions", ()))
    for each in conditions:
        message = each.message[:_LONGEST_MESSAGE]
        written = with_condition(written, each.type, each.status, each.reason, message, generation, now)
    return {**status, "observedGeneration": generation, "conditions": written}


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the merge patch (RFC 7386) that makes `after` of `before`; empty if they are the same."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        known = before.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            if inner := merge_patch(known, value):
                patch[key] = inner
        elif key not in before or known != value:
            patch[key] = value
    return patch


class Publisher:
    """Writes statuses and events. What the server has forgotten meanwhile is forgotten here as well."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    def publish(
        self, view: View, content: Object, status: Mapping[str, Any], conditions: Iterable[Condition], now: datetime
    ) -> None:
        """Make `status` and the conditions those of the object; nothing is written where they are already.

        Raises:
            UnavailableError: the server is away.
        """
        conditions = list(conditions)
        change = merge_patch(content.get("status", {}), status_with(content, status, conditions, now))
        if not change:
            return
        metadata = content["metadata"]
        try:
            view.see(
                self._api.patch(
                    view.resource,
                    metadata["namespace"],
                    metadata["name"],
                    {"status": change},
                    manager=MANAGER,
                    subresource="status",
                )
            )
        except NotFoundError:
            view.forget(content)
            return
        except UnavailableError:
            raise
        except MeedgeError as error:
            # A defect of ours keeps no other object's status away.
            _log.warning("the API server refuses the status of %s: %s", "/".join(name_of(content)), error)
            return
        for each in conditions:
            before = condition_of(content, each.type)
            # At first nothing is told of what is not the matter.
            is_news = before or each.warning or each.type == "Ready"
            if is_news and (before.get("status"), before.get("reason")) != (each.status, each.reason):
                self.tell(content, each, now)

    def tell(self, content: Object, said: Condition, now: datetime) -> None:
        """Write an event about an object, if the server takes it."""
        metadata, time = content["metadata"], now.strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": content["apiVersion"],
                "kind": content["kind"],
                **{field: metadata[field] for field in ("name", "namespace", "uid")},
            },
            "type": "Warning" if said.warning else "Normal",
            "reason": said.reason,
            "message": (said.message or f"{said.type} is {said.status}")[:_LONGEST_MESSAGE],
            "source": {"component": MANAGER},
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        }
        with suppress(MeedgeError):  # for people alone: what is so is in the status
            self._api.create(EVENTS, metadata["namespace"], event, manager=MANAGER)
