"""Bodies of requests: JSON and YAML that cannot hurt, read into plain objects."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import yaml
from starlette.requests import ClientDisconnect, Request

from meedge_ray.operator.server import protobuf
from meedge_ray.operator.server.errors import ApiError, bad_request, too_large, unsupported_media_type

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML was built without it
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

_NEEDED = object()
_BYTES = 3 * 2**20
_YAML_BYTES = 2**18
_DEPTH = 64
_READ_SECONDS = 30.0
_LARGEST_INTEGER = 2**63
_YAML_TAGS = {"null", "bool", "int", "float", "str", "seq", "map"}


async def content(request: Request, default: Any = _NEEDED) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Return what the body says, or the default where it is empty and there is one.

    Raises:
        ApiError: it is larger than 3 MiB, did not come within 30 s, is of another media type than JSON or YAML, or
            what `parse` raises.
    """
    body = await _read(request)
    return default if not body and default is not _NEEDED else parse(body, media_type(request))


def media_type(request: Request) -> str:
    """Return the media type of the body without parameters, in lower case."""
    return request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()


def parse(body: bytes, media_type: str) -> Any:  # noqa: ANN401
    """Return what a body says: JSON where its media type ends in `json`, YAML where in `yaml`, Kubernetes' protobuf.

    Raises:
        ApiError: another media type; malformed; a field given twice; deeper than 64 levels; YAML with aliases.
    """
    if media_type.endswith("json"):
        return _from_json(body)
    if media_type == protobuf.MEDIA_TYPE:
        return protobuf.decoded(body)
    if not media_type.endswith("yaml"):
        raise unsupported_media_type(f"{media_type[:80]!r} is not read here; send application/json or application/yaml")
    try:
        return _from_json(body)  # as kubectl sends it under either name
    except ApiError:
        return _from_yaml(body)


async def _read(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(_READ_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _BYTES:
                    raise too_large(_BYTES)
    except TimeoutError:
        raise bad_request(f"the body did not come within {_READ_SECONDS:g} s") from None
    except ClientDisconnect:
        raise bad_request("the client went away before the body was complete") from None
    return bytes(body)


def _from_json(body: bytes) -> Any:  # noqa: ANN401
    try:
        content = json.loads(
            body.decode(),
            object_pairs_hook=_object,
            parse_constant=_no_number,
            parse_float=_float,
            parse_int=_integer,
        )
        if b"\\u" in body:
            json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except RecursionError:
        raise bad_request(f"the body is nested deeper than {_DEPTH} levels") from None
    except ValueError as error:
        raise bad_request(f"the body is no JSON: {error}") from None
    if body.count(b"{") + body.count(b"[") > _DEPTH:
        _check_depth(content)
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"field {name[:80]!r} is given twice")
    return content


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is out of range")
    return number


def _integer(text: str) -> int:
    if len(text) > 20 or not -_LARGEST_INTEGER <= (number := int(text)) < _LARGEST_INTEGER:
        raise ValueError(f"{text[:24]} has more than 64 bits")
    return number


def _check_depth(content: Any) -> None:  # noqa: ANN401
    level = [content]
    for _ in range(_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise bad_request(f"the body is nested deeper than {_DEPTH} levels")


def _children(node: Any) -> Iterable[Any]:  # noqa: ANN401
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


class _Loader(_SafeLoader):
    """YAML with JSON's types alone: a date stays text, a field is text, and nothing is merged into anything."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    for name, _ in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise yaml.YAMLError("a field's name must be text")
    return _object([(name.value, loader.construct_object(value, deep=True)) for name, value in node.value])


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in _YAML_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _YAML_TAGS
}
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _from_yaml(body: bytes) -> Any:  # noqa: ANN401
    if len(body) > _YAML_BYTES:
        raise too_large(_YAML_BYTES)
    try:
        _refuse_bombs(body)
        content = yaml.load(body, Loader=_Loader)  # noqa: S506 - a safe loader with less
    except (yaml.YAMLError, ValueError, LookupError) as error:
        raise bad_request(f"the body is no YAML: {error}") from None
    return _from_json(json.dumps(content).encode())


def _refuse_bombs(body: bytes) -> None:
    depth = 0
    for event in yaml.parse(body, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise bad_request("the body has YAML aliases, which are not read here")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH:
            raise bad_request(f"the body is nested deeper than {_DEPTH} levels")
