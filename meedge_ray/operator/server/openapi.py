"""OpenAPI documents of what is served: `kubectl explain` reads them, and clients learn which parameters there are."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from meedge_ray.operator.server.resource import Resource

Object = dict[str, Any]

_META = "io.k8s.apimachinery.pkg.apis.meta.v1"
_GVK = "x-kubernetes-group-version-kind"
_V3_REFS, _V2_REFS = "#/components/schemas/", "#/definitions/"
_JSON = "application/json"
_PATCHES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
)


def v3_index(hashes: Mapping[str, str]) -> Object:
    """Answer `/openapi/v3`: where the document of each group and version is, `hashes` being those of `v3_path`."""
    found = {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"} for path, digest in hashes.items()}
    return {"paths": found}


def v3_path(api_version: str) -> str:
    """Return the path of a document under `/openapi/v3/`, which is that of what it is about."""
    return f"apis/{api_version}" if "/" in api_version else f"api/{api_version}"


def v3(resources: Iterable[Resource], api_version: str) -> Object:
    """Return the OpenAPI v3 document of one group and version."""
    served = [resource for resource in resources if resource.api_version == api_version]
    return {
        "openapi": "3.0.0",
        "info": {"title": "meedge-ray", "version": api_version},
        "paths": _paths(served),
        "components": {"schemas": _schemas(served)},
    }


def v2(resources: Iterable[Resource]) -> Object:
    """Return the OpenAPI v2 document of everything.

    kubectl asks for it in protobuf alone, to patch core objects and for `explain --output=plaintext-openapiv2`. It does
    without where it is told 406.
    """
    served = list(resources)
    paths = {path: _in_v2(operations) for path, operations in _paths(served).items()}
    return {
        "swagger": "2.0",
        "info": {"title": "meedge-ray", "version": "v1"},
        "paths": paths,
        "definitions": _in_v2(_schemas(served)),
    }


def _name(resource: Resource) -> str:
    group = ".".join(reversed(resource.group.split("."))) if resource.group else "io.k8s.api.core"
    return f"{group}.{resource.version}.{resource.kind}"


def _gvk(resource: Resource) -> Object:
    return {"group": resource.group, "version": resource.version, "kind": resource.kind}


def _ref(name: str) -> Object:
    return {"$ref": _V3_REFS + name}


def _schemas(resources: Sequence[Resource]) -> Object:
    schemas = {f"{_META}.{kind}": schema for kind, schema in _SHARED.items()}
    for resource in resources:
        gvk = [_gvk(resource)]
        metadata = {"description": "what names, labels and owns the object", "allOf": [_ref(f"{_META}.ObjectMeta")]}
        fields = {**resource.schema.get("properties", {}), "metadata": metadata}
        schemas[_name(resource)] = {**resource.schema, "properties": fields, _GVK: gvk}
        schemas[f"{_name(resource)}List"] = _list_of(resource)
    return schemas


def _list_of(resource: Resource) -> Object:
    fields = {
        "apiVersion": _text("group and version of the list"),
        "kind": _text("the list's kind"),
        "metadata": {"description": "of the list", "allOf": [_ref(f"{_META}.ListMeta")]},
        "items": _items("the objects", _ref(_name(resource))),
    }
    described = _object(f"Objects of the kind {resource.kind}.", **fields)
    return {**described, "required": ["items"], _GVK: [{**_gvk(resource), "kind": f"{resource.kind}List"}]}


def _paths(resources: Sequence[Resource]) -> Object:
    paths: Object = {}
    for resource in resources:
        root, place = f"/{v3_path(resource.api_version)}", ("namespace",) if resource.namespaced else ()
        many = f"{root}/{'namespaces/{namespace}/' if resource.namespaced else ''}{resource.plural}"
        paths |= _path(resource, f"{root}/{resource.plural}", {"get": "list"}, ())
        paths |= _path(resource, many, {"get": "list", "post": "create", "delete": "deletecollection"}, place)
        one = {"get": "get", "put": "update", "patch": "patch", "delete": "delete"}
        paths |= _path(resource, f"{many}/{{name}}", one, (*place, "name"))
        if resource.custom:
            status = {"get": "get", "put": "update", "patch": "patch"}
            paths |= _path(resource, f"{many}/{{name}}/status", status, (*place, "name"), "Status")
    return paths


def _path(resource: Resource, path: str, verbs: Mapping[str, str], place: tuple[str, ...], part: str = "") -> Object:
    served = {
        method: _operation(resource, verb, place, part) for method, verb in verbs.items() if verb in resource.verbs
    }
    return {path: {**served, "parameters": [_parameter(name, "string", "path") for name in place]}} if served else {}


def _operation(resource: Resource, verb: str, place: tuple[str, ...], part: str) -> Object:
    where = "Namespaced" if "namespace" in place else "AllNamespaces" if resource.namespaced else ""
    answers = {"list": f"{_name(resource)}List", "delete": f"{_META}.Status", "deletecollection": f"{_META}.Status"}
    answer = answers.get(verb, _name(resource))
    operation: Object = {
        "operationId": f"{verb}{where}{resource.kind}{part}",
        "tags": [f"{resource.group or 'core'}_{resource.version}"],
        "parameters": [_parameter(name, kind) for name, kind in _PARAMETERS[verb].items()],
        "responses": {"200": {"description": "OK", "content": {_JSON: {"schema": _ref(answer)}}}},
        "x-kubernetes-action": verb,
        _GVK: _gvk(resource),
    }
    if verb in ("create", "update"):
        operation["requestBody"] = _body(_ref(_name(resource)), _JSON, "application/yaml")
    elif verb == "patch":
        more = () if resource.custom else ("application/strategic-merge-patch+json",)
        operation["requestBody"] = _body(_ref(f"{_META}.Patch"), *_PATCHES, *more)
    elif verb in ("delete", "deletecollection"):
        operation["requestBody"] = {**_body(_ref(f"{_META}.DeleteOptions"), _JSON), "required": False}
    return operation


def _body(schema: Object, *media_types: str) -> Object:
    return {"required": True, "content": {media_type: {"schema": schema} for media_type in media_types}}


def _parameter(name: str, kind: str, where: str = "query") -> Object:
    parameter: Object = {"name": name, "in": where, "schema": {"type": kind}}
    described = {"description": _DESCRIBED[name]} if name in _DESCRIBED else {}
    return parameter | described | ({"required": True} if where == "path" else {})


def _in_v2(node: Any) -> Any:  # noqa: ANN401 - any JSON
    """The same in the older form, which knows neither alternatives nor null, and has one body a method."""
    if isinstance(node, list):
        return [_in_v2(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "in" in node and "schema" in node:
        return {**{name: value for name, value in node.items() if name != "schema"}, **node["schema"]}
    result = {name: _in_v2(value) for name, value in node.items() if name not in ("anyOf", "nullable")}
    if "$ref" in node:
        result["$ref"] = node["$ref"].replace(_V3_REFS, _V2_REFS)
    if "allOf" in node:
        [result["$ref"]] = [each["$ref"] for each in result.pop("allOf")]
    if "responses" in node:
        result |= _operation_in_v2(result)
    return result


def _operation_in_v2(operation: Object) -> Object:
    answers = {
        code: {"description": answer["description"], "schema": answer["content"][_JSON]["schema"]}
        for code, answer in operation["responses"].items()
    }
    changed: Object = {"produces": [_JSON], "responses": answers}
    body = operation.pop("requestBody", None)
    if body:
        changed["consumes"] = list(body["content"])
        schema = next(iter(body["content"].values()))["schema"]
        of_body = {"name": "body", "in": "body", "required": body["required"], "schema": schema}
        changed["parameters"] = [*operation["parameters"], of_body]
    return changed


def _text(description: str) -> Object:
    return {"type": "string", "description": description}


def _whole(description: str) -> Object:
    return {"type": "integer", "format": "int64", "description": description}


def _object(description: str, **fields: Object) -> Object:
    return {"type": "object", "description": description, "properties": fields}


def _items(description: str, item: Object) -> Object:
    return {"type": "array", "description": description, "items": item}


def _time(description: str) -> Object:
    return {"type": "string", "format": "date-time", "description": description}


def _texts(description: str) -> Object:
    return {"type": "object", "description": description, "additionalProperties": {"type": "string"}}


_SHARED: dict[str, Object] = {
    "ObjectMeta": _object(
        "What every object has beside what its kind says.",
        name=_text("unique among the objects of its kind in its namespace; cannot be changed"),
        generateName=_text("begin of a name that the server completes, where none is given"),
        namespace=_text("where it lives; cannot be changed"),
        labels=_texts("what selectors find it by"),
        annotations=_texts("whatever tools keep with it; 256 KiB in all"),
        finalizers={
            **_items("while there are any, the deleted object is held", {"type": "string"}),
            "x-kubernetes-list-type": "set",
        },
        ownerReferences={
            **_items("when all of its owners are gone it goes as well", _ref(f"{_META}.OwnerReference")),
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["uid"],
        },
        uid=_text("given by the server; never twice"),
        resourceVersion=_text("changes with every write; where a client sends it, it must be that of the object"),
        generation=_whole("counts the changes of what is desired"),
        creationTimestamp=_time("when it was made"),
        deletionTimestamp=_time("since when it is being deleted"),
        deletionGracePeriodSeconds=_whole("always 0"),
        managedFields=_items("who manages which fields", {"type": "object"}),
    ),
    "OwnerReference": {
        **_object(
            "One owner, in the same namespace.",
            apiVersion=_text("the owner's"),
            kind=_text("the owner's"),
            name=_text("the owner's"),
            uid=_text("the owner's"),
            controller={"type": "boolean", "description": "it is the one that manages the object"},
            blockOwnerDeletion={"type": "boolean", "description": "deleted in the foreground, the owner waits for it"},
        ),
        "required": ["apiVersion", "kind", "name", "uid"],
        "x-kubernetes-map-type": "atomic",
    },
    "ListMeta": _object(
        "What every list has.",
        resourceVersion=_text("a watch can go on from here"),
        remainingItemCount=_whole("objects of further pages"),
        **{"continue": _text("token for the next page")},
    ),
    "DeleteOptions": _object(
        "How to delete.",
        apiVersion=_text("v1"),
        kind=_text("DeleteOptions"),
        dryRun=_items("All: change nothing", {"type": "string"}),
        gracePeriodSeconds=_whole("not used"),
        orphanDependents={"type": "boolean", "description": "older form of the propagation policy Orphan"},
        preconditions=_object("what must hold", uid=_text("of the object"), resourceVersion=_text("of the object")),
        propagationPolicy=_text("what becomes of what it owns: Background, Foreground or Orphan"),
    ),
    "Status": _object(
        "The outcome of a request that has no other answer.",
        apiVersion=_text("v1"),
        kind=_text("Status"),
        metadata={"type": "object", "description": "empty"},
        status=_text("Success or Failure"),
        message=_text("for people"),
        reason=_text("in one word"),
        code=_whole("of HTTP"),
        details={"type": "object", "description": "name, group, kind and causes"},
    ),
    "Patch": {"type": "object", "description": "What to change, in the form that its media type says."},
}

_WRITE = {"pretty": "string", "dryRun": "string", "fieldManager": "string", "fieldValidation": "string"}
_SELECT = {"labelSelector": "string", "fieldSelector": "string", "limit": "integer", "continue": "string"}
_DELETE = {"dryRun": "string", "gracePeriodSeconds": "integer", "propagationPolicy": "string"}
_VERSION = {"resourceVersion": "string", "resourceVersionMatch": "string"}
_WATCH = {
    "watch": "boolean",
    "allowWatchBookmarks": "boolean",
    "sendInitialEvents": "boolean",
    "timeoutSeconds": "integer",
}
_PARAMETERS: dict[str, dict[str, str]] = {
    "get": {"pretty": "string"},
    "list": {**_SELECT, **_VERSION, **_WATCH},
    "create": _WRITE,
    "update": _WRITE,
    "patch": {**_WRITE, "force": "boolean"},
    "delete": _DELETE,
    "deletecollection": {**_SELECT, **_DELETE},
}
_DESCRIBED = {
    "dryRun": "All: check everything and change nothing",
    "fieldManager": "who writes, in managedFields",
    "fieldValidation": "what becomes of unknown fields: Ignore, Warn or Strict",
    "force": "take fields from other managers when applying",
    "labelSelector": "such as a=b,c!=d,e in (f,g),h,!i",
    "fieldSelector": "such as metadata.name=a",
    "limit": "most objects of a page",
    "continue": "token of the page before",
    "watch": "go on with what changes",
    "propagationPolicy": "Background, Foreground or Orphan",
}
