"""Which resource, namespace and object a path names."""

from typing import NamedTuple

from meedge_ray.operator.server.errors import Key, no_such_path
from meedge_ray.operator.server.resource import Resource
from meedge_ray.operator.server.resources import RESOURCES

_AT = {(resource.group, resource.version, resource.plural): resource for resource in RESOURCES}
_STATUS = "status"


class Target(NamedTuple):
    """What a request is about: one object, or all of a namespace, or of every namespace."""

    resource: Resource
    namespace: str | None  # "" for what has none
    name: str  # "" for all
    subresource: str  # "" for none

    @property
    def key(self) -> Key:
        """Its name in the store."""
        return self.resource.key(self.namespace or "", self.name)


def target(path: str) -> Target:
    """Read `/api/v1/...` and `/apis/GROUP/VERSION/...`.

    Raises:
        ApiError: 404, nothing is served there.
    """
    match path.strip("/").split("/"):
        case ["api", "v1", *rest]:
            found = _within("", "v1", rest)
        case ["apis", group, version, *rest]:
            found = _within(group, version, rest)
        case _:
            found = None
    if found is None:
        raise no_such_path()
    return found


def _within(group: str, version: str, rest: list[str]) -> Target | None:
    namespace = None
    match rest:
        case ["namespaces", within, plural, *below] if (group, version, plural) in _AT:
            namespace, rest = within, [plural, *below]
    if not 1 <= len(rest) <= 3 or not all(rest) or namespace == "":
        return None
    plural, name, subresource = (*rest, "", "")[:3]
    resource = _AT.get((group, version, plural))
    if resource is None or (subresource and not (resource.custom and subresource == _STATUS)):
        return None
    if not resource.namespaced:
        return None if namespace else Target(resource, "", name, subresource)
    return None if name and namespace is None else Target(resource, namespace, name, subresource)
