"""Lists in pages that are all of one version."""

import base64
import binascii
import json
from collections.abc import Callable
from typing import NamedTuple

from meedge_ray.operator.server.errors import ExpiredError, bad_request, expired
from meedge_ray.operator.server.memory import Memory, Place
from meedge_ray.operator.server.records import Object, Page, Record, shared


class _Mark(NamedTuple):
    version: int
    last: Place


def page(
    memory: Memory,
    resource: str,
    namespace: str | None,
    limit: int | None,
    continue_token: str | None,
    matches: Callable[[Object], bool] | None,
) -> Page:
    """See `Store.list`."""
    mark = _read(continue_token) if continue_token else None
    with memory.lock:
        version = mark.version if mark else memory.version
        places = _standing(memory, resource, version)
    rows = sorted(
        (place, record)
        for place, record in places.items()
        if namespace in (None, place[0]) and (mark is None or place > mark.last)
    )
    taken, end = _take(rows, limit, matches)
    left = len(rows) - end
    token = _write(_Mark(version, rows[end - 1][0])) if left else None
    return Page(version, taken, token, left if matches is None else None)


def _take(
    rows: list[tuple[Place, Record]], limit: int | None, matches: Callable[[Object], bool] | None
) -> tuple[list[bytes], int]:
    taken = list[bytes]()
    for at, (_, record) in enumerate(rows):
        if limit and len(taken) == limit:
            return taken, at
        if matches is None or matches(shared(record.json)):
            taken.append(record.json)
    return taken, len(rows)


def _standing(memory: Memory, resource: str, version: int) -> dict[Place, Record]:
    try:
        return memory.standing(resource, version)
    except ExpiredError:
        what = "The provided continue parameter is too old to display a consistent list result. "
        raise expired(what + "You can start a new list without the continue parameter.") from None


def _write(mark: _Mark) -> str:
    return base64.urlsafe_b64encode(json.dumps([mark.version, *mark.last]).encode()).decode()


def _read(token: str) -> _Mark:
    try:
        version, namespace, name = json.loads(base64.urlsafe_b64decode(token))
        if not (isinstance(version, int) and isinstance(namespace, str) and isinstance(name, str)):
            raise ValueError(token)
    except (binascii.Error, ValueError, TypeError):
        raise bad_request("continue key is not valid") from None
    return _Mark(version, (namespace, name))
