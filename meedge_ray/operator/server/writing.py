"""Writes: what a client sent becomes an object that is checked, says who manages what of it, and is stored."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from meedge_ray.operator.server import namespaces
from meedge_ray.operator.server.apply import applied, recorded
from meedge_ray.operator.server.errors import (
    AlreadyExistsError,
    NotFoundError,
    already_exists,
    bad_request,
    invalid,
)
from meedge_ray.operator.server.metadata import created, updated
from meedge_ray.operator.server.options import WriteOptions
from meedge_ray.operator.server.patches import patched
from meedge_ray.operator.server.paths import Target
from meedge_ray.operator.server.records import Object
from meedge_ray.operator.server.resource import Resource
from meedge_ray.operator.server.store import Store
from meedge_ray.operator.server.structure import pruned

APPLY = "application/apply-patch+yaml"
_TRIES = 8  # at a generated name, or where an object comes and goes while it is applied


async def create(store: Store, target: Target, body: Any, options: WriteOptions) -> Object:  # noqa: ANN401 - any JSON
    """Create the object that the body says.

    Raises:
        ApiError: it is there already, or something about it is wrong.
    """
    content = _typed(target.resource, body)
    for _ in range(_TRIES):
        new = _new(target, content, options)
        new = recorded(None, new, schema=target.resource.schema, manager=options.manager, now=_now())
        try:
            return await _add(store, target.resource, new, options)
        except AlreadyExistsError:
            if (content.get("metadata") or {}).get("name"):
                raise
    raise already_exists(target.key)


async def replace(store: Store, target: Target, body: Any, options: WriteOptions) -> Object:  # noqa: ANN401
    """Put the object that the body says in place of the one that is there.

    Raises:
        ApiError: there is none, somebody else was first, or something about it is wrong.
    """
    content = _typed(target.resource, body)
    return await _change(store, target, lambda _: content, options, needs_version=target.resource.custom)


async def patch(store: Store, target: Target, body: Any, media_type: str, options: WriteOptions) -> Object:  # noqa: ANN401
    """Change the object as a patch says.

    Raises:
        ApiError: there is none, the patch cannot be applied, or something about the result is wrong.
    """

    def changed(before: Object) -> Object:
        return _typed(target.resource, patched(before, body, media_type))

    return await _change(store, target, changed, options)


async def apply(store: Store, target: Target, body: Any, options: WriteOptions) -> tuple[Object, bool]:  # noqa: ANN401
    """Apply a configuration server-side: the object as it is then, and whether it was made by this.

    Raises:
        ApiError: 409 for fields that others manage, and whatever is wrong otherwise.
    """
    if not options.named_manager:
        raise bad_request("fieldManager: Required value: is required for apply patch")
    config = _typed(target.resource, body)
    named = (config.get("metadata") or {}).get("name", target.name)
    if named != target.name:
        raise bad_request(f"the name of the object ({named}) does not match the name on the URL ({target.name})")

    def together(live: Object | None) -> Object:
        return applied(
            live,
            config,
            schema=target.resource.schema,
            manager=options.manager,
            now=_now(),
            force=options.force,
            subresource=target.subresource,
        )

    for _ in range(_TRIES):
        try:
            return await _change(store, target, together, options, records=False), False
        except NotFoundError:
            if target.subresource:
                raise
        first = together(None)
        new = _new(target, {**first, "metadata": {**first["metadata"], "name": target.name}}, options)
        try:
            return await _add(store, target.resource, new, options), True
        except AlreadyExistsError:
            continue
    raise already_exists(target.key)


def _typed(resource: Resource, body: Any) -> Object:  # noqa: ANN401
    if not isinstance(body, dict):
        raise bad_request("the body must be an object")
    wanted = {"apiVersion": resource.api_version, "kind": resource.kind}
    for field, value in wanted.items():
        if body.get(field) not in (None, "", value):
            raise bad_request(f"{field} in the data is {str(body[field])[:80]!r}, and {value!r} is expected here")
    if not isinstance(body.get("metadata") or {}, dict):
        raise bad_request("metadata must be an object")
    return {**body, **wanted}


def _new(target: Target, content: Object, options: WriteOptions) -> Object:
    resource = target.resource
    new = created(content, namespace=target.key.namespace, now=_now(), custom=resource.custom)
    new = _checked(resource, new, None, options, "")
    return namespaces.born(new) if resource.stored == namespaces.STORED else new


async def _add(store: Store, resource: Resource, new: Object, options: WriteOptions) -> Object:
    key = resource.key(new["metadata"].get("namespace", ""), new["metadata"]["name"])
    namespaces.check_takes_objects(store, key)
    if not options.dry_run:
        return await store.create(key, new)
    try:
        store.get(key)
    except NotFoundError:
        return new
    raise already_exists(key)


async def _change(
    store: Store,
    target: Target,
    make: Callable[[Object], Object],
    options: WriteOptions,
    *,
    needs_version: bool = False,
    records: bool = True,
) -> Object:
    key, resource, through = target.key, target.resource, target.subresource

    def change(before: Object) -> Object | None:
        after = updated(key, before, make(before), subresource=through, needs_version=needs_version)
        after = _checked(resource, after, before, options, through)
        if key.resource == namespaces.STORED:
            after = namespaces.kept(before, after)
        if records:
            after = recorded(
                before, after, schema=resource.schema, manager=options.manager, now=_now(), subresource=through
            )
        return None if namespaces.finished(key, after) else after

    if options.dry_run:
        before = store.get(key)
        return change(before) or before
    return await store.update(key, change)


def _checked(
    resource: Resource, content: Object, before: Object | None, options: WriteOptions, subresource: str
) -> Object:
    """Return the content without unknown fields where they are to be dropped.

    Raises:
        ApiError: 422, it breaks rules of its kind. What was stored under older rules may stay as it is.
    """
    strict = options.strict
    if strict is None:  # a mistyped field of a spec is an error; a status may say more than we know of
        strict = resource.custom and not subresource
    if not strict:
        content, unknown = pruned(content, resource.schema)
        options.warnings.extend(f'unknown field "{path}"' for path in unknown)
    if subresource:
        problems = resource.status_problems(content.get("status") or {})
    elif before is None or _desired(content) != _desired(before):
        problems = resource.problems(content, before)
    else:
        problems = []
    if problems:
        raise invalid(resource.kind, resource.group, content["metadata"]["name"], problems)
    return content


def _desired(content: Object) -> Object:
    return {field: value for field, value in content.items() if field not in ("metadata", "status")}


def _now() -> datetime:
    return datetime.now(UTC)
