"""Objects of every kind as users may write them, and what hypothesis makes of them."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

API_VERSION = "meedge.dev/v1alpha1"
TEMPLATE: dict[str, Any] = {
    "serviceRef": {"name": "placements"},
    "modelRef": {"name": "digits"},
    "memory": "512Ki",
    "memoryPolicy": {"headroom": "8Mi", "hysteresis": "0.05", "growAfterSeconds": 1, "pressure": "0.2"},
    "memorySchedule": [{"at": "07:00", "memory": "256Ki"}, {"at": "22:30:30", "memory": "512Ki"}],
    "mode": "finiteTime",
    "latencyMilliseconds": "2",
    "transferMilliseconds": 1500,
    "deviceType": "board-1t",
    "planning": "static",
    "horizonMilliseconds": "2.5",
    "timeDistribution": {"histogram": {"edgesMilliseconds": [0, "1.5", "2.5"], "probabilities": ["0.25", "0.75"]}},
    "threads": 2,
    "cacheDir": "/var/cache/meedge",
}
SPECS: dict[str, dict[str, Any]] = {
    "ElasticModel": {
        "model": {
            "architecture": "msdnet",
            "arguments": {"blocks": 3, "wide": True, "name": "x"},
            "pretrain": {"epochs": 2, "batchSize": 64, "learningRate": "0.01", "exits": {}},
        },
        "data": {
            "source": "npz",
            "path": "x.npz",
            "normalization": {"scale": 1, "mean": ["0.5"], "std": ["0.25"]},
            "split": {"validationPercent": 30, "seed": 1},
        },
        "zoo": {
            "convolutions": [{"kind": "none"}, {"kind": "depthwise", "kernelSize": 5, "layers": 2}],
            "fullyConnected": [{"pooledSize": 1}, {"pooledSize": 4, "hidden": [64]}],
        },
        "cultivation": {"epochs": 3, "memory": "1.5Gi", "augmentation": {}, "resources": {"gpus": "0.25"}},
        "sharing": {"fullyConnected": ["pool4-fc64"]},
        "supernet": {"shrunk": ["0.5"], "distillation": {"epochs": 1, "learningRate": "0.001"}},
        "suspend": True,
        "backoffLimit": 0,
        "activeDeadlineSeconds": 3600,
    },
    "ElasticService": {
        "modelRefs": [{"name": "digits"}, {"name": "pets"}],
        "autoscaling": {"minReplicas": 1, "maxReplicas": 4, "targetOngoingRequests": 8},
        "maxOngoingRequests": 32,
        "maxQueuedRequests": 0,
        "auth": {"tokenFile": "/etc/meedge/token"},
    },
    "DeviceFleet": {"selector": {"matchLabels": {"meedge.dev/site": "north"}}, "template": TEMPLATE},
    "EdgeDevice": {**TEMPLATE, "device": "Pi_1"},
}
_NOW = "2026-01-31T12:00:00Z"
_READY = {
    "type": "Ready",
    "status": "False",
    "reason": "Waiting",
    "message": "the model is not built yet",
    "lastTransitionTime": _NOW,
    "observedGeneration": 2,
}
STATUSES: dict[str, dict[str, Any]] = {
    "ElasticModel": {
        "observedGeneration": 2,
        "conditions": [_READY, {**_READY, "type": "Cultivated", "status": "Unknown"}],
        "stages": [
            {"name": "pretrain", "key": "ab12", "state": "Succeeded", "startedAt": _NOW, "finishedAt": _NOW},
            {"name": "cultivate", "state": "Running", "jobId": "digits-g2-a1", "attempt": 1, "progress": "3.0/9.0"},
        ],
        "bundle": {
            "path": "/home/me/.meedge/bundles/default/digits",
            "sha256": "0" * 64,
            "branches": 27,
            "variants": 0,
            "sizeBytes": 640_000,
            "finalAccuracy": "0.993",
        },
    },
    "ElasticService": {
        "url": "http://127.0.0.1:8000",
        "tokenFile": "/home/me/.meedge/tokens/default.placements",
        "readyReplicas": 1,
        "models": [{"name": "digits", "bundleSha256": "1" * 64}],
        "conditions": [_READY],
    },
    "DeviceFleet": {"desired": 2, "current": 2, "updated": 1, "ready": 1, "conditions": [_READY]},
    "EdgeDevice": {
        "heartbeatTime": "2026-01-31T12:00:00.123456+01:00",
        "node": {"id": "0a", "address": "10.0.0.7"},
        "memoryBytes": 524_288,
        "allowedBytes": 500_000,
        "residentBytes": 330_000,
        "processRssBytes": 92_000_000,
        "branches": 4,
        "expectation": "0.68",
        "planner": "none",
        "source": "service",
        "bundleSha256": "2" * 64,
        "settingsHash": "cd34",
        "conditions": [_READY],
    },
}


def valid(kind: str) -> dict[str, Any]:
    """Return an object of the kind as it is on a server, with a status and with most fields said."""
    metadata = {
        "name": "my.object-1",
        "namespace": "default",
        "labels": {"app": "demo", "meedge.dev/site": ""},
        "annotations": {"note": "anything, really"},
        "uid": "6a4f",
        "generation": 2,
        "managedFields": [{"manager": "kubectl"}],
        "finalizers": ["meedge.dev/end"],
    }
    content = {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": metadata,
        "spec": SPECS[kind],
        "status": STATUSES[kind],
    }
    return deepcopy(content)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["\ud800", "64Mi", "0.5", "none", 10**400, -1, 2**63, "Ready", _NOW]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("name"), inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, content: dict[str, Any]) -> dict[str, Any]:
    """One to three places of the object removed, replaced, or given a further field."""
    content = deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([path for path in _places(content) if path]))
        parent: Any = content
        for part in above:
            parent = parent[part]
        match draw(st.sampled_from(["remove", "replace", "add"])):
            case "remove":
                del parent[last]
            case "replace":
                parent[last] = draw(JSON)
            case "add" if isinstance(parent, dict):
                parent[draw(st.text())] = draw(JSON)
        if not content:
            break
    return content
