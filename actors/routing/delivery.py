"""The way of one request through the fleet: sent, sent once more where a device is silent or fails, and ended."""

import asyncio
import logging
import math
import time
from dataclasses import dataclass, replace
from typing import Any

from ray.exceptions import ActorDiedError, RayError, RayTaskError

from meedge_ray.actors.routing.device_book import DeviceBook, Sent
from meedge_ray.actors.routing.fleet_books import FleetBooks
from meedge_ray.domain.answer import Answer
from meedge_ray.domain.errors import MeedgeError, UnavailableError
from meedge_ray.search.routing import Request, Route

GRACE_MS = 250.0
UNHURRIED_MS = 10_000.0  # a request without a deadline is not kept for longer
_MOST_TRIES = 3  # a sample that takes every device down must not meet them all
_LEAST_PATIENCE_MS = 5.0  # before a device counts as silent: no clock of a busy machine is finer

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """What became of the requests; see `SchedulerReport`."""

    asked: int = 0
    answered: int = 0
    shed: int = 0
    late: int = 0
    wrong: int = 0
    hedged: int = 0
    moved: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Try:
    book: DeviceBook
    ref: Any
    ending: "asyncio.Task[Answer | MeedgeError | None]"


class Delivery:
    """One request on its way."""

    def __init__(self, books: FleetBooks, counts: Counts, request: Request, sample: Any) -> None:  # noqa: ANN401
        self._books, self._counts, self._request, self._sample = books, counts, request, sample
        self._begun_s = time.monotonic()
        deadline_ms = request.deadline_ms
        self._end_s = self._begun_s + (UNHURRIED_MS if deadline_ms is None else deadline_ms + GRACE_MS) / 1000
        self._tries: list[_Try] = []

    async def answer(self) -> Answer:
        """Return the first answer that comes.

        What else is under way ends by its own deadline, and counts until then. It is not cancelled: where an actor can
        be restarted, `ray.cancel` of a call not yet sent can block all later calls to it (Ray 2.60).

        Raises:
            UnavailableError: no device can take it now, or none that took it answered in time.
            MeedgeError: the request is at fault.
        """
        if not self._books.first_look.is_set():
            await self._wait([self._books.keep(self._books.first_look.wait())], self._end_s)
        due_s = self._begun_s
        while (now_s := time.monotonic()) < self._end_s:
            if now_s >= due_s or not self._open():
                if not self._open() and len(self._tries) == _MOST_TRIES:
                    break
                due_s = self._send(now_s)
            ended = await self._wait([tried.ending for tried in self._open()], min(due_s, self._end_s))
            for task in ended:
                said: Answer | MeedgeError | None = task.result()
                if isinstance(said, MeedgeError):
                    raise said
                if said is not None:
                    return said
        self._counts.late += 1
        raise self._late()

    def _send(self, now_s: float) -> float:
        """Send to one more device, and return when its answer is due: never, where nobody else can take it."""
        is_open = bool(self._open())
        if is_open:
            self._books.suspect(self._tries[-1].book, "is silent")
        choice = None
        if len(self._tries) < _MOST_TRIES:
            choice = self._books.choose(self._rest(now_s), [each.book.device.name for each in self._tries])
        if isinstance(choice, Route):
            self._counts.hedged += is_open
            self._counts.moved += bool(self._tries) and not is_open
            self._try(self._books.books[choice.device], choice.deadline_ms, now_s)
            return now_s + max(_LEAST_PATIENCE_MS, choice.silent_after_ms) / 1000
        if choice is not None and not is_open:
            self._counts.shed += 1
            raise choice.error()
        return math.inf

    def _try(self, book: DeviceBook, deadline_ms: float | None, now_s: float) -> None:
        sent = book.send(now_s)
        ref = book.device.actor.infer.remote(self._sample, deadline_ms)
        self._tries.append(_Try(book, ref, self._books.keep(self._ending(book, sent, ref))))

    async def _ending(self, book: DeviceBook, sent: Sent, ref: Any) -> Answer | MeedgeError | None:  # noqa: ANN401
        """Return what came of a try, None where the device failed or had no result in time.

        Goes on when nobody waits for it any more.
        """
        answer: Answer | None = None
        try:
            answer = await ref
        except RayTaskError as error:
            if isinstance(error.cause, MeedgeError) and not isinstance(error.cause, UnavailableError):
                return error.cause
            _log.warning("device %s failed: %r", book.device.name, error.cause)
            self._books.suspect(book, f"failed ({error.cause})")
            return None
        except RayError as error:
            book.is_lost = book.is_lost or isinstance(error, ActorDiedError)
            self._books.suspect(book, "is away")
            return None
        finally:
            book.end(sent, answer, now_s=time.monotonic())
        return answer if answer.label is not None else None

    def _rest(self, now_s: float) -> Request:
        if self._request.deadline_ms is None:
            return self._request
        gone_ms = 1000 * (now_s - self._begun_s)
        return replace(self._request, deadline_ms=max(0.0, self._request.deadline_ms - gone_ms))

    def _open(self) -> list[_Try]:
        return [tried for tried in self._tries if not tried.ending.done()]

    async def _wait(self, tasks: list["asyncio.Task[Any]"], until_s: float) -> set["asyncio.Task[Any]"]:
        timeout_s = max(0.0, until_s - time.monotonic())
        ended, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return ended

    def _late(self) -> UnavailableError:
        names = ", ".join(tried.book.device.name for tried in self._tries) or "none"
        return UnavailableError(
            f"no answer came in time; devices that had the request: {names}",
            where=f"model {self._request.model}",
            do="Come again, and look at those devices and their links",
        )
