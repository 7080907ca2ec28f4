"""What `kubectl get` shows: objects as rows, in the columns of their kind."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal

from meedge_ray.api.kinds import Column

Include = Literal["None", "Metadata", "Object"]
Find = Callable[[Any], list[Any]]

_NAME = Column(name="Name", type="string", json_path=".metadata.name", description="unique within its namespace")
_AGE = Column(name="Age", type="date", json_path=".metadata.creationTimestamp", description="since it was made")
NAMESPACES = (Column(name="Status", type="string", json_path=".status.phase", description="of its life"), _AGE)
DEFINITIONS = (
    Column(name="Created At", type="string", json_path=".metadata.creationTimestamp", description="when it was made"),
)
EVENTS = (  # of `event_view`
    Column(name="Last Seen", type="date", json_path=".lastSeen", description="since it happened last"),
    Column(name="Type", type="string", json_path=".type", description="Normal or Warning"),
    Column(name="Reason", type="string", json_path=".reason", description="why it happened, in one word"),
    Column(name="Object", type="string", json_path=".object", description="what it happened to"),
    Column(
        name="Subobject",
        type="string",
        json_path=".involvedObject.fieldPath",
        description="which part of that",
        priority=1,
    ),
    Column(name="Source", type="string", json_path=".sourceText", description="who says so", priority=1),
    Column(name="Message", type="string", json_path=".text", description="what happened, for people"),
    Column(name="First Seen", type="date", json_path=".firstSeen", description="since it began", priority=1),
    Column(name="Count", type="integer", json_path=".times", description="how often it happened", priority=1),
    Column(name="Name", type="string", json_path=".metadata.name", description="of the event", priority=1),
)

_STEP = re.compile(
    r"""\.(?P<field>(?:\\.|[^.\[\\\s])+)
    |\[\s*(?:'(?P<quoted>(?:\\.|[^'\\])*)'|"(?P<double>(?:\\.|[^"\\])*)"|(?P<index>-?\d{1,9})|(?P<all>\*))\s*\]
    |\[\?\(\s*@(?P<left>[^\s=!<>)]*)\s*(?:(?P<operator>==|!=|<=|>=|<|>)\s*(?P<right>"[^"]*"|'[^']*'|[^\s)]+)\s*)?\)\]""",
    re.VERBOSE,
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}


def table(
    columns: Sequence[Column],
    items: Iterable[Mapping[str, Any]],
    *,
    now: datetime,
    include: Include = "Metadata",
    view: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a meta.k8s.io/v1 Table.

    Args:
        columns: of the kind; the name comes before them where they have none. None at all: name and age.
        items: the objects.
        now: ages are counted up to it.
        include: what of an object comes with its row.
        view: what the columns are read from, instead of the object.
        metadata: of the list, such as its resourceVersion.
    """
    shown = tuple(columns) or (_AGE,)
    if all(column.name != _NAME.name for column in shown):
        shown = (_NAME, *shown)
    rows = []
    for item in items:
        seen = view(dict(item))
        row: dict[str, Any] = {"cells": [_cell(column, seen, now) for column in shown]}
        if include != "None":
            row["object"] = item if include == "Object" else partial_metadata(item)
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": dict(metadata or {}),
        "columnDefinitions": [_definition(column) for column in shown],
        "rows": rows,
    }


def partial_metadata(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object without anything but its metadata."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}


def event_view(event: dict[str, Any]) -> dict[str, Any]:
    """Return a core event with what `EVENTS` shows of it."""
    series, source, involved = (event.get(field) or {} for field in ("series", "source", "involvedObject"))
    first = event.get("firstTimestamp") or event.get("eventTime")
    kind, name = str(involved.get("kind", "")).lower(), involved.get("name")
    reporter = [
        source.get("component") or event.get("reportingComponent"),
        source.get("host") or event.get("reportingInstance"),
    ]
    return {
        **event,
        "firstSeen": first,
        "lastSeen": series.get("lastObservedTime") or event.get("lastTimestamp") or first,
        "times": series.get("count") or event.get("count") or 1,
        "object": f"{kind}/{name}" if name else kind,
        "sourceText": ", ".join(part for part in reporter if part),
        "text": str(event.get("message") or "").strip(),
    }


def age(passed: timedelta) -> str:
    """Return a duration as kubectl writes it: 45s, 3m5s, 12m, 2h, 5d3h, 400d, 2y30d."""
    seconds = int(passed.total_seconds())
    if seconds < 0:
        return "<invalid>" if seconds < -1 else "0s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return _with_rest(minutes, "m", seconds % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _with_rest(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _with_rest(days, "d", hours % 24, "h")
    if days < 2 * 365:
        return f"{days}d"
    return _with_rest(days // 365, "y", days % 365, "d") if days < 8 * 365 else f"{days // 365}y"


def _with_rest(count: int, unit: str, rest: int, rest_unit: str) -> str:
    return f"{count}{unit}{rest}{rest_unit}" if rest else f"{count}{unit}"


def _definition(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "type": column.type,
        "format": "name" if column == _NAME else "",
        "description": column.description,
        "priority": column.priority,
    }


def _cell(column: Column, item: Mapping[str, Any], now: datetime) -> str | int | bool | None:
    found = json_path(column.json_path)(item)
    value = found[0] if found else None
    if value is None:
        return None
    if column.type == "date":
        return _since(value, now)
    if column.type == "string":
        if isinstance(value, (dict, list, bool)):
            return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return str(value)
    if column.type == "boolean":
        return value if isinstance(value, bool) else None
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _since(value: object, now: datetime) -> str:
    try:
        moment = datetime.fromisoformat(str(value))
        return age(now - moment)
    except (ValueError, TypeError, OverflowError):  # TypeError: no time zone
        return "<invalid>"


@cache
def json_path(path: str) -> Find:
    r"""Return what finds the values at a JSONPath of printer columns; a field not there gives none.

    Fields (`.a`, `.a\.b`, `['a']`), items (`[0]`, `[-1]`, `[*]`) and filters (`[?(@.type=="Ready")]`).

    Raises:
        ValueError: it is another kind of path.
    """
    steps, at = [], 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            raise ValueError(f"{path!r} is no JSONPath of a column, from {path[at:]!r} on")
        steps.append(_step(match))
        at = match.end()

    def find(item: Any) -> list[Any]:  # noqa: ANN401 - any JSON
        values = [item]
        for step in steps:
            values = [found for value in values for found in step(value)]
        return values

    return find


def _step(match: re.Match[str]) -> Find:
    if match["left"] is not None:
        return _filter(match)
    if match["index"] is not None:
        index = int(match["index"])
        return lambda value: [value[index]] if isinstance(value, list) and -len(value) <= index < len(value) else []
    if match["all"] or match["field"] == "*":
        return _children
    field = re.sub(r"\\(.)", r"\1", match["field"] or match["quoted"] or match["double"] or "")
    return lambda value: [value[field]] if isinstance(value, dict) and field in value else []


def _children(value: Any) -> list[Any]:  # noqa: ANN401
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _filter(match: re.Match[str]) -> Find:
    left, operator, right = json_path(match["left"]), match["operator"], match["right"]
    if operator is None:
        return lambda value: [item for item in _children(value) if left(item)]
    wanted = right[1:-1] if right[0] in "\"'" else json.loads(right)

    def holds(item: Any) -> bool:  # noqa: ANN401
        return any(type(found) is type(wanted) and _COMPARE[operator](found, wanted) for found in left(item)[:1])

    return lambda value: [item for item in _children(value) if holds(item)]
