"""The four kinds, as an API server, a CRD and a table show them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from meedge_ray.api.device_fleet import DeviceFleet, DeviceFleetStatus
from meedge_ray.api.edge_device import EdgeDevice, EdgeDeviceStatus
from meedge_ray.api.elastic_model import ElasticModel
from meedge_ray.api.elastic_model_status import ElasticModelStatus
from meedge_ray.api.elastic_service import ElasticService, ElasticServiceStatus
from meedge_ray.api.fields import Spec, Status
from meedge_ray.api.problems import FieldProblem, changed_for_ever, manifest_problems, status_problems
from meedge_ray.api.schemas import structural_schema

__all__ = ["GROUP", "KINDS", "VERSION", "Column", "FieldProblem", "Kind"]

GROUP, VERSION = "meedge.dev", "v1alpha1"

Shown = Literal["string", "integer", "boolean", "date"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of `kubectl get`. With priority 1 only `-o wide` shows it."""

    name: str
    type: Shown
    json_path: str
    description: str
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of object. All are namespaced and have a status subresource; `kubectl get` takes a category for all."""

    name: str
    plural: str
    singular: str
    short_names: tuple[str, ...]
    manifest: type[Spec]
    status: type[Status]
    columns: tuple[Column, ...]
    categories: tuple[str, ...] = ("meedge",)

    def schema(self) -> dict[str, Any]:
        """Return the structural OpenAPI v3 schema of the object. It is shared: copy before changing it."""
        return structural_schema(self.manifest, self.status)

    def problems(self, content: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[FieldProblem]:
        """Return what is wrong with apiVersion, kind, metadata.name, .labels and .annotations, and spec.

        Args:
            content: the object.
            before: the object it replaces, whose immutable fields it must keep; looked at when all else is right.
        """
        return manifest_problems(self.manifest, content) or changed_for_ever(self.schema(), content, before)

    def status_problems(self, status: Mapping[str, Any]) -> list[FieldProblem]:
        """Return what is wrong with the value of `status`."""
        return status_problems(self.status, status)


def _column(
    name: str,
    json_path: str,
    description: str,
    *,
    type: Shown = "string",
    priority: int = 0,
) -> Column:
    return Column(name=name, type=type, json_path=json_path, description=description, priority=priority)


def _ready(field: str) -> str:
    return f'.status.conditions[?(@.type=="Ready")].{field}'


def _running(field: str) -> str:
    return f'.status.stages[?(@.state=="Running")].{field}'


_READY = _column("Ready", _ready("status"), "whether it is ready")
_REASON = _column("Reason", _ready("reason"), "why it is ready, or is not, in a word")
_MESSAGE = _column("Message", _ready("message"), "why it is ready, or is not", priority=1)
_AGE = _column("Age", ".metadata.creationTimestamp", "since it was made", type="date")

KINDS = (
    Kind(
        name="ElasticModel",
        plural="elasticmodels",
        singular="elasticmodel",
        short_names=("em",),
        manifest=ElasticModel,
        status=ElasticModelStatus,
        columns=(
            _READY,
            _REASON,
            _column("Stage", _running("name"), "what is being done"),
            _column("Progress", _running("progress"), "how much of that stage is done"),
            _column("Branches", ".status.bundle.branches", "branches in the bundle", type="integer"),
            _column("Accuracy", ".status.bundle.finalAccuracy", "of the final exit"),
            _column("Architecture", ".spec.model.architecture", "the backbone", priority=1),
            _column("Size", ".status.bundle.sizeBytes", "bytes of all units", type="integer", priority=1),
            _column("Bundle", ".status.bundle.path", "the bundle's folder", priority=1),
            _MESSAGE,
            _AGE,
        ),
    ),
    Kind(
        name="ElasticService",
        plural="elasticservices",
        singular="elasticservice",
        short_names=("es",),
        manifest=ElasticService,
        status=ElasticServiceStatus,
        columns=(
            _column("URL", ".status.url", "where it answers"),
            _READY,
            _REASON,
            _column("Replicas", ".status.readyReplicas", "replicas that answer", type="integer"),
            _column("Token-File", ".status.tokenFile", "file with the bearer token", priority=1),
            _MESSAGE,
            _AGE,
        ),
    ),
    Kind(
        name="DeviceFleet",
        plural="devicefleets",
        singular="devicefleet",
        short_names=("df",),
        manifest=DeviceFleet,
        status=DeviceFleetStatus,
        columns=(
            _column("Desired", ".status.desired", "edge nodes that are selected", type="integer"),
            _column("Current", ".status.current", "devices there are", type="integer"),
            _column("Ready", ".status.ready", "devices that are ready", type="integer"),
            _column("Updated", ".status.updated", "devices that run by the template", type="integer", priority=1),
            _column("Model", ".spec.template.modelRef.name", "what its devices run", priority=1),
            _column("Memory", ".spec.template.memory", "budget of each device", priority=1),
            _MESSAGE,
            _AGE,
        ),
    ),
    Kind(
        name="EdgeDevice",
        plural="edgedevices",
        singular="edgedevice",
        short_names=("ed",),
        manifest=EdgeDevice,
        status=EdgeDeviceStatus,
        columns=(
            _column("Device", ".spec.device", "label of its node"),
            _column("Memory", ".spec.memory", "budget of its units"),
            _column("Resident", ".status.residentBytes", "bytes of units in memory", type="integer"),
            _column("Branches", ".status.branches", "branches in memory", type="integer"),
            _column("Expectation", ".status.expectation", "mean accuracy expectation over the horizon, 0..1"),
            _READY,
            _column("Heartbeat", ".status.heartbeatTime", "since the device last answered", type="date"),
            _column("Model", ".spec.modelRef.name", "what it runs", priority=1),
            _column("Planner", ".status.planner", "how it chooses the branches to run", priority=1),
            _column("Address", ".status.node.address", "of its node", priority=1),
            _column("RSS", ".status.processRssBytes", "bytes of its process's memory", type="integer", priority=1),
            _MESSAGE,
            _AGE,
        ),
    ),
)
