"""The `DeviceFleet` manifest: every edge node it selects gets a device."""

from typing import Literal

from pydantic import Field

from meedge_ray.api.edge_device import DeviceTemplate
from meedge_ray.api.fields import IMMUTABLE, MOST, Labels, Metadata, Spec, Status


class Selector(Spec):
    """Edge nodes by their labels, besides meedge.dev/role=edge."""

    match_labels: Labels = Field(
        default_factory=dict, description="labels that a node must have, all of them; {} selects every edge node"
    )


class DeviceFleetSpec(Spec):
    """Which edge nodes get a device, and what it runs there."""

    selector: Selector = Field(
        description="edge nodes by their labels; {} selects every one", json_schema_extra=IMMUTABLE
    )
    template: DeviceTemplate = Field(description="what its devices run")


class DeviceFleet(Spec):
    """Like a DaemonSet: a device on every edge node that it selects, also on those that join later."""

    api_version: Literal["meedge.dev/v1alpha1"]
    kind: Literal["DeviceFleet"]
    metadata: Metadata
    spec: DeviceFleetSpec


class DeviceFleetStatus(Status):
    """How many devices there are to be, and are."""

    desired: int | None = Field(default=None, ge=0, le=MOST, description="edge nodes that are selected")
    current: int | None = Field(default=None, ge=0, le=MOST, description="devices there are")
    updated: int | None = Field(default=None, ge=0, le=MOST, description="devices that run as the template says now")
    ready: int | None = Field(default=None, ge=0, le=MOST, description="devices that are ready")
