"""What of Kubernetes' own is served beside the project's kinds: enough for kubectl, operators and their clients."""

from collections.abc import Mapping
from typing import Any

from meedge_ray.api.kinds import Column, FieldProblem
from meedge_ray.operator.server import namespaces, tables
from meedge_ray.operator.server.resource import READ, Object, Resource
from meedge_ray.operator.server.structure import problems

_FREE: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_AVAILABLE = Column(
    name="Available",
    type="string",
    json_path='.status.conditions[?(@.type=="Available")].status',
    description="whether it is served",
)
_METADATA: Object = {"type": "object", "description": "standard object's metadata"}


def _text(description: str) -> Object:
    return {"type": "string", "description": description}


def _whole(description: str) -> Object:
    return {"type": "integer", "description": description}


def _object(description: str, required: tuple[str, ...] = (), **properties: Object) -> Object:
    named: Object = {"type": "object", "description": description, "properties": properties}
    return named | ({"required": list(required)} if required else {})


def _reference(description: str) -> Object:
    fields = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
    return {**_object(description), "properties": {field: {"type": "string"} for field in fields}}


def _whole_object(description: str, required: tuple[str, ...] = (), **properties: Object) -> Object:
    own = {"apiVersion": _text("version of this form of the object"), "kind": _text("kind of the object")}
    return _object(description, required, **own, metadata=_METADATA, **properties)


_STAMP = _text("moment, as in RFC 3339")
_EVENT = _whole_object(
    "what happened to an object, for people; kept for an hour",
    ("involvedObject",),
    involvedObject=_reference("what it happened to"),
    related=_reference("another object that has to do with it"),
    reason=_text("why it happened, in one word"),
    message=_text("what happened"),
    type=_text("Normal or Warning"),
    action=_text("what was done"),
    count=_whole("how often it happened"),
    source=_object("who says so", component=_text("part of the system"), host=_text("node")),
    reportingComponent=_text("controller that says so"),
    reportingInstance=_text("which one of them"),
    firstTimestamp=_STAMP,
    lastTimestamp=_STAMP,
    eventTime=_STAMP,
    series=_object("of equal events", count=_whole("how many"), lastObservedTime=_STAMP),
)
_NAMESPACE = _whole_object(
    "a name that objects are named within; deleted with all in it",
    spec=_object("what holds it", finalizers={"type": "array", "items": {"type": "string"}}),
    status=_object("its life", phase=_text("Active or Terminating")),
)


def _event_problems(content: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[FieldProblem]:  # noqa: ARG001
    found = problems(content, _EVENT)
    within, of = content["metadata"].get("namespace"), content.get("involvedObject")
    if not found and isinstance(of, dict) and of.get("namespace") not in (None, "", within):
        why = "Invalid value: must be the event's own namespace"
        found = [FieldProblem("involvedObject.namespace", "FieldValueInvalid", why)]
    return found


NAMESPACES = Resource(
    group="",
    version="v1",
    plural=namespaces.STORED,
    singular="namespace",
    kind="Namespace",
    short_names=("ns",),
    namespaced=False,
    verbs=("create", "delete", *READ, "patch", "update"),
    columns=tables.NAMESPACES,
    schema=_NAMESPACE,
    problems=lambda content, before: problems(content, _NAMESPACE),  # noqa: ARG005
)
EVENTS = Resource(
    group="",
    version="v1",
    plural="events",
    singular="event",
    kind="Event",
    short_names=("ev",),
    columns=tables.EVENTS,
    view=tables.event_view,
    schema=_EVENT,
    problems=_event_problems,
)
SERVICES = Resource(  # none ever: `kubectl cluster-info` asks for them
    group="",
    version="v1",
    plural="services",
    singular="service",
    kind="Service",
    short_names=("svc",),
    verbs=READ,
    schema=_FREE,
)
DEFINITIONS = Resource(
    group="apiextensions.k8s.io",
    version="v1",
    plural="customresourcedefinitions",
    singular="customresourcedefinition",
    kind="CustomResourceDefinition",
    short_names=("crd", "crds"),
    namespaced=False,
    verbs=READ,
    columns=tables.DEFINITIONS,
    schema=_FREE,
)

API_SERVICES = Resource(
    group="apiregistration.k8s.io",
    version="v1",
    plural="apiservices",
    singular="apiservice",
    kind="APIService",
    namespaced=False,
    verbs=READ,
    columns=(_AVAILABLE,),
    schema=_FREE,
)


def _review(group: str, kind: str) -> Resource:
    plural = f"{kind.lower()}s"
    return Resource(
        group=group,
        version="v1",
        plural=plural,
        singular=kind.lower(),
        kind=kind,
        namespaced=False,
        verbs=("create",),
        schema=_FREE,
    )


REVIEWS = (
    _review("authentication.k8s.io", "SelfSubjectReview"),
    _review("authorization.k8s.io", "SelfSubjectAccessReview"),
    _review("authorization.k8s.io", "SelfSubjectRulesReview"),
)
