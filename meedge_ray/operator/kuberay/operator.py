"""The operator in a Kubernetes: a Deployment, and what it may do."""

import json
from typing import Any

from meedge_ray.api.edge_device import EdgeDevice
from meedge_ray.api.kinds import GROUP, KINDS
from meedge_ray.operator.kuberay.cluster import (
    DASHBOARD_PORT,
    GCS_PORT,
    HEAD_SERVICE,
    HOME,
    HOME_MOUNT,
    NAME,
    SECURITY,
    SERVE_PORT,
    Mount,
    Settings,
    described,
    edge_start_arguments,
)

Object = dict[str, Any]

_DEVICES = next(kind.plural for kind in KINDS if kind.manifest is EdgeDevice)  # what the operator makes itself

_OPERATOR = f"{NAME}-operator"
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_KUBECONFIG = "/tmp/kubeconfig"  # noqa: S108 - the pod's own


def operator(settings: Settings) -> list[Object]:
    """Return the operator's objects: one process, its account, and its rights on the kinds of this project."""
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": described(_OPERATOR, settings)},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": _clusterwide(settings),
            "rules": _rules(),
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": _clusterwide(settings),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": _OPERATOR},
            "subjects": [{"kind": "ServiceAccount", "name": _OPERATOR, "namespace": settings.namespace}],
        },
        _deployment(settings),
    ]


def _clusterwide(settings: Settings) -> Object:
    return {field: value for field, value in described(_OPERATOR, settings).items() if field != "namespace"}


def _rules() -> list[Object]:
    plurals = [kind.plural for kind in KINDS]
    return [
        _rule(GROUP, plurals, ["get", "list", "watch", "patch"]),
        _rule(GROUP, [_DEVICES], ["create", "update", "delete"]),
        _rule(GROUP, [f"{plural}/status" for plural in plurals], ["get", "update", "patch"]),
        # Without it an owner cannot be named whose deletion is to wait.
        _rule(GROUP, [f"{plural}/finalizers" for plural in plurals], ["update"]),
        _rule("", ["events"], ["get", "list", "create", "patch"]),
        _rule("", ["namespaces"], ["get", "list", "watch"]),
        _rule("apiextensions.k8s.io", ["customresourcedefinitions"], ["get", "list", "watch"]),
    ]


def _rule(group: str, resources: list[str], verbs: list[str]) -> Object:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def _deployment(settings: Settings) -> Object:
    labels = {"app.kubernetes.io/name": _OPERATOR}
    mounts = (HOME_MOUNT, Mount(name="memory", path="/dev/shm", source={"emptyDir": {"medium": "Memory"}}))  # noqa: S108
    secret = {"secretKeyRef": {"name": NAME, "key": "auth_token"}}
    container = {
        "name": "operator",
        "image": settings.image,
        "command": ["/bin/bash", "-ec", _script(settings)],
        "env": [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": secret},
        ],
        "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}},
        "securityContext": SECURITY,
        "volumeMounts": [{"name": mount.name, "mountPath": mount.path} for mount in mounts],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": described(_OPERATOR, settings),
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # two would work against each other
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": _OPERATOR,
                    "securityContext": {"fsGroup": 1000},
                    "containers": [container],
                    "volumes": [{"name": mount.name, **mount.source} for mount in mounts],
                },
            },
        },
    }


def _script(settings: Settings) -> str:
    # The account's token is written in at every start: kopf reads no tokenFile, and a refused token ends the process.
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
        "clusters": [
            {
                "name": "here",
                "cluster": {"server": "https://kubernetes.default.svc", "certificate-authority": f"{_ACCOUNT}/ca.crt"},
            }
        ],
        "users": [{"name": "here", "user": {"token": f"$(cat {_ACCOUNT}/token)"}}],
    }
    head = f"{HEAD_SERVICE}.{settings.namespace}.svc"
    address = f"{head}:{GCS_PORT}"
    # Ray lets a process work in a cluster only beside one of its nodes: this one offers nothing.
    start = ["ray start", f"--address={address}", *(each for each in edge_start_arguments() if each != "--block")]
    run = [
        "exec python -m meedge_ray.operator.reconciler",
        f"--kubeconfig={_KUBECONFIG}",
        f"--home={HOME}",
        f"--base-dir={HOME}",
        f"--dashboard-url=http://{head}:{DASHBOARD_PORT}",
        f"--ray-address={address}",
        f"--serve-host={head}",
        f"--serve-port={SERVE_PORT}",
    ]
    return "\n".join(
        [
            f"(umask 077; cat > {_KUBECONFIG}) <<END",
            json.dumps(kubeconfig, indent=1),
            "END",
            " \\\n  ".join(start),
            " \\\n  ".join(run),
        ]
    )
