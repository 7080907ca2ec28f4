"""The objects of the API server: read from memory, written to disk first.

Reads never wait, so an event loop may call them as they are. Writes are coroutines, for any loop in any thread; one
thread of the store takes all that are waiting, carries them out one after the other, commits them together and only
then shows them to anybody and answers. Many writers thus share one fsync, and nothing that was answered or seen can
be lost.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from meedge_ray.operator.server import pages
from meedge_ray.operator.server.database import Database
from meedge_ray.operator.server.draft import Draft
from meedge_ray.operator.server.errors import ApiError, Key, already_exists, internal, not_found, unavailable
from meedge_ray.operator.server.memory import Memory
from meedge_ray.operator.server.records import Change, Object, Page, Record, fresh, owners
from meedge_ray.operator.server.watch import Watch

_LOG = logging.getLogger(__name__)
_BATCH = 256  # writes in one transaction, so that the first of many does not wait for all


class _Request(NamedTuple):
    key: Key
    change: Callable[[Object | None], Object | None]
    answer: "Future[Object]"


class Store:
    """Objects under one growing version, kept in the file at `path`.

    Args:
        path: made where it is not; its folder must be there.
        history: how many changes are kept for watches and pages that begin in the past; at least 1.

    Raises:
        MeedgeError: the file belongs to something else, is broken, or another process has it open.
    """

    def __init__(self, path: Path, *, history: int = 10_000) -> None:
        self._database = Database(path)
        try:
            self._memory = _load(self._database, history)
        except BaseException:
            self._database.close()
            raise
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        # A daemon: a process that ends without closing loses nothing that was answered.
        self._writer = threading.Thread(target=self._write_all, name="store-writer", daemon=True)
        self._writer.start()

    @property
    def version(self) -> int:
        """The version of the newest change."""
        return self._memory.version

    @property
    def closed(self) -> bool:
        """Whether it is closed, or about to be once the last writes are done."""
        return self._memory.closed

    def get(self, key: Key) -> Object:
        """The object, a copy.

        Raises:
            NotFoundError: there is none.
        """
        record = self._memory.record(key)
        if record is None:
            raise not_found(key)
        return fresh(record.json)

    def list(
        self,
        resource: str,
        namespace: str | None,
        *,
        limit: int | None = None,
        continue_token: str | None = None,
        matches: Callable[[Object], bool] | None = None,
    ) -> Page:
        """The objects of a resource at one version, by namespace and name; later pages are of the first one's version.

        Args:
            resource: as in `Key`.
            namespace: None for all.
            limit: how many objects a page may hold; 0 for all, as None.
            continue_token: of the page before.
            matches: which objects to take; it must not change them.

        Raises:
            ExpiredError: too much has changed since the page before.
            ApiError: the token is none.
        """
        return pages.page(self._memory, resource, namespace, limit, continue_token, matches)

    def owned_by(self, uid: str) -> tuple[Key, ...]:
        """Objects with an ownerReference to this uid."""
        with self._memory.lock:
            return self._memory.owned_by(uid)

    def watch(self, resource: str, namespace: str | None, since: int) -> Watch:
        """The changes of a resource above a version, those to come included; namespace None for all.

        Raises:
            ExpiredError: the changes since are forgotten, or the version was never reached.
        """
        return Watch(self._memory, resource, namespace, since)

    async def create(self, key: Key, content: Object) -> Object:
        """Adds the object as it is given, but for its resourceVersion, and returns it once it is on disk.

        Raises:
            AlreadyExistsError: there is one of that name.
        """

        def add(current: Object | None) -> Object:
            if current is not None:
                raise already_exists(key)
            return content

        return await self._write(key, add)

    async def update(self, key: Key, change: Callable[[Object], Object | None]) -> Object:
        """Replaces the object by what `change` makes of it, and returns the new one once it is on disk.

        `change` runs in the store's thread and nobody writes meanwhile. It gets a copy, which it may change in place,
        and returns the new object, or None to delete it; what it raises is raised here, and nothing is written. An
        object that stays the same keeps its version. A deleted one is returned with the version of its deletion.

        Raises:
            NotFoundError: there is no such object.
        """

        def replace(current: Object | None) -> Object | None:
            if current is None:
                raise not_found(key)
            return change(current)

        return await self._write(key, replace)

    def close(self) -> None:
        """Finishes the writes that were taken on, ends all watches and gives the file free."""
        with self._memory.lock:
            if self._memory.closed:
                return
            self._memory.closed = True
            self._requests.put(None)
        self._writer.join()
        self._database.close()
        with self._memory.lock:
            for feed in self._memory.feeds.values():
                feed.wake()

    async def _write(self, key: Key, change: Callable[[Object | None], Object | None]) -> Object:
        answer: Future[Object] = Future()
        with self._memory.lock:
            if self._memory.closed:
                raise unavailable("the server is shutting down")
            self._requests.put(_Request(key, change, answer))
        return await asyncio.wrap_future(answer)

    def _write_all(self) -> None:
        while (request := self._requests.get()) is not None:
            batch = [request]
            while len(batch) < _BATCH and not self._requests.empty() and (request := self._requests.get()) is not None:
                batch.append(request)
            self._write_together(batch)
            if request is None:
                return

    def _write_together(self, batch: Sequence[_Request]) -> None:
        draft = Draft(self._memory)
        answers = list[tuple[Future[Object], Object | BaseException]]()
        for key, change, answer in batch:
            if answer.set_running_or_notify_cancel():
                try:
                    answers.append((answer, draft.write(key, change)))
                except BaseException as error:  # of the writer's own `change`: it goes to the writer
                    answers.append((answer, error))
        try:
            self._commit(draft)
        except Exception as error:
            _LOG.exception("cannot write %s", self._database.path)
            answers = [(answer, internal(f"cannot write {self._database.path}: {error}")) for answer, _ in answers]
        for answer, outcome in answers:
            if isinstance(outcome, BaseException):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

    def _commit(self, draft: Draft) -> None:
        if not draft.changes:
            return
        surplus = self._memory.surplus(draft.changes)
        self._database.commit(draft.changes, surplus)
        with self._memory.lock:
            for change in draft.changes:
                self._memory.add(change)
            for key, uids in draft.owners.items():
                self._memory.own(key, uids)
            for _ in surplus:
                self._memory.forget()
            for resource in {change.key.resource for change in draft.changes}:
                self._memory.feeds[resource].wake()


def _load(database: Database, history: int) -> Memory:
    memory = Memory(database.horizon(), history)
    try:
        for version, type_, key, json in database.rows():
            if version <= memory.horizon:
                memory.put(key, Record(version, json))
            elif version == memory.version + 1:
                memory.add(Change(type_, version, key, json, memory.record(key)))
            else:
                raise database.broken(f"version {memory.version + 1} is missing")
        for key, record in memory.records():
            memory.own(key, owners(fresh(record.json)))
    except (ApiError, ValueError, KeyError, AttributeError) as error:
        raise database.broken(f"it holds what nobody wrote: {error!r}") from None
    return memory
