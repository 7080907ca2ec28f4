"""One function a verb: a request about one object or many, and its answer."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from meedge_ray.operator.server import bodies, reviews, writing
from meedge_ray.operator.server.answers import encoded, many, one
from meedge_ray.operator.server.core import REVIEWS
from meedge_ray.operator.server.deleting import delete
from meedge_ray.operator.server.errors import Key, NotFoundError, bad_request, expired
from meedge_ray.operator.server.options import (
    WriteOptions,
    answer_form,
    delete_options,
    list_options,
    write_options,
)
from meedge_ray.operator.server.paths import Target
from meedge_ray.operator.server.records import Object
from meedge_ray.operator.server.selectors import matching
from meedge_ray.operator.server.store import Store
from meedge_ray.operator.server.watching import Watches, pieces

_JSON = "application/json"
_AT_ONCE = 64  # objects deleted together, so that they share a commit
_MOST_WARNINGS, _LONGEST_WARNING = 20, 200


class Verbs:
    """What can be done with the objects of a store."""

    def __init__(self, store: Store, watches: Watches) -> None:
        self._store, self._watches = store, watches

    async def list(self, request: Request, target: Target) -> ASGIApp:
        """Answer all objects, or a page of them."""
        options, form = list_options(request.query_params), answer_form(request)
        newest, asked = self._store.version, options.version
        if asked is not None and not options.continue_token and (asked > newest or (options.exact and asked < newest)):
            raise expired(f"resource version {asked} is not at hand: the newest is {newest}")
        page = self._store.list(
            target.resource.stored,
            target.namespace or None,
            limit=options.limit,
            continue_token=options.continue_token,
            matches=matching(options.label_selector, options.field_selector),
        )
        return Response(many(target.resource, page, form), media_type=_JSON)

    async def watch(self, request: Request, target: Target) -> ASGIApp:
        """Answer what happens to the objects, until the client has enough."""
        options, form = list_options(request.query_params), answer_form(request)
        matches = matching(options.label_selector, options.field_selector)
        coming = pieces(self._store, target.resource, target.namespace or None, options, form, matches)

        async def stream(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
            await self._watches.serve(coming, receive, send)

        return stream

    async def get(self, request: Request, target: Target) -> ASGIApp:
        """Answer one object."""
        return Response(one(target.resource, self._store.get(target.key), answer_form(request)), media_type=_JSON)

    async def create(self, request: Request, target: Target) -> ASGIApp:
        """Make an object, or answer a review."""
        options, form = write_options(request), answer_form(request)
        content = await bodies.content(request)
        if target.resource in REVIEWS:
            return Response(
                encoded(reviews.answer(target.resource, content, request.state.user)), 201, media_type=_JSON
            )
        new = await writing.create(self._store, target, content, options)
        return _written(one(target.resource, new, form), options, 201)

    async def update(self, request: Request, target: Target) -> ASGIApp:
        """Put an object in the place of another."""
        options, form = write_options(request), answer_form(request)
        new = await writing.replace(self._store, target, await bodies.content(request), options)
        return _written(one(target.resource, new, form), options)

    async def patch(self, request: Request, target: Target) -> ASGIApp:
        """Change an object, or apply a configuration."""
        options, form = write_options(request), answer_form(request)
        content, made = await bodies.content(request), False
        media_type = bodies.media_type(request)
        if media_type == writing.APPLY:
            new, made = await writing.apply(self._store, target, content, options)
        else:
            new = await writing.patch(self._store, target, content, media_type, options)
        return _written(one(target.resource, new, form), options, 201 if made else 200)

    async def delete(self, request: Request, target: Target) -> ASGIApp:
        """Delete an object, or begin to."""
        form, options = answer_form(request), delete_options(request, await bodies.content(request, {}))
        content, gone = await delete(self._store, target.key, options, dry_run=_dry_run(options))
        if gone:
            details = {"name": target.name, "kind": target.resource.plural, "uid": content["metadata"]["uid"]}
            return Response(encoded(_success(target, details)), media_type=_JSON)
        return Response(one(target.resource, content, form), media_type=_JSON)

    async def deletecollection(self, request: Request, target: Target) -> ASGIApp:
        """Delete all objects of a namespace that are selected."""
        selected = list_options(request.query_params)
        options = delete_options(request, await bodies.content(request, {}))
        matches = matching(selected.label_selector, selected.field_selector)
        page = self._store.list(target.resource.stored, target.namespace or None, matches=matches)
        keys = [target.resource.key(target.namespace or "", item["metadata"]["name"]) for item in page.items]
        for start in range(0, len(keys), _AT_ONCE):
            await asyncio.gather(*(self._delete_if_there(key, options) for key in keys[start : start + _AT_ONCE]))
        return Response(encoded(_success(target, {"kind": target.resource.plural})), media_type=_JSON)

    async def _delete_if_there(self, key: Key, options: Object) -> None:
        try:
            await delete(self._store, key, options, dry_run=_dry_run(options))
        except NotFoundError:
            return  # somebody was first


def _dry_run(options: Object) -> bool:
    asked = options.get("dryRun", [])
    if asked not in ([], ["All"]):
        raise bad_request("dryRun: Unsupported value: supported values: All")
    return bool(asked)


def _success(target: Target, details: Object) -> Object:
    group = {"group": target.resource.group} if target.resource.group else {}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {**details, **group},
    }


def _written(body: bytes, options: WriteOptions, code: int = 200) -> Response:
    response = Response(body, code, media_type=_JSON)
    for warning in options.warnings[:_MOST_WARNINGS] if options.warns else ():
        text = warning[:_LONGEST_WARNING].encode("ascii", "backslashreplace").decode()
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.append("warning", f'299 - "{"".join(c for c in escaped if c.isprintable())}"')
    return response
