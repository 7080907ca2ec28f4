"""Objects by their schema: which fields they have, how two differ, and how one is merged into another.

Maps and objects are merged field by field, lists as `x-kubernetes-list-type` says: by keys (map), by value (set), or
as a whole, which is how every list without one is merged, and every object with `x-kubernetes-map-type: atomic`.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from meedge_ray.operator.server.errors import bad_request
from meedge_ray.operator.server.fieldsets import ITSELF, Fields, field, is_member, item_that_is, item_with

Schema = Mapping[str, Any]

_ANY: Schema = {}
_ABSENT: Any = object()


class _Child(NamedTuple):
    value: Any
    schema: Schema
    named: bool  # a field that the schema names, and not a key of a map or an item of a list


def fields_of(content: Mapping[str, Any], schema: Schema) -> Fields:
    """Return the fields that an applied object says something about.

    Raises:
        ApiError: 400, an item of a list lacks its keys, or is there twice.
    """
    _check_lists(content, schema, "")
    return _fields(content, schema, itself=False, everything=False)


def difference_of(before: Mapping[str, Any], after: Mapping[str, Any], schema: Schema) -> tuple[Fields, Fields]:
    """Return which fields were added or changed, and which removed."""
    named, rest = schema.get("properties", _ANY), _rest(schema)
    changed: Fields = {}
    removed: Fields = {}
    for name in {**before, **after}:
        old, new = before.get(name, _ABSENT), after.get(name, _ABSENT)
        if old is not new and old != new:
            _compare(field(name), old, new, named.get(name, rest), (changed, removed))
    return changed, removed


def merged(live: Any, config: Any, schema: Schema) -> Any:  # noqa: ANN401
    """Return the live value with everything that the applied one says."""
    old, new = _children(live, schema), _children(config, schema)
    if old is None or new is None or type(live) is not type(config):
        return config
    both = {
        step: merged(old[step].value, child.value, child.schema) if step in old else child.value
        for step, child in new.items()
    }
    if isinstance(config, dict):
        return {**live, **{step.removeprefix("f:"): value for step, value in both.items()}}
    return [both[step] if step in both else old[step].value for step in _order(list(old), list(new))]


def without(content: Any, fields: Fields, schema: Schema) -> Any:  # noqa: ANN401
    """Return the value without the members of a set of fields, and what lies below them."""
    children = _children(content, schema)
    if children is None:
        return content
    kept = {}
    for step, child in children.items():
        node = fields.get(step)
        if node is None:
            kept[step] = child.value
        elif not is_member(node):
            kept[step] = without(child.value, node, child.schema)
    if isinstance(content, dict):
        return {step.removeprefix("f:"): value for step, value in kept.items()}
    return list(kept.values())


def with_parents(fields: Fields, schema: Schema) -> Fields:
    """Return the set with every named field in it that has a member below."""
    result: Fields = {}
    for step, node in fields.items():
        if not node:
            result[step] = node
            continue
        child, named = _below(schema, step)
        result[step] = {**({ITSELF: {}} if named else {}), **with_parents(node, child)}
    return result


def _fields(value: Any, schema: Schema, *, itself: bool, everything: bool) -> Fields:  # noqa: ANN401
    children = _children(value, schema)
    if not children:
        return {}
    inner = {
        step: _fields(child.value, child.schema, itself=everything or not child.named, everything=everything)
        for step, child in children.items()
    }
    return {ITSELF: {}, **inner} if itself else inner


def _compare(step: str, old: Any, new: Any, schema: Schema, found: tuple[Fields, Fields]) -> None:  # noqa: ANN401
    changed, removed = found
    if new is _ABSENT:
        removed[step] = _fields(old, schema, itself=True, everything=True)
    elif old is _ABSENT:
        changed[step] = _fields(new, schema, itself=True, everything=True)
    else:
        more, less = _difference(old, new, schema)
        if more is not None:
            changed[step] = more
        if less is not None:
            removed[step] = less


def _difference(old: Any, new: Any, schema: Schema) -> tuple[Fields | None, Fields | None]:  # noqa: ANN401
    if isinstance(old, dict) and isinstance(new, dict) and not _is_atomic(schema):
        changed, removed = difference_of(old, new, schema)
        return changed or None, removed or None
    if isinstance(old, list) and isinstance(new, list):
        old_steps, new_steps = _steps(old, schema), _steps(new, schema)
        if old_steps is not None and new_steps is not None:
            return _items_difference(
                dict(zip(old_steps, old, strict=True)), dict(zip(new_steps, new, strict=True)), schema
            )
    lost = _fields(old, schema, itself=False, everything=True)
    return _fields(new, schema, itself=True, everything=True), lost or None


def _items_difference(
    before: Mapping[str, Any], after: Mapping[str, Any], schema: Schema
) -> tuple[Fields | None, Fields | None]:
    changed: Fields = {}
    removed: Fields = {}
    for step in {**before, **after}:
        old, new = before.get(step, _ABSENT), after.get(step, _ABSENT)
        if old is not new and old != new:
            _compare(step, old, new, schema.get("items", _ANY), (changed, removed))
    return changed or None, removed or None


def _is_atomic(schema: Schema) -> bool:
    return schema.get("x-kubernetes-map-type") == "atomic"


def _children(value: Any, schema: Schema) -> dict[str, _Child] | None:  # noqa: ANN401
    """What a value is merged by; None for one that is merged as a whole."""
    if isinstance(value, dict) and not _is_atomic(schema):
        named, rest = schema.get("properties", _ANY), _rest(schema)
        return {field(name): _Child(item, named.get(name, rest), name in named) for name, item in value.items()}
    if isinstance(value, list) and (steps := _steps(value, schema)) is not None:
        items = schema.get("items", _ANY)
        return {step: _Child(item, items, False) for step, item in zip(steps, value, strict=True)}
    return None


def _below(schema: Schema, step: str) -> tuple[Schema, bool]:
    if not step.startswith("f:"):
        return schema.get("items", _ANY), False
    named, name = schema.get("properties", _ANY), step[2:]
    return named.get(name, _rest(schema)), name in named


def _rest(schema: Schema) -> Schema:
    rest = schema.get("additionalProperties")
    return rest if isinstance(rest, dict) else _ANY


def _steps(items: list[Any], schema: Schema) -> list[str] | None:
    """The steps to the items of a list that is merged item by item; None where it is not, or an item lacks its keys."""
    if schema.get("x-kubernetes-list-type") == "set":
        return [item_that_is(item) for item in items]
    if schema.get("x-kubernetes-list-type") != "map":
        return None
    names = schema.get("x-kubernetes-list-map-keys", ())
    try:
        return [item_with({name: item[name] for name in names}) for item in items]
    except (KeyError, TypeError):
        return None


def _order(old: list[str], new: list[str]) -> list[str]:
    """Both in one order: that of the new ones, and others of the old ones as early as those before them allow."""
    there, place = set(old), {step: index for index, step in enumerate(new)}
    shared = [step for step in new if step in there]
    result: list[str] = []
    taken = shared_taken = 0
    for step in old:
        if step not in place:
            result.append(step)
        elif shared_taken < len(shared) and step == shared[shared_taken]:
            result += new[taken : place[step] + 1]
            taken, shared_taken = place[step] + 1, shared_taken + 1
    return result + new[taken:]


def _check_lists(value: Any, schema: Schema, path: str) -> None:  # noqa: ANN401
    if isinstance(value, list) and schema.get("x-kubernetes-list-type") in ("map", "set"):
        steps = _steps(value, schema)
        if steps is None:
            keys = ", ".join(schema.get("x-kubernetes-list-map-keys", ()))
            raise bad_request(f"{path or '.'}: every item of this list needs its keys: {keys}")
        if len(set(steps)) < len(steps):
            twice, _ = Counter(steps).most_common(1)[0]
            raise bad_request(f"{path or '.'}: duplicate entries for key {twice[2:]}")
    for step, child in (_children(value, schema) or {}).items():
        _check_lists(child.value, child.schema, f"{path}.{step[2:]}" if step.startswith("f:") else path)
