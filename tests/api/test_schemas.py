"""The kinds' schemas against what Kubernetes asks of a CRD, and against what the models themselves accept."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from sample_objects import mutated, valid

from meedge_ray.api.edge_device import DeviceTemplate
from meedge_ray.api.elastic_model_status import StageStatus
from meedge_ray.api.kinds import KINDS, Kind
from meedge_ray.api.stages import STAGES
from meedge_ray.runtime.exit_planning import Planning

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
# What apiextensions.k8s.io/v1 knows; it refuses references, defaults of our own making and flags such as `const`.
KNOWN = {
    *("type", "description", "enum", "pattern", "format", "required", "minimum", "maximum", "minLength", "maxLength"),
    *("minItems", "maxItems", "minProperties", "maxProperties", "items", "properties", "additionalProperties"),
    *("nullable", "anyOf", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"),
    *("x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"),
}


def places(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from places(field, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            yield from places(schema[inner], f"{path}[]")


def as_json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The same in a dialect that a validator here knows: strict, as the API server is about unknown fields."""
    result = {key: value for key, value in schema.items() if key not in ("properties", "items", "nullable", "format")}
    if "properties" in schema:
        result["properties"] = {name: as_json_schema(field) for name, field in schema["properties"].items()}
        result["additionalProperties"] = False
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            result[inner] = as_json_schema(schema[inner])
    return {"anyOf": [{"type": "null"}, result]} if schema.get("nullable") else result


@cache
def validator(kind: Kind, field: str) -> Draft202012Validator:
    return Draft202012Validator(as_json_schema(kind.schema()["properties"][field]))


def accepts(kind: Kind, field: str, content: Any) -> bool:
    return validator(kind, field).is_valid(content[field])


@each_kind
def test_a_schema_is_structural(kind: Kind) -> None:
    for path, schema in places(kind.schema()):
        assert schema.keys() <= KNOWN, path
        free = "x-kubernetes-int-or-string" in schema or "x-kubernetes-preserve-unknown-fields" in schema
        assert ("type" in schema) != free, path
        assert not {"properties", "additionalProperties"} <= schema.keys(), path
        assert ("items" in schema) == (schema.get("type") == "array"), path
        assert set(schema.get("required", ())) <= schema.get("properties", {}).keys(), path
        if "anyOf" in schema:
            assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}], path
        for key in schema.get("x-kubernetes-list-map-keys", ()):
            assert key in schema["items"]["required"], path


@each_kind
def test_no_number_is_a_float_and_none_is_boundless(kind: Kind) -> None:
    for path, schema in places(kind.schema()):
        assert schema.get("type") != "number", path
        if schema.get("type") == "integer" and "enum" not in schema:
            assert {"minimum", "maximum"} <= schema.keys(), path
        if schema.get("type") == "array":
            assert "maxItems" in schema, path


@each_kind
def test_every_field_is_described_for_kubectl_explain(kind: Kind) -> None:
    for path, schema in places(kind.schema()):
        if path != ".metadata" and not path.endswith("[]"):
            assert schema.get("description"), path


def test_defaults_are_told_in_descriptions() -> None:
    spec = KINDS[0].schema()["properties"]["spec"]["properties"]
    assert spec["backoffLimit"]["description"].endswith(". Default: 3")
    assert spec["suspend"]["description"].endswith(". Default: false")


@each_kind
def test_every_column_shows_a_field_there_is(kind: Kind) -> None:
    for column in kind.columns:
        if column.json_path == ".metadata.creationTimestamp":
            continue
        schema = kind.schema()
        for name in re.sub(r"\[\?\(.*?\)\]", "", column.json_path).split(".")[1:]:
            schema = schema["properties"][name]
            schema = schema.get("items", schema)
        shown = "date" if schema.get("format") == "date-time" else schema.get("type", "string")
        assert column.type == shown, column


@each_kind
def test_columns_and_names_are_told_apart(kind: Kind) -> None:
    names = [column.name for column in kind.columns]
    assert len(set(names)) == len(names)
    assert kind.singular == kind.name.lower()


@each_kind
def test_the_schema_accepts_what_is_right(kind: Kind) -> None:
    content = valid(kind.name)
    assert accepts(kind, "spec", content)
    assert accepts(kind, "status", content)


@each_kind
@given(data=st.data())
def test_what_the_kind_accepts_its_schema_accepts(kind: Kind, data: st.DataObject) -> None:
    content = data.draw(mutated(valid(kind.name)))
    if not kind.problems(content):
        assert accepts(kind, "spec", content)
    if not kind.status_problems(content.get("status")):
        assert accepts(kind, "status", content)


@each_kind
@given(data=st.data())
def test_what_the_schema_refuses_field_by_field_the_kind_refuses(kind: Kind, data: st.DataObject) -> None:
    content = data.draw(mutated(valid(kind.name)))
    if "spec" in content and not accepts(kind, "spec", content):
        assert kind.problems(content)


def test_words_that_are_written_twice_are_the_same() -> None:
    assert DeviceTemplate.model_fields["planning"].annotation == Planning
    assert get_args(StageStatus.model_fields["name"].annotation) == STAGES
