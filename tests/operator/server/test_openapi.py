import copy
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from meedge_ray.api.kinds import GROUP, KINDS, VERSION
from meedge_ray.operator.server.openapi import v2, v3, v3_index, v3_path
from meedge_ray.operator.server.resource import READ, Resource

FREE = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
RESOURCES = (
    *(
        Resource(
            group=GROUP,
            version=VERSION,
            plural=kind.plural,
            singular=kind.singular,
            kind=kind.name,
            schema=kind.schema(),
            custom=True,
        )
        for kind in KINDS
    ),
    Resource(group="", version="v1", plural="namespaces", singular="", kind="Namespace", schema=FREE, namespaced=False),
    Resource(group="", version="v1", plural="services", singular="", kind="Service", schema=FREE, verbs=READ),
    Resource(group="a.b", version="v1", plural="reviews", singular="", kind="Review", schema=FREE, verbs=("create",)),
)
OURS = v3(RESOURCES, f"{GROUP}/{VERSION}")
CORE = v3(RESOURCES, "v1")
OLD = v2(RESOURCES)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


def keys(node: Any) -> set[str]:
    if isinstance(node, dict):
        return set(node).union(*map(keys, node.values()))
    return set().union(*map(keys, node)) if isinstance(node, list) else set()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method != "parameters":
                yield path, method, operation


@pytest.mark.parametrize(
    ("document", "start", "schemas"),
    [
        (OURS, "#/components/schemas/", OURS["components"]["schemas"]),
        (CORE, "#/components/schemas/", CORE["components"]["schemas"]),
        (OLD, "#/definitions/", OLD["definitions"]),
    ],
    ids=["ours", "core", "v2"],
)
def test_every_reference_leads_somewhere(document: dict[str, Any], start: str, schemas: dict[str, Any]) -> None:
    found = set(references(document))
    assert found
    assert {reference.removeprefix(start) for reference in found} <= set(schemas)
    json.dumps(document)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_kind_has_its_schema_with_the_metadata_of_all(kind: Any) -> None:
    schema = OURS["components"]["schemas"][f"dev.meedge.v1alpha1.{kind.name}"]
    assert schema["x-kubernetes-group-version-kind"] == [{"group": GROUP, "version": VERSION, "kind": kind.name}]
    assert schema["properties"]["spec"] == kind.schema()["properties"]["spec"]
    [metadata] = schema["properties"]["metadata"]["allOf"]
    assert metadata["$ref"].endswith("meta.v1.ObjectMeta")
    assert kind.schema()["properties"]["metadata"] == {"type": "object"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_kubectl_finds_the_parameters_of_a_patch_by_the_kind(kind: Any) -> None:
    for path, method, operation in operations(OURS):
        if method == "patch" and operation["x-kubernetes-group-version-kind"]["kind"] == kind.name:
            names = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"}
            assert {"fieldValidation", "dryRun", "fieldManager", "force"} <= names, path
            assert "application/apply-patch+yaml" in operation["requestBody"]["content"]


def test_every_verb_has_its_path() -> None:
    device = "/apis/meedge.dev/v1alpha1/namespaces/{namespace}/edgedevices"
    assert {(path, method) for path, method, _ in operations(OURS) if "edgedevices" in path} == {
        ("/apis/meedge.dev/v1alpha1/edgedevices", "get"),
        *((device, method) for method in ("get", "post", "delete")),
        *((f"{device}/{{name}}", method) for method in ("get", "put", "patch", "delete")),
        *((f"{device}/{{name}}/status", method) for method in ("get", "put", "patch")),
    }
    assert {(path, method) for path, method, _ in operations(CORE) if "services" in path} == {
        ("/api/v1/services", "get"),
        ("/api/v1/namespaces/{namespace}/services", "get"),
        ("/api/v1/namespaces/{namespace}/services/{name}", "get"),
    }
    assert "/api/v1/namespaces" in CORE["paths"]
    assert list(v3(RESOURCES, "a.b/v1")["paths"]) == ["/apis/a.b/v1/namespaces/{namespace}/reviews"]


@pytest.mark.parametrize("document", [OURS, CORE, OLD], ids=["ours", "core", "v2"])
def test_operations_have_names_of_their_own_and_all_parameters_of_their_path(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    for path, methods in document["paths"].items():
        in_path = {parameter["name"] for parameter in methods["parameters"]}
        assert in_path == {part[1:-1] for part in path.split("/") if part.startswith("{")}


def test_the_index_leads_to_each_document_by_its_hash() -> None:
    index = v3_index({v3_path("v1"): "A", v3_path("meedge.dev/v1alpha1"): "B"})
    assert index == {
        "paths": {
            "api/v1": {"serverRelativeURL": "/openapi/v3/api/v1?hash=A"},
            "apis/meedge.dev/v1alpha1": {"serverRelativeURL": "/openapi/v3/apis/meedge.dev/v1alpha1?hash=B"},
        }
    }


def test_the_older_document_keeps_to_its_older_form() -> None:
    assert not {"anyOf", "allOf", "nullable", "requestBody", "components", "content"} & keys(
        {**OLD, "definitions": {name: {**schema, "properties": {}} for name, schema in OLD["definitions"].items()}}
    )
    assert not {"anyOf", "allOf", "nullable"} & keys(OLD["definitions"])
    for _, method, operation in operations(OLD):
        bodies = [parameter for parameter in operation["parameters"] if parameter["in"] == "body"]
        assert len(bodies) == (method != "get")
        assert all("type" in parameter for parameter in operation["parameters"] if parameter["in"] == "query")
        assert "schema" in operation["responses"]["200"]


@pytest.mark.parametrize("name", sorted(OURS["components"]["schemas"]))
def test_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft4Validator.check_schema(OURS["components"]["schemas"][name])


def test_documents_share_nothing_that_making_them_changes() -> None:
    before = copy.deepcopy((OURS, KINDS[0].schema()))
    v2(RESOURCES)
    assert (v3(RESOURCES, f"{GROUP}/{VERSION}"), KINDS[0].schema()) == before
