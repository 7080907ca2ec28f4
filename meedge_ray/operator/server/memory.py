"""All objects and the last changes in memory, for readers in every thread."""

import asyncio
import threading
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain

from meedge_ray.operator.server.errors import Key, expired
from meedge_ray.operator.server.records import Change, Record

HISTORY_BYTES = 64 << 20  # of changes kept, however few they are: large objects must not fill the memory

Place = tuple[str, str]  # namespace and name


class Feed:
    """The kept changes of one resource in order, and who waits for the next. Positions count from the first ever."""

    def __init__(self) -> None:
        self._changes: deque[Change] = deque()
        self._forgotten = 0
        self._waiting: dict[asyncio.AbstractEventLoop, asyncio.Future[None]] = {}

    @property
    def end(self) -> int:
        """The position of the next change to come."""
        return self._forgotten + len(self._changes)

    def position(self, since: int) -> int:
        """Where the changes above this version begin."""
        return self._forgotten + bisect_right(self._changes, since, key=lambda change: change.version)

    def read(self, begin: int, end: int) -> list[Change]:
        """The changes at these positions.

        Raises:
            ExpiredError: the first of them is forgotten.
        """
        if begin < self._forgotten:
            raise expired()
        return [self._changes[at - self._forgotten] for at in range(begin, end)]

    def add(self, change: Change) -> None:
        """Puts a change at the end."""
        self._changes.append(change)

    def forget(self) -> None:
        """Drops the oldest change."""
        self._changes.popleft()
        self._forgotten += 1

    def news(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Done at the next change; one for all who wait in this loop, so that a change wakes a loop once."""
        if loop not in self._waiting:
            self._waiting[loop] = loop.create_future()
        return self._waiting[loop]

    def wake(self) -> None:
        """Wakes all who wait."""
        for loop, news in self._waiting.items():
            with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(news.set_result, None)
        self._waiting.clear()


class Memory:
    """What is committed. Whoever reads more than one thing holds `lock`; `publish` alone writes."""

    def __init__(self, version: int, history: int) -> None:
        self.lock = threading.Lock()
        self.version = self.horizon = version
        self.closed = False
        self.feeds: defaultdict[str, Feed] = defaultdict(Feed)
        self._history = history
        self._objects: defaultdict[str, dict[Place, Record]] = defaultdict(dict)
        self._log: deque[Change] = deque()
        self._log_bytes = 0
        self._owners: dict[Key, frozenset[str]] = {}
        self._owned: defaultdict[str, set[Key]] = defaultdict(set)

    def record(self, key: Key) -> Record | None:
        """The object as it stands."""
        return self._objects[key.resource].get((key.namespace, key.name))

    def records(self) -> Iterator[tuple[Key, Record]]:
        """All there is."""
        for resource, places in self._objects.items():
            for place, record in places.items():
                yield Key(resource, *place), record

    def owned_by(self, uid: str) -> tuple[Key, ...]:
        """Objects with an ownerReference to this uid."""
        return tuple(sorted(self._owned.get(uid, ())))

    def put(self, key: Key, record: Record | None) -> None:
        """Sets how an object stands, without a change."""
        places = self._objects[key.resource]
        if record:
            places[key.namespace, key.name] = record
        else:
            del places[key.namespace, key.name]

    def own(self, key: Key, owners: frozenset[str]) -> None:
        """Notes who owns an object."""
        for uid in self._owners.pop(key, frozenset()):
            self._owned[uid].discard(key)
            if not self._owned[uid]:
                del self._owned[uid]
        if owners:
            self._owners[key] = owners
        for uid in owners:
            self._owned[uid].add(key)

    def surplus(self, changes: Sequence[Change]) -> list[Change]:
        """The oldest changes, that go when these come."""
        count = len(self._log) + len(changes)
        size_bytes = self._log_bytes + sum(len(change.json) for change in changes)
        surplus = []
        for change in chain(self._log, changes):
            if count == 1 or (count <= self._history and size_bytes <= HISTORY_BYTES):
                break
            surplus.append(change)
            count -= 1
            size_bytes -= len(change.json)
        return surplus

    def add(self, change: Change) -> None:
        """Takes in the next change."""
        self.put(change.key, None if change.type == "DELETED" else Record(change.version, change.json))
        self.feeds[change.key.resource].add(change)
        self._log.append(change)
        self._log_bytes += len(change.json)
        self.version = change.version

    def forget(self) -> None:
        """Drops the oldest change."""
        change = self._log.popleft()
        self.feeds[change.key.resource].forget()
        self._log_bytes -= len(change.json)
        self.horizon = change.version

    def standing(self, resource: str, version: int) -> dict[Place, Record]:
        """The objects of a resource as they all stood at a version: today's, with the later changes undone.

        Raises:
            ExpiredError: the changes since are forgotten.
        """
        if not self.horizon <= version <= self.version:
            raise expired()
        places = dict(self._objects[resource])
        feed = self.feeds[resource]
        for change in reversed(feed.read(feed.position(version), feed.end)):
            place = change.key.namespace, change.key.name
            if change.replaced:
                places[place] = change.replaced
            else:
                del places[place]
        return places

    def check_since(self, since: int) -> None:
        """Whether a watch may begin after this version.

        Raises:
            ExpiredError: it may not; a version still to come is of a state that was lost.
        """
        if not self.horizon <= since <= self.version:
            raise expired(f"too old resource version: {since} ({self.horizon})")
