"""The networks of EINet's figures: pre-trained ones with its exits, and MSDNets trained with theirs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _networks import NETWORKS, data_section, manifest

from meedge_ray.actors.cluster import cluster
from meedge_ray.api.elastic_model import ElasticModel
from meedge_ray.jobs.tasks import run_on_ray
from meedge_ray.train.build import build
from meedge_ray.train.manifest import Manifest
from meedge_ray.train.progress import Report

_FEW = {"convolutions": [{"kind": "none"}], "fullyConnected": [{"pooledSize": 1}]}  # EINet's exits come besides


@dataclass(frozen=True)
class Frozen:
    """A pre-trained network whose exits are cultivated; `exits` names the published set of them."""

    backbone: str
    exits: str
    train_samples: int
    epochs: int
    kills: int = 5000


@dataclass(frozen=True)
class Together:
    """A multi-exit network trained from nothing, all exits together."""

    data: str
    arguments: dict[str, int]
    train_samples: int
    epochs: int
    kills: int = 5000
    exits: str = "trained_together"


Network = Frozen | Together

_NETWORKS: dict[str, Network] = {
    "b-alexnet": Frozen("alexnet-cifar10", "branchynet", 8000, 6),
    "alexnet": Frozen("alexnet-cifar10", "einet", 8000, 6),
    "vgg16": Frozen("vgg16-cifar10", "einet", 8000, 5),
    "resnet20": Frozen("resnet20-cifar10", "einet", 12000, 8),
    "resnet56": Frozen("resnet56-cifar10", "einet", 8000, 6),
    "msdnet21": Together("cifar10", {"blocks": 21, "step": 2, "base": 4, "channels": 16}, 10000, 8),
    "msdnet40": Together("cifar10", {"blocks": 40, "step": 1, "base": 4, "channels": 16}, 10000, 8),
}


def networks(*, quick: bool) -> dict[str, Network]:
    """Return all networks by name."""
    if quick:
        return {name: replace(network, train_samples=512, epochs=1) for name, network in _NETWORKS.items()}
    return dict(_NETWORKS)


def built(name: str, network: Network, work: Path, report: Report) -> Path:
    """Return the folder of the network's bundle; what is there already is not built again."""
    work.mkdir(parents=True, exist_ok=True)
    declared = _frozen(name, network, work, report) if isinstance(network, Frozen) else _together(name, network, work)
    output = work / name
    with cluster():
        build(declared, output, run=run_on_ray, report=report)
    return output


def _frozen(name: str, network: Frozen, work: Path, report: Report) -> Manifest:
    base = manifest(network.backbone, NETWORKS[network.backbone], work, None, report)
    content = base.model.model_dump(by_alias=True, mode="json", exclude_none=True)
    content["metadata"] = {"name": name}
    spec: dict[str, Any] = content["spec"]
    spec["data"]["trainSamples"] = network.train_samples
    spec["zoo"] = _FEW
    spec["cultivation"] = {"epochs": network.epochs, "learningRate": "0.003"}
    spec["sharing"] = None
    return Manifest(ElasticModel.model_validate(content), work)


def _together(name: str, network: Together, work: Path) -> Manifest:
    content = {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "ElasticModel",
        "metadata": {"name": name},
        "spec": {
            "model": {
                "architecture": "msdnet",
                "arguments": network.arguments,
                "pretrain": {"epochs": network.epochs, "batchSize": 128, "learningRate": "0.002"},
            },
            "data": data_section(network.data, work, None) | {"trainSamples": network.train_samples},
            "zoo": None,
            "sharing": None,
        },
    }
    return Manifest(ElasticModel.model_validate(content), work)
