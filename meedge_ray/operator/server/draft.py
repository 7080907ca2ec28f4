"""Writes on top of what is committed, before anybody sees them."""

from collections.abc import Callable

from meedge_ray.operator.server.errors import Key
from meedge_ray.operator.server.memory import Memory
from meedge_ray.operator.server.records import Change, Object, Record, at_version, fresh, owners, serialised


class Draft:
    """The changes of one transaction; each sees those before it."""

    def __init__(self, memory: Memory) -> None:
        self.changes: list[Change] = []
        self.owners: dict[Key, frozenset[str]] = {}
        self._memory = memory
        self._records: dict[Key, Record | None] = {}

    def write(self, key: Key, change: Callable[[Object | None], Object | None]) -> Object:
        """Adds what `change` makes of the object, None being no object before and no object after.

        Returns:
            The object with its version: the one it has where nothing changed, that of its deletion where it is gone.
        """
        current = self._records[key] if key in self._records else self._memory.record(key)
        content = change(fresh(current.json) if current else None)
        if current and content is not None and serialised(content, current.version) == current.json:
            return at_version(content, current.version)
        version = self._memory.version + len(self.changes) + 1
        if content is None:
            assert current is not None
            content = at_version(fresh(current.json), version)
            self._add(Change("DELETED", version, key, serialised(content, version), current))
            self.owners[key] = frozenset()
            return content
        uids, json = owners(content), serialised(content, version)
        self._add(Change("MODIFIED" if current else "ADDED", version, key, json, current))
        self.owners[key] = uids
        return at_version(content, version)

    def _add(self, change: Change) -> None:
        self.changes.append(change)
        deleted = change.type == "DELETED"
        self._records[change.key] = None if deleted else Record(change.version, change.json)
