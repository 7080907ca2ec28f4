"""Kubernetes' protobuf, as far as kubectl sends it: `create namespace`, `auth can-i` and `auth whoami` know no JSON.

Kubernetes: staging/src/k8s.io/api/{core,authorization,authentication}/v1/generated.proto.
"""

from collections.abc import Iterator
from typing import Any

from meedge_ray.operator.server.errors import bad_request

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"

_MAGIC = b"k8s\x00"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10

Message = dict[int, tuple[str, Any]]  # number of the field: its name, and what it is
_TEXT, _TEXTS, _MAP = "text", "texts", "map"

_METADATA: Message = {
    1: ("name", _TEXT),
    2: ("generateName", _TEXT),
    3: ("namespace", _TEXT),
    11: ("labels", _MAP),
    12: ("annotations", _MAP),
    14: ("finalizers", _TEXTS),
}
_ACCESS: Message = {
    number: (name, _TEXT)
    for number, name in enumerate(("namespace", "verb", "group", "version", "resource", "subresource", "name"), 1)
}
_TYPE: Message = {1: ("apiVersion", _TEXT), 2: ("kind", _TEXT)}
_KINDS: dict[str, Message] = {
    "Namespace": {1: ("metadata", _METADATA)},
    "SelfSubjectReview": {1: ("metadata", _METADATA)},
    "SelfSubjectRulesReview": {1: ("metadata", _METADATA), 2: ("spec", {1: ("namespace", _TEXT)})},
    "SelfSubjectAccessReview": {
        1: ("metadata", _METADATA),
        2: (
            "spec",
            {
                1: ("resourceAttributes", _ACCESS),
                2: ("nonResourceAttributes", {1: ("path", _TEXT), 2: ("verb", _TEXT)}),
            },
        ),
    },
}


def decoded(body: bytes) -> dict[str, Any]:
    """Return the object that a body says, as its JSON would.

    Raises:
        ApiError: 400, it is broken, or of a kind that is read as JSON and YAML alone.
    """
    if not body.startswith(_MAGIC):
        raise bad_request("the body is no protobuf of Kubernetes")
    try:
        parts = dict(_fields(body[len(_MAGIC) :]))
        of_type = _message(parts.get(1, b""), _TYPE)
        known = _KINDS.get(of_type.get("kind", ""))
        if known is None:
            raise bad_request(f"{of_type.get('kind', 'this')!r} is not read as protobuf here; send application/json")
        return {**of_type, **_message(parts.get(2, b""), known)}
    except (ValueError, IndexError, TypeError) as error:
        raise bad_request(f"the body is broken protobuf: {error}") from None


def _message(data: bytes, known: Message) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, value in _fields(data):
        name, what = known.get(number, ("", None))
        if isinstance(what, dict):
            found[name] = _message(value, what)
        elif what == _TEXT and value:
            found[name] = value.decode()
        elif what == _TEXTS:
            found.setdefault(name, []).append(value.decode())
        elif what == _MAP:
            entry = dict(_fields(value))
            found.setdefault(name, {})[entry.get(1, b"").decode()] = entry.get(2, b"").decode()
    return found


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields that hold bytes; numbers say nothing here that matters."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _BYTES:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("it ends too early")
            yield number, data[at : at + length]
            at += length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"there is no wire type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(_LONGEST_VARINT):
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a number is too long")
