"""What the API server holds of one kind: listed once, kept by watch events, and looked through every minute."""

import time
from threading import Lock
from typing import NamedTuple

from meedge_ray.operator.client.api_client import ApiClient, Object
from meedge_ray.operator.client.resources import Resource

_RENEWED_AFTER_S = 60.0


class Name(NamedTuple):
    """Where an object is among those of its kind."""

    namespace: str
    name: str


def name_of(content: Object) -> Name:
    """Return the namespace and name of an object."""
    return Name(content["metadata"]["namespace"], content["metadata"]["name"])


class View:
    """The objects of a kind. Thread-safe; whoever gets an object leaves it as it is."""

    def __init__(self, api: ApiClient, resource: Resource) -> None:
        self.resource = resource
        self._api = api
        self._objects: dict[Name, Object] = {}
        self._lock, self._listing = Lock(), Lock()
        self._listed_at = -_RENEWED_AFTER_S

    def objects(self) -> list[Object]:
        """Return all objects, oldest first.

        Raises:
            MeedgeError: they were never listed, and the server does not answer.
        """
        with self._listing:
            if time.monotonic() - self._listed_at >= _RENEWED_AFTER_S:
                self._list()
        with self._lock:
            return sorted(self._objects.values(), key=_age)

    def by_name(self) -> dict[Name, Object]:
        """Return all objects by namespace and name, oldest first."""
        return {name_of(content): content for content in self.objects()}

    def see(self, content: Object) -> None:
        """Take note of an object as it is now; one that is older than what is known changes nothing."""
        name = name_of(content)
        with self._lock:
            known = self._objects.get(name)
            if known is None or _version(known) < _version(content):
                self._objects[name] = content

    def forget(self, content: Object) -> None:
        """Take note that an object is gone."""
        name = name_of(content)
        with self._lock:
            known = self._objects.get(name)
            if known is not None and known["metadata"]["uid"] == content["metadata"]["uid"]:
                del self._objects[name]

    def _list(self) -> None:
        # A watch that was interrupted for long does not tell what was deleted meanwhile.
        before = list(self._objects.values())
        listed: list[Object] = self._api.list(self.resource)["items"]
        self._listed_at = time.monotonic()
        there = {content["metadata"]["uid"] for content in listed}
        for content in before:
            if content["metadata"]["uid"] not in there:
                self.forget(content)
        for content in listed:
            self.see(content)


def _version(content: Object) -> int:
    return int(content["metadata"]["resourceVersion"])


def _age(content: Object) -> tuple[str, Name]:
    return content["metadata"].get("creationTimestamp", ""), name_of(content)
