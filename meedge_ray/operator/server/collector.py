"""What nobody needs any longer goes: objects whose owners are gone, all of a deleted namespace, and old events."""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from meedge_ray.operator.server import namespaces
from meedge_ray.operator.server.core import EVENTS
from meedge_ray.operator.server.deleting import delete
from meedge_ray.operator.server.errors import ApiError, ExpiredError, Key, NotFoundError
from meedge_ray.operator.server.metadata import FOREGROUND, ORPHAN
from meedge_ray.operator.server.records import Change, Object
from meedge_ray.operator.server.resource import Resource
from meedge_ray.operator.server.resources import RESOURCES
from meedge_ray.operator.server.store import Store

_LOG = logging.getLogger(__name__)
_AT_ONCE = 64  # objects looked at together, so that their writes share a commit
_RETRY_SECONDS = 1.0
_SWEEPS = 10  # for old events, in the life of one

_BY_KIND = {(resource.api_version, resource.kind): resource for resource in RESOURCES}
_FOLLOWED = [resource for resource in RESOURCES if resource is not EVENTS and "delete" in resource.verbs]


class Collector:
    """Looks at every object that may have to go, whenever something about it has changed.

    It goes by what is stored alone, so that it may be stopped at any time and takes up where it was.
    """

    def __init__(self, store: Store, *, event_ttl_s: float) -> None:
        self._store = store
        self._event_ttl = timedelta(seconds=event_ttl_s)
        self._suspects: dict[Key, None] = {}  # in order, each once
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Collect until cancelled."""
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    for resource in _FOLLOWED:
                        tasks.create_task(self._follow(resource))
                    tasks.create_task(self._look_at_suspects())
                    tasks.create_task(self._expire_events())
            except* Exception:
                _LOG.exception("the collector begins anew")
                await asyncio.sleep(_RETRY_SECONDS)

    def suspect(self, keys: Iterable[Key]) -> None:
        """Have these looked at."""
        self._suspects.update(dict.fromkeys(keys))
        if self._suspects:
            self._news.set()

    async def _follow(self, resource: Resource) -> None:
        while not self._store.closed:
            page = self._store.list(resource.stored, None)
            self.suspect(_key(resource, item) for item in page.items)
            watch = self._store.watch(resource.stored, None, page.version)
            with suppress(ExpiredError):
                while not self._store.closed:
                    for change in await watch.next():
                        self._suspect_after(change)

    def _suspect_after(self, change: Change) -> None:
        metadata = change.object["metadata"]
        if change.type == "DELETED":
            self.suspect(self._store.owned_by(metadata["uid"]))
            self.suspect(_owner_key(change.key, owner) for owner in _owners(metadata) if _resource(owner))
            if change.key.namespace:
                self.suspect([namespaces.key(change.key.namespace)])
        elif (
            change.before is None
            or "deletionTimestamp" in metadata
            or _owners(metadata) != _owners(change.before["metadata"])
        ):
            self.suspect([change.key])

    async def _look_at_suspects(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._suspects:
                some = [self._suspects.popitem()[0] for _ in range(min(_AT_ONCE, len(self._suspects)))]
                await asyncio.gather(*(self._look_again_if_it_fails(key) for key in some))

    async def _look_again_if_it_fails(self, key: Key) -> None:
        try:
            with suppress(NotFoundError):  # already gone
                await self._look_at(key)
        except ApiError as error:  # somebody was first, or the disk is full
            _LOG.info("%s: %s", key, error)
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self.suspect, [key])

    async def _look_at(self, key: Key) -> None:
        content = self._store.get(key)
        metadata = content["metadata"]
        if "deletionTimestamp" in metadata:
            await self._let_go(key, metadata)
            if key.resource == namespaces.STORED:
                await self._empty(key)
        elif key.namespace and self._find(namespaces.key(key.namespace)) is None:
            await delete(self._store, key)  # made while its namespace went
        else:
            await self._check_owners(key, metadata)

    async def _check_owners(self, key: Key, metadata: Object) -> None:
        owners = _owners(metadata)
        states = [self._state(key, owner) for owner in owners]
        if all(state == "there" for state in states):
            return
        if "there" in states:
            lost = {owner["uid"] for owner, state in zip(owners, states, strict=True) if state != "there"}
            await self._disown(key, lost)
            return
        options: Object = {"preconditions": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}}
        if "leaving" in states and self._store.owned_by(metadata["uid"]):
            options["propagationPolicy"] = "Foreground"
        await delete(self._store, key, options)

    def _state(self, key: Key, owner: Object) -> str:
        """`there`, `gone`, or `leaving`: it is being deleted, and its dependents are to go first."""
        resource = _resource(owner)
        if resource is None or (resource.namespaced and not key.namespace):
            return "there"  # nobody here can know: better to keep than to lose
        found = self._find(_owner_key(key, owner))
        if found is None or found["metadata"]["uid"] != owner["uid"]:
            return "gone"
        metadata = found["metadata"]
        leaves = "deletionTimestamp" in metadata and FOREGROUND in metadata.get("finalizers", ())
        return "leaving" if leaves else "there"

    async def _let_go(self, key: Key, metadata: Object) -> None:
        """Do what the deletion of an object waits for, and then take away the collector's own hold on it."""
        finalizers, dependents = metadata.get("finalizers", ()), self._store.owned_by(metadata["uid"])
        if ORPHAN in finalizers:
            await asyncio.gather(*(self._disown(dependent, {metadata["uid"]}) for dependent in dependents))
            await self._release(key, ORPHAN)
        elif FOREGROUND in finalizers:
            self.suspect(dependents)
            if not any(self._blocks(dependent, metadata["uid"]) for dependent in dependents):
                await self._release(key, FOREGROUND)

    def _blocks(self, key: Key, uid: str) -> bool:
        found = self._find(key)
        owners = _owners(found["metadata"]) if found else []
        return any(owner["uid"] == uid and owner.get("blockOwnerDeletion") is True for owner in owners)

    async def _disown(self, key: Key, uids: set[str]) -> None:
        def change(before: Object) -> Object:
            metadata = before["metadata"]
            kept = [owner for owner in _owners(metadata) if owner["uid"] not in uids]
            return {**before, "metadata": _with(metadata, "ownerReferences", kept)}

        with suppress(NotFoundError):
            await self._store.update(key, change)

    async def _release(self, key: Key, finalizer: str) -> None:
        def change(before: Object) -> Object | None:
            metadata = before["metadata"]
            kept = [name for name in metadata.get("finalizers", ()) if name != finalizer]
            after = {**before, "metadata": _with(metadata, "finalizers", kept)}
            return None if namespaces.finished(key, after) else after

        await self._store.update(key, change)

    async def _empty(self, key: Key) -> None:
        """Delete all that is in a namespace, and then the namespace."""
        if await self._delete_content(key.name):
            return  # each that goes has the namespace looked at again
        await self._store.update(key, partial(namespaces.emptied, key))

    async def _delete_content(self, namespace: str) -> bool:
        """Return whether anything is left."""
        contained = [resource for resource in RESOURCES if resource.namespaced]
        keys = [
            _key(resource, item)
            for resource in contained
            for item in self._store.list(resource.stored, namespace).items
            if "deletionTimestamp" not in item["metadata"]
        ]
        await self._delete_all(keys)
        return any(self._store.list(resource.stored, namespace, limit=1).json for resource in contained)

    async def _delete_all(self, keys: list[Key]) -> None:
        for start in range(0, len(keys), _AT_ONCE):
            await asyncio.gather(*(self._delete_if_there(key) for key in keys[start : start + _AT_ONCE]))

    async def _delete_if_there(self, key: Key) -> None:
        with suppress(NotFoundError):
            await delete(self._store, key)

    async def _expire_events(self) -> None:
        while True:
            try:
                await self._delete_all([_key(EVENTS, event) for event in self._old_events(datetime.now(UTC))])
            except ApiError as error:
                _LOG.warning("old events stay for now: %s", error)
            await asyncio.sleep(max(self._event_ttl.total_seconds() / _SWEEPS, _RETRY_SECONDS))

    def _old_events(self, now: datetime) -> list[Object]:
        oldest = now - self._event_ttl
        return self._store.list(EVENTS.stored, None, matches=lambda event: _last(event, now) < oldest).items

    def _find(self, key: Key) -> Object | None:
        try:
            return self._store.get(key)
        except NotFoundError:
            return None


def _key(resource: Resource, content: Object) -> Key:
    return resource.key(content["metadata"].get("namespace", ""), content["metadata"]["name"])


def _owners(metadata: Object) -> list[Object]:
    return metadata.get("ownerReferences") or []


def _resource(owner: Object) -> Resource | None:
    return _BY_KIND.get((owner["apiVersion"], owner["kind"]))


def _owner_key(key: Key, owner: Object) -> Key:
    return _BY_KIND[owner["apiVersion"], owner["kind"]].key(key.namespace, owner["name"])


def _with(metadata: Object, field: str, values: list[Any]) -> Object:
    rest = {name: value for name, value in metadata.items() if name != field}
    return {**rest, field: values} if values else rest


def _last(event: Object, now: datetime) -> datetime:
    """When it happened last. What clients say of the future does not count: such an event would never go."""
    said = (event.get("series") or {}).get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime")
    moments = [_moment(text) for text in (*said, event["metadata"]["creationTimestamp"])]
    return max((moment for moment in moments if moment is not None and moment <= now), default=now)


def _moment(text: Any) -> datetime | None:  # noqa: ANN401 - any JSON
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else None
