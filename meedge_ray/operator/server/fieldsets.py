"""Sets of fields in the form that `managedFields` keeps them in (FieldsV1), and what sets are for.

A set is a tree: `f:NAME` leads to a field, `k:{...}` to the item of a list with these keys, `v:...` to an item that is
this value. A node is in the set if it is empty or holds ".". No function changes its arguments; results share nodes.
"""

import json
from collections.abc import Iterator
from typing import Any

Fields = dict[str, Any]

ITSELF = "."
_MEMBER: Fields = {ITSELF: {}}
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def field(name: str) -> str:
    """Return the step to a field."""
    return f"f:{name}"


def item_with(keys: dict[str, Any]) -> str:
    """Return the step to the item of a list that has these keys."""
    return f"k:{_json(keys)}"


def item_that_is(value: Any) -> str:  # noqa: ANN401 - any JSON
    """Return the step to the item of a list that is this value."""
    return f"v:{_json(value)}"


def is_member(node: Fields) -> bool:
    """Whether the node itself is in its set, and not just something below it."""
    return not node or ITSELF in node


def union(left: Fields, right: Fields) -> Fields:
    """Return what is in either."""
    result = dict(left)
    for step, node in right.items():
        there = result.get(step)
        if there is None or step == ITSELF:
            result[step] = node
        elif there != node:
            result[step] = _short(union(there or _MEMBER, node or _MEMBER))
    return result


def difference(left: Fields, right: Fields) -> Fields:
    """Return what is in the left one alone."""
    result = {}
    for step, node in left.items():
        other = right.get(step)
        if other is None:
            result[step] = node
        elif step != ITSELF and (rest := difference(node or _MEMBER, other or _MEMBER)):
            result[step] = _short(rest)
    return result


def intersection(left: Fields, right: Fields) -> Fields:
    """Return what is in both."""
    result = {}
    for step, node in left.items():
        other = right.get(step)
        if other is None:
            continue
        if step == ITSELF:
            result[step] = node
        elif common := intersection(node or _MEMBER, other or _MEMBER):
            result[step] = _short(common)
    return result


def paths(fields: Fields) -> Iterator[str]:
    """Return the paths of all members as conflicts name them, such as `.spec.memory` or `.status.list[name="a"].x`."""
    for step, node in sorted(fields.items()):
        if step == ITSELF:
            continue
        here = _in_words(step)
        if is_member(node):
            yield here
        for path in paths(node):
            yield here + path


def well_formed(fields: object) -> bool:
    """Whether this is a set of fields, and nothing else."""
    if not isinstance(fields, dict):
        return False
    return all(node == {} if step == ITSELF else _is_step(step) and well_formed(node) for step, node in fields.items())


def _short(node: Fields) -> Fields:
    return {} if node == _MEMBER else node


def _is_step(step: object) -> bool:
    if not isinstance(step, str):
        return False
    if step.startswith("f:"):
        return True
    try:
        value = json.loads(step[2:])
    except (ValueError, RecursionError):
        return False
    return step.startswith("v:") or (step.startswith("k:") and isinstance(value, dict) and bool(value))


def _in_words(step: str) -> str:
    if step.startswith("f:"):
        return f".{step[2:]}"
    if step.startswith("v:"):
        return f"[={step[2:]}]"
    keys = json.loads(step[2:]).items()
    return f"[{','.join(f'{key}={_json(value)}' for key, value in keys)}]"


def _json(value: Any) -> str:  # noqa: ANN401
    return _ENCODER.encode(value)
