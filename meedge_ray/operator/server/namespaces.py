"""Namespaces: what they begin as, and how they end when all in them has."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from meedge_ray.operator.server import metadata
from meedge_ray.operator.server.errors import ApiError, Key, NotFoundError, forbidden, not_found
from meedge_ray.operator.server.records import Object
from meedge_ray.operator.server.store import Store

STORED = "namespaces"
DEFAULT = "default"
_CONTENT = "kubernetes"  # in the spec's finalizers: something may be left in it


def key(name: str) -> Key:
    """Name a namespace."""
    return Key(STORED, "", name)


def born(content: Object) -> Object:
    """Return a new namespace with what the server says of it; clients say metadata alone."""
    return {**content, "spec": {"finalizers": [_CONTENT]}, "status": {"phase": "Active"}}


def kept(before: Object, content: Object) -> Object:
    """Return a changed namespace, of which a client can change metadata alone."""
    return {**content, "spec": before["spec"], "status": before["status"]}


def deleted(at: Key, before: Object, *, now: datetime, options: Mapping[str, Any] | None) -> Object:
    """Return the namespace on its way out: nothing new can be made in it.

    Raises:
        ApiError: it is the one that must be there; a precondition does not hold.
    """
    if at.name == DEFAULT:
        raise forbidden(at, "this namespace may not be deleted")
    own = before["metadata"].get("finalizers") or []
    held = {**before, "metadata": {**before["metadata"], "finalizers": [*own, _CONTENT]}}
    after = metadata.deleted(at, held, now=now, options=options)
    assert after is not None  # held
    left = [name for name in after["metadata"].pop("finalizers") if name != _CONTENT]
    if left:
        after["metadata"]["finalizers"] = left
    return {**after, "status": {"phase": "Terminating"}}


def emptied(at: Key, before: Object) -> Object | None:
    """Return a deleted namespace in which nothing is left: gone, where nobody else holds it."""
    after = {**before, "spec": {"finalizers": []}}
    return None if finished(at, after) else after


def finished(at: Key, content: Object) -> bool:
    """Whether an object is deleted and held by nobody, a namespace not by what is in it either."""
    return metadata.finished(content) and not (at.resource == STORED and content["spec"]["finalizers"])


def check_takes_objects(store: Store, at: Key) -> None:
    """Check that an object can be made in its namespace.

    Raises:
        ApiError: 404, there is no such namespace; 403, it is being deleted.
    """
    if not at.namespace:
        return
    try:
        namespace = store.get(key(at.namespace))
    except NotFoundError:
        raise not_found(key(at.namespace)) from None
    if "deletionTimestamp" in namespace["metadata"]:
        why = f"unable to create new content in namespace {at.namespace} because it is being terminated"
        error = forbidden(at, why)
        cause = {"reason": "NamespaceTerminating", "message": f"namespace {at.namespace} is being terminated"}
        raise ApiError(error.code, error.reason, error.message, {**error.details, "causes": [cause]})
