"""Deletion, the same for clients and for the garbage collector."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from meedge_ray.operator.server import namespaces
from meedge_ray.operator.server.errors import Key
from meedge_ray.operator.server.metadata import deleted
from meedge_ray.operator.server.records import Object
from meedge_ray.operator.server.store import Store


async def delete(
    store: Store, key: Key, options: Mapping[str, Any] | None = None, *, dry_run: bool = False
) -> tuple[Object, bool]:
    """Delete an object, or mark it where something holds it.

    Returns:
        The object as it is then, and whether it is gone.

    Raises:
        ApiError: it is not there, cannot be deleted, or a precondition does not hold.
    """
    gone = False

    def change(before: Object) -> Object | None:
        nonlocal gone
        mark = namespaces.deleted if key.resource == namespaces.STORED else deleted
        after = mark(key, before, now=datetime.now(UTC), options=options)
        gone = after is None
        return after

    if dry_run:
        before = store.get(key)
        return change(before) or before, gone
    return await store.update(key, change), gone
