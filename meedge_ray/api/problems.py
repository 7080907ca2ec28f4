"""What is wrong with an object, field by field, as Kubernetes says it."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from meedge_ray.api.fields import FieldError

Reason = Literal["FieldValueInvalid", "FieldValueRequired", "FieldValueNotSupported", "FieldValueForbidden"]

_METADATA = ("name", "labels", "annotations")
_MOST_PROBLEMS = 100  # of an object
_MOST_SHOWN = 80  # characters of a wrong value, or of a path's part
_WORDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} of them",
    "too_long": "must have at most {max_length} of them",
    "string_too_short": "must be at least {min_length} characters long",
    "string_too_long": "must be at most {max_length} characters long",
    "string_pattern_mismatch": "must match {pattern}",
    "json_invalid": "is no JSON: {error}",
}
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class FieldProblem(NamedTuple):
    """One wrong field. `field` is its path, such as `spec.zoo.convolutions[2].kind`; `reason` a Kubernetes cause."""

    field: str
    reason: Reason
    message: str


def manifest_problems(manifest: type[BaseModel], content: Any) -> list[FieldProblem]:  # noqa: ANN401 - any JSON
    """Return what is wrong with an object but for its status, and those of its metadata that only a server writes."""
    if not isinstance(content, Mapping):
        return [_invalid("", "must be an object")]
    document = {field: value for field, value in content.items() if field != "status"}
    if isinstance(metadata := content.get("metadata"), Mapping):
        document["metadata"] = {field: metadata[field] for field in _METADATA if metadata.get(field) is not None}
    return _problems(manifest, document, ())


def status_problems(status: type[BaseModel], content: Any) -> list[FieldProblem]:  # noqa: ANN401 - any JSON
    """Return what is wrong with the value of an object's status."""
    return _problems(status, content, ("status",))


def changed_for_ever(schema: Mapping[str, Any], content: Any, before: Any) -> list[FieldProblem]:  # noqa: ANN401
    """Return the fields that the schema says are immutable, and that differ."""
    return list(_changed(schema, content, before, ()))


def _changed(schema: Mapping[str, Any], content: Any, before: Any, path: tuple[str, ...]) -> Iterable[FieldProblem]:  # noqa: ANN401
    for rule in schema.get("x-kubernetes-validations", ()):
        if rule["rule"] == "self == oldSelf" and content != before:
            yield FieldProblem(field_path(path), "FieldValueForbidden", f"Forbidden: {rule['message']}")
    if isinstance(content, Mapping) and isinstance(before, Mapping):
        for name, field in schema.get("properties", {}).items():
            if name in content and name in before:
                yield from _changed(field, content[name], before[name], (*path, name))


def _problems(model: type[BaseModel], content: Any, path: tuple[str, ...]) -> list[FieldProblem]:  # noqa: ANN401
    try:
        # Through JSON, where strictness tells "3" from 3 and yet takes a list for a tuple.
        model.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False)[:_MOST_PROBLEMS]
        return [_in_words(problem, path) for problem in problems if not _is_consequence(problem, problems)]
    except (RecursionError, TypeError, ValueError):
        return [_invalid(field_path(path), "is no JSON, or is nested too deeply")]
    return []


def _is_consequence(problem: ErrorDetails, problems: Iterable[ErrorDetails]) -> bool:
    # pydantic counts only the good items of a list: one that is wrong makes it too short as well.
    place = problem["loc"]
    return problem["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in problems
    )


def _in_words(problem: ErrorDetails, path: tuple[str | int, ...]) -> FieldProblem:
    context = problem.get("ctx", {})
    error = context.get("error")
    if isinstance(error, FieldError):
        return _invalid(field_path((*path, *problem["loc"], *error.field)), error.message)
    field = field_path((*path, *problem["loc"]))
    match problem["type"]:
        case "missing":
            return FieldProblem(field, "FieldValueRequired", "Required value")
        case "extra_forbidden":
            return FieldProblem(field, "FieldValueForbidden", "Forbidden: unknown field")
        case "literal_error":
            supported = context["expected"].replace(" or ", ", ").replace("'", '"')
            message = f"Unsupported value: {_shown(problem['input'])}: supported values: {supported}"
            return FieldProblem(field, "FieldValueNotSupported", message)
        case "value_error":
            return _invalid(field, str(error))
    words = _WORDS.get(problem["type"])
    return _invalid(field, f"{_shown(problem['input'])}: {words.format(**context) if words else problem['msg']}")


def _shown(value: Any) -> str:  # noqa: ANN401 - any JSON
    text = json.dumps(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _invalid(field: str, message: str) -> FieldProblem:
    return FieldProblem(field, "FieldValueInvalid", f"Invalid value: {message}")


def field_path(parts: Iterable[str | int]) -> str:
    """Return a field's path as Kubernetes writes it: `a.b[0].c`, and `a[some/key]` where a dot would mislead."""
    path = ""
    for part in parts:
        if isinstance(part, str) and _PLAIN.fullmatch(part):
            path += f".{part[:_MOST_SHOWN]}" if path else part[:_MOST_SHOWN]
        else:
            path += f"[{str(part)[:_MOST_SHOWN]}]"
    return path
