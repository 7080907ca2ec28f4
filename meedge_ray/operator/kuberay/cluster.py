"""Ray nodes as pods: the head, GPU workers and edge nodes of a RayCluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from meedge_ray.actors.cluster import DEVICE_LABEL, EDGE, ROLE_LABEL, Cluster, start_arguments

Object = dict[str, Any]

NAME = "meedge"  # of the RayCluster, the volume, and the secret KubeRay makes for the cluster's token
HEAD_SERVICE = f"{NAME}-head-svc"
HOME = "/var/lib/meedge"  # bundles and tokens: the one volume that all but edges share
GCS_PORT, DASHBOARD_PORT, SERVE_PORT = 6379, 8265, 8000

_LABELS_FOLDER = "/var/run/meedge"
# The address comes from KubeRay. Its probes ask the agent at its usual port; a pod has that to itself.
_NOT_OURS = ("--address", "--dashboard-agent-listen-port", "--labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What differs from one Kubernetes to another."""

    namespace: str = NAME
    image: str = f"meedge-ray:{version('meedge-ray')}"
    storage: str = "50Gi"
    gpu_workers: int = 1
    edge_nodes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A volume, and where in a container it is."""

    name: str
    path: str
    source: Object


HOME_MOUNT = Mount(name="home", path=HOME, source={"persistentVolumeClaim": {"claimName": NAME}})
SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def described(name: str, settings: Settings) -> Object:
    """Return the metadata of an object of this name."""
    return {"name": name, "namespace": settings.namespace, "labels": {"app.kubernetes.io/part-of": NAME}}


def edge_start_arguments() -> list[str]:
    """Return what an edge node is started with wherever it runs: as `start_arguments`, but for what a pod is given."""
    arguments = start_arguments(Cluster("head:0", {}), {})[1:]
    return [argument for argument in arguments if argument.partition("=")[0] not in _NOT_OURS]


def cluster_spec(settings: Settings, groups: Sequence[Object], *, mounts: Sequence[Mount] = ()) -> Object:
    """Return a RayCluster's spec: a head, these groups of workers, and a token without which nobody gets in."""
    head = _container(settings, "ray-head", cpus="2", memory="8Gi", mounts=(HOME_MOUNT, *mounts))
    ports = {"gcs-server": GCS_PORT, "dashboard": DASHBOARD_PORT, "serve": SERVE_PORT}
    head["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # Training belongs on the workers.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104 - the pod's own
            "template": _template(head, (HOME_MOUNT, *mounts)),
        },
        "workerGroupSpecs": list(groups),
    }


def gpu_group(settings: Settings) -> Object:
    """Return the workers that train, each with a GPU."""
    container = _container(settings, "ray-worker", cpus="8", memory="32Gi", mounts=(HOME_MOUNT,))
    for bound in container["resources"].values():
        bound["nvidia.com/gpu"] = "1"
    return _group("gpu", settings.gpu_workers, {}, _template(container, (HOME_MOUNT,)))


def edge_group(settings: Settings) -> Object:
    """Return the edge nodes: one on each node of Kubernetes with the label meedge.dev/role=edge, named as that is."""
    labels = Mount(name="labels", path=_LABELS_FOLDER, source={"emptyDir": {}})
    container = _container(settings, "ray-worker", cpus="1", memory="1Gi", mounts=(labels,))
    template = _template(container, (labels,))
    # A group's labels are the same for all its pods, so each writes down its own.
    template["spec"]["initContainers"] = [
        {
            "name": "labels",
            "image": settings.image,
            "command": ["/bin/sh", "-ec", f"echo '{DEVICE_LABEL}: \"'$NODE_NAME'\"' > {_LABELS_FOLDER}/labels.yaml"],
            "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
            "resources": container["resources"],
            "securityContext": SECURITY,
            "volumeMounts": container["volumeMounts"],
        }
    ]
    template["spec"] |= {
        "nodeSelector": {ROLE_LABEL: EDGE},
        "tolerations": [{"key": ROLE_LABEL, "operator": "Equal", "value": EDGE, "effect": "NoSchedule"}],
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"labelSelector": {"matchLabels": {"ray.io/group": EDGE}}, "topologyKey": "kubernetes.io/hostname"}
                ]
            }
        },
    }
    start = {name: value for name, _, value in (argument[2:].partition("=") for argument in edge_start_arguments())}
    start |= {"labels-file": f"{_LABELS_FOLDER}/labels.yaml"}
    del start["block"]  # KubeRay's own
    return _group(EDGE, settings.edge_nodes, start, template) | {"labels": {ROLE_LABEL: EDGE}}


def _group(name: str, replicas: int, start: Object, template: Object) -> Object:
    return {
        "groupName": name,
        "replicas": replicas,
        "minReplicas": 0,
        "maxReplicas": max(replicas, 1),
        "rayStartParams": start,
        "template": template,
    }


def _container(settings: Settings, name: str, *, cpus: str, memory: str, mounts: Sequence[Mount]) -> Object:
    return {
        "name": name,
        "image": settings.image,
        "resources": {bound: {"cpu": cpus, "memory": memory} for bound in ("requests", "limits")},
        "securityContext": SECURITY,
        "volumeMounts": [{"name": mount.name, "mountPath": mount.path} for mount in mounts],
    }


def _template(container: Object, mounts: Sequence[Mount]) -> Object:
    return {
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {"fsGroup": 1000},
            "containers": [container],
            "volumes": [{"name": mount.name, **mount.source} for mount in mounts],
        }
    }
