"""What the store keeps and gives out: objects as JSON, written once and sent to everybody as they are."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from meedge_ray.operator.server.errors import Key, bad_request

Object = dict[str, Any]


class Record(NamedTuple):
    """An object as it stands."""

    version: int
    json: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """One write."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    version: int
    key: Key
    json: bytes  # the object as it became; as it was, with the version of its deletion, when deleted
    replaced: Record | None

    @property
    def object(self) -> Object:
        """The object, shared by all who watch: never change it."""
        return shared(self.json)

    @property
    def before(self) -> Object | None:
        """What was there until then, shared as well: a selector may stop or begin to match."""
        return shared(self.replaced.json) if self.replaced else None


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the objects as they all were at one version."""

    version: int
    json: list[bytes]
    continue_token: str | None  # for the next page
    remaining: int | None  # how many objects later pages hold; None where a selector makes that unknown

    @property
    def items(self) -> list[Object]:
        """The objects, shared by all who list: never change them."""
        return [shared(each) for each in self.json]


@lru_cache(maxsize=2048)
def shared(content: bytes) -> Object:
    """The object of this JSON, parsed once for all who only read it."""
    return fresh(content)


def fresh(content: bytes) -> Object:
    """The object of this JSON, for one who changes it."""
    parsed: Object = json.loads(content)
    return parsed


def serialised(content: Object, version: int) -> bytes:
    """The object as JSON with sorted keys, so that equal objects are equal bytes.

    Raises:
        ApiError: it holds what JSON cannot say.
    """
    try:
        return json.dumps(at_version(content, version), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise bad_request(f"the object is not JSON: {error}") from None


def at_version(content: Object, version: int) -> Object:
    """The object with this resourceVersion; the one given stays as it is."""
    return {**content, "metadata": {**content.get("metadata", {}), "resourceVersion": str(version)}}


def owners(content: Object) -> frozenset[str]:
    """Uids of those that own the object.

    Raises:
        ApiError: a reference names nobody.
    """
    references = content.get("metadata", {}).get("ownerReferences") or ()
    try:
        return frozenset(reference["uid"] for reference in references)
    except (KeyError, TypeError):
        raise bad_request("metadata.ownerReferences: each needs a uid") from None
