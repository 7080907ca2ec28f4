"""Watches: what happens to the objects of a list, as JSON lines, for as long as the client stays."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing

from starlette.types import Receive, Send

from meedge_ray.operator.server.answers import bookmark, error_line, line
from meedge_ray.operator.server.errors import ExpiredError
from meedge_ray.operator.server.options import AnswerForm, ListOptions
from meedge_ray.operator.server.records import Change, serialised
from meedge_ray.operator.server.resource import Resource
from meedge_ray.operator.server.selectors import Predicate
from meedge_ray.operator.server.store import Store

_BOOKMARK_SECONDS = 60.0
_LIFE_SECONDS = (1800.0, 3600.0)  # drawn, so that watches that began together do not all come back together
_STUCK_SECONDS = 60.0
_AT_ONCE = 100  # lines in one piece


class Watches:
    """All watches of a server, so that they can be ended together."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[bool]] = set()

    def end(self) -> None:
        """End every watch: its answer ends well, and its client asks again."""
        for task in self._running:
            task.cancel()

    async def serve(self, pieces: AsyncGenerator[bytes, None], receive: Receive, send: Send) -> None:
        """Send what comes until nothing more does, the client leaves, or it has taken nothing for a minute."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        pump = asyncio.create_task(_pump(pieces, send))
        gone = asyncio.create_task(_gone(receive))
        gone.add_done_callback(lambda _: pump.cancel())
        self._running.add(pump)
        try:
            await asyncio.wait([pump])
        finally:
            self._running.discard(pump)
            pump.cancel()
            gone.cancel()
        if pump.cancelled() or pump.result():
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _pump(pieces: AsyncGenerator[bytes, None], send: Send) -> bool:
    """Return whether all was sent. A client that is stuck has its connection closed instead of a good end."""
    async with aclosing(pieces):
        async for piece in pieces:
            try:
                async with asyncio.timeout(_STUCK_SECONDS):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except TimeoutError:
                return False
    return True


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def pieces(
    store: Store,
    resource: Resource,
    namespace: str | None,
    options: ListOptions,
    form: AnswerForm,
    matches: Predicate | None,
) -> AsyncGenerator[bytes, None]:
    """Give what there is, where asked, and then what happens, as lines of JSON, several in one piece."""
    ends_at = time.monotonic() + (options.timeout_s or random.uniform(*_LIFE_SECONDS))  # noqa: S311
    since = options.version or store.version
    try:
        if options.initial_events or (options.initial_events is None and not options.version):
            page = store.list(resource.stored, namespace, matches=matches)
            since = page.version
            for start in range(0, len(page.json), _AT_ONCE):
                some = page.json[start : start + _AT_ONCE]
                yield b"".join(line(resource, "ADDED", content, form) for content in some)
            if options.initial_events and options.bookmarks:
                yield bookmark(resource, since, form, ends_initial_events=True)
        watch = store.watch(resource.stored, namespace, since)
        while not store.closed and (left_s := ends_at - time.monotonic()) > 0:
            changes = await watch.next(min(left_s, _BOOKMARK_SECONDS))
            if changes:
                yield b"".join(_lines(changes, resource, form, matches))
            elif options.bookmarks:
                yield bookmark(resource, watch.version, form)
    except ExpiredError as error:
        yield error_line(error)


def _lines(
    changes: Iterable[Change], resource: Resource, form: AnswerForm, matches: Predicate | None
) -> Iterator[bytes]:
    for change in changes:
        if matches is None:
            yield line(resource, change.type, change.json, form)
            continue
        before = change.before
        was = before is not None and matches(before)
        if change.type != "DELETED" and matches(change.object):
            yield line(resource, "MODIFIED" if was else "ADDED", change.json, form)
        elif before is not None and was:  # deleted, or no longer among those selected
            yield line(resource, "DELETED", serialised(before, change.version), form)
