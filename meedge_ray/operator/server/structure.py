"""Content against a structural schema: fields that it does not know, and values of another type than it says."""

from collections.abc import Iterator, Mapping
from typing import Any

from meedge_ray.api.kinds import FieldProblem

Schema = Mapping[str, Any]

_TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def pruned(content: dict[str, Any], schema: Schema) -> tuple[dict[str, Any], list[str]]:
    """Return an object without the fields that its schema does not know, and their paths; metadata stays as it is."""
    unknown: list[str] = []
    known = _pruned({**content, "metadata": {}}, schema, "", unknown)
    return {**known, "metadata": content["metadata"]}, unknown


def _pruned(value: Any, schema: Schema, path: str, unknown: list[str]) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, list):
        items = schema.get("items", {})
        return [_pruned(item, items, f"{path}[{index}]", unknown) for index, item in enumerate(value)]
    if not isinstance(value, dict) or not _is_closed(schema):
        return value
    kept = {}
    for name, child in value.items():
        below = f"{path}.{name}" if path else name
        if (inner := _field(schema, name)) is None:
            unknown.append(below)
        else:
            kept[name] = _pruned(child, inner, below, unknown)
    return kept


def problems(content: Mapping[str, Any], schema: Schema) -> list[FieldProblem]:
    """Return unknown fields, values of a wrong type, and required fields that are missing, outside metadata."""
    return list(_problems({**content, "metadata": {}}, schema, ""))


def _problems(value: Any, schema: Schema, path: str) -> Iterator[FieldProblem]:  # noqa: ANN401
    wanted = _TYPES.get(schema.get("type", ""))
    if wanted and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
        yield FieldProblem(path, "FieldValueInvalid", f"Invalid value: must be of type {schema['type']}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _problems(item, schema.get("items", {}), f"{path}[{index}]")
    elif isinstance(value, dict):
        for name in schema.get("required", ()):
            if value.get(name) is None:
                yield FieldProblem(f"{path}.{name}" if path else name, "FieldValueRequired", "Required value")
        for name, child in value.items():
            below = f"{path}.{name}" if path else name
            if (inner := _field(schema, name)) is None:
                yield FieldProblem(below, "FieldValueForbidden", "Forbidden: unknown field")
            elif child is not None:
                yield from _problems(child, inner, below)


def _is_closed(schema: Schema) -> bool:
    return schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields")


def _field(schema: Schema, name: str) -> Schema | None:
    """The schema of a field, None where none of that name is known."""
    found = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
    if isinstance(found, Mapping):
        return found
    return None if _is_closed(schema) else {}
