"""Watches: every change of a resource once, in order, to any number of readers."""

import asyncio

from meedge_ray.operator.server.memory import Memory
from meedge_ray.operator.server.records import Change

_MOST = 500  # changes at once, so that one who is far behind does not hold up the others


class Watch:
    """One reader's place in the changes of a resource.

    Nothing is kept for it: it reads what all readers share, and expires when that is forgotten before it comes by.
    """

    def __init__(self, memory: Memory, resource: str, namespace: str | None, since: int) -> None:
        self.version = since  # all changes up to here have been given out: what a bookmark may say
        self._memory, self._namespace = memory, namespace
        with memory.lock:
            memory.check_since(since)
            self._feed = memory.feeds[resource]
            self._position = self._feed.position(since)

    async def next(self, timeout_s: float | None = None) -> list[Change]:
        """All that is new, in order; at least one change, or none after `timeout_s` or when the store is closed.

        Cancelled while it waits, it has lost nothing.

        Raises:
            ExpiredError: the reader is so far behind that changes it has not seen are forgotten.
        """
        loop = asyncio.get_running_loop()
        until = None if timeout_s is None else loop.time() + timeout_s
        while True:
            with self._memory.lock:
                changes = self._read()
                news = self._feed.news(loop)
            if changes or self._memory.closed:
                return changes
            left = None if until is None else until - loop.time()
            if left is not None and left <= 0:
                return []
            await asyncio.wait([news], timeout=left)

    def _read(self) -> list[Change]:
        end, found = self._feed.end, list[Change]()
        while self._position < end and not found:
            changes = self._feed.read(self._position, min(end, self._position + _MOST))
            self._position += len(changes)
            self.version = changes[-1].version
            found = [change for change in changes if self._namespace in (None, change.key.namespace)]
        if self._position == end:
            self.version = self._memory.version
        return found
