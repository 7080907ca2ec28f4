"""Structural OpenAPI v3 schemas, as Kubernetes wants them in a CRD, from pydantic's JSON Schema."""

import json
from functools import cache
from typing import Any

from pydantic import BaseModel

_KEPT = (
    *("type", "description", "enum", "pattern", "format", "required", "minimum", "maximum", "minLength", "maxLength"),
    *("minItems", "maxItems", "minProperties", "maxProperties", "anyOf"),
)
_LONGEST_DEFAULT = 60  # characters; longer ones are told in words


@cache
def structural_schema(manifest: type[BaseModel], status: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a whole object. It is shared: copy before changing it."""
    spec = manifest.model_json_schema(by_alias=True)
    return {
        "type": "object",
        "description": spec["description"],
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "group and version of the kind"},
            "kind": {"type": "string", "description": "the object's kind"},
            "metadata": {"type": "object"},
            "spec": _structural(spec["properties"]["spec"], spec["$defs"]),
            "status": _of_model(status),
        },
    }


def _of_model(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


def _structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        named = definitions[schema["$ref"].rpartition("/")[2]]
        return _structural({**named, **{key: value for key, value in schema.items() if key != "$ref"}}, definitions)
    if {"type": "null"} in schema.get("anyOf", ()):
        [choice] = [choice for choice in schema["anyOf"] if choice != {"type": "null"}]
        outside = {key: value for key, value in schema.items() if key != "anyOf"}
        return {**_structural({**_resolved(choice, definitions), **outside}, definitions), "nullable": True}
    return _converted(schema, definitions)


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    return {**definitions[schema["$ref"].rpartition("/")[2]], **{k: v for k, v in schema.items() if k != "$ref"}}


def _converted(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in schema.items() if key in _KEPT or key.startswith("x-kubernetes-")}
    if "const" in schema:
        result["enum"] = [schema["const"]]
    # Kubernetes' exclusive bounds are flags of draft 4; every number here is whole.
    if "exclusiveMinimum" in schema:
        result["minimum"] = schema["exclusiveMinimum"] + 1
    if "exclusiveMaximum" in schema:
        result["maximum"] = schema["exclusiveMaximum"] - 1
    if "properties" in schema:
        result["properties"] = {name: _structural(field, definitions) for name, field in schema["properties"].items()}
    elif isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(schema["additionalProperties"], definitions)
    if "items" in schema:
        result["items"] = _structural(schema["items"], definitions)
    result["description"] = _described(schema)
    return {key: value for key, value in result.items() if value != ""}


def _described(schema: dict[str, Any]) -> str:
    description = " ".join(schema.get("description", "").split())
    default = json.dumps(schema.get("default"))
    if schema.get("default") in (None, "", [], {}) or len(default) > _LONGEST_DEFAULT:
        return description
    return f"{description}. Default: {default}" if description else f"Default: {default}"
