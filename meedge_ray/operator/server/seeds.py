"""What is in the store before anybody writes: the default namespace, and what is said of the kinds."""

from datetime import UTC, datetime
from functools import partial

from meedge_ray.api.crds import custom_resource_definition
from meedge_ray.api.kinds import KINDS, VERSION, Kind
from meedge_ray.operator.server import namespaces
from meedge_ray.operator.server.core import API_SERVICES, DEFINITIONS
from meedge_ray.operator.server.errors import Key
from meedge_ray.operator.server.metadata import created, rfc3339
from meedge_ray.operator.server.records import Object
from meedge_ray.operator.server.resource import Resource
from meedge_ray.operator.server.resources import RESOURCES
from meedge_ray.operator.server.store import Store


async def sow(store: Store) -> None:
    """Write what is missing or of another version of this project, and take away what no longer is."""
    now = datetime.now(UTC)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespaces.DEFAULT}}
    if not store.list(
        namespaces.STORED, None, matches=lambda there: there["metadata"]["name"] == namespaces.DEFAULT
    ).json:
        await _create(store, namespaces.key(namespaces.DEFAULT), namespaces.born(namespace), now)
    await _renew(store, DEFINITIONS, [_definition(kind, now) for kind in KINDS], now)
    groups = dict.fromkeys((resource.group, resource.version) for resource in RESOURCES)
    await _renew(store, API_SERVICES, [_api_service(*group, now) for group in groups if group[0]], now)


async def _renew(store: Store, resource: Resource, contents: list[Object], now: datetime) -> None:
    """Have these, and no others."""
    there = {item["metadata"]["name"]: item for item in store.list(resource.stored, None).items}
    for content in contents:
        name = content["metadata"]["name"]
        before = there.pop(name, None)
        if before is None:
            await _create(store, resource.key("", name), content, now)
        elif before["spec"] != content["spec"]:
            await store.update(resource.key("", name), partial(_in_place_of, content))
    for name in there:
        await store.update(resource.key("", name), lambda _: None)


async def _create(store: Store, key: Key, content: Object, now: datetime) -> None:
    new = created(content, namespace="", now=now, custom=False)
    await store.create(key, {**content, "metadata": new["metadata"]})


def _in_place_of(content: Object, before: Object) -> Object:
    return {**content, "metadata": before["metadata"]}


def _definition(kind: Kind, now: datetime) -> Object:
    definition = custom_resource_definition(kind)
    conditions = [_true("NamesAccepted", "NoConflicts", now), _true("Established", "InitialNamesAccepted", now)]
    status = {"conditions": conditions, "acceptedNames": definition["spec"]["names"], "storedVersions": [VERSION]}
    return {**definition, "status": status}


def _api_service(group: str, version: str, now: datetime) -> Object:
    return {
        "apiVersion": API_SERVICES.api_version,
        "kind": API_SERVICES.kind,
        "metadata": {"name": f"{version}.{group}"},
        "spec": {"group": group, "version": version, "groupPriorityMinimum": 1000, "versionPriority": 100},
        "status": {"conditions": [_true("Available", "Local", now)]},
    }


def _true(type_: str, reason: str, now: datetime) -> Object:
    return {"type": type_, "status": "True", "reason": reason, "lastTransitionTime": rfc3339(now), "message": ""}
