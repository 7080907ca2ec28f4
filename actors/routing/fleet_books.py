"""The books of all devices of the fleet, kept by asking their reports, and the choice among them."""

import asyncio
import logging
import time
from collections.abc import Collection, Coroutine
from contextlib import suppress
from typing import Any

from ray.exceptions import ActorDiedError, RayError

from meedge_ray.actors.device import device_names, find_device
from meedge_ray.actors.routing.device_book import DeviceBook
from meedge_ray.domain.errors import NotFoundError
from meedge_ray.search.routing import Refusal, Request, Route, choose

_PERIOD_S = 1.0
_SILENT_S = 2.0  # without the report that was asked for
_QUEUE = 8
_HEDGE_QUEUE = 4  # what is sent once more leaves room for what is new

_log = logging.getLogger(__name__)


class FleetBooks:
    """A book a device. Made in a running event loop."""

    def __init__(self) -> None:
        self.books: dict[str, DeviceBook] = {}
        self.first_look = asyncio.Event()
        self._at_work: set[asyncio.Task[Any]] = set()
        self.keep(self._watch())

    def keep(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run it to its end, whether anybody waits for it or not: the loop alone could let it be collected."""
        task = asyncio.create_task(work)
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)
        return task

    def choose(self, request: Request, tried: Collection[str]) -> Route | Refusal:
        """Return where a request goes that some devices were `tried` for; see `routing.choose`."""
        candidates = (book.candidate for name, book in self.books.items() if name not in tried)
        return choose(candidates, request, queue=_HEDGE_QUEUE if tried else _QUEUE, aside_ms=1000 * _PERIOD_S)

    def suspect(self, book: DeviceBook, why: str) -> None:
        """Put a device aside, and ask it at once: if it is well, it is back as soon as it says so."""
        book.put_aside(why, now_s=time.monotonic())
        self._ask(book)

    async def _watch(self) -> None:
        while True:
            try:
                await self._find()
                asked = [task for book in self.books.values() if (task := self._ask(book))]
                if asked and not self.first_look.is_set():
                    await asyncio.wait(asked, timeout=_SILENT_S)
                self.first_look.set()
            except Exception:
                # Whatever it was, the next look starts afresh.
                _log.exception("the fleet's scheduler could not look at its devices")
            await asyncio.sleep(_PERIOD_S)

    async def _find(self) -> None:
        names = await asyncio.to_thread(device_names)
        for gone in self.books.keys() - names:
            del self.books[gone]
        for name in names:
            book = self.books.get(name)
            if book is None or book.is_lost:
                with suppress(NotFoundError):  # gone since
                    device = await asyncio.to_thread(find_device, name)
                    self.books.setdefault(name, DeviceBook(device)).renew(device)

    def _ask(self, book: DeviceBook) -> "asyncio.Task[None] | None":
        # One question at a time: a device that wakes up answers it, and not a hundred.
        now_s = time.monotonic()
        if book.asked_s is None:
            book.asked_s = now_s
            return self.keep(self._hear(book, now_s))
        if now_s - book.asked_s > _SILENT_S:
            book.put_aside("is silent", now_s=now_s)
        return None

    async def _hear(self, book: DeviceBook, asked_s: float) -> None:
        try:
            report = await book.device.ask_report()
        except RayError as error:
            book.is_lost = book.is_lost or isinstance(error, ActorDiedError)
            book.put_aside("is away", now_s=time.monotonic())
        else:
            book.hear(report, asked_s=asked_s, now_s=time.monotonic(), silent_s=_SILENT_S)
            if report.status is None and not report.busy and report.problem is None:
                book.device.wake()  # it loads at the first call, and has none before it is loaded
        book.asked_s = None
