"""The networks of EINet's figures: pre-trained ones with its exits, and MSDNets trained with theirs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _networks import NETWORKS, Backbone, Build, data_section, manifest
from _networks import Network as MeedgeNetwork

from meedge_ray.actors.cluster import cluster
from meedge_ray.api.elastic_model import ElasticModel
from meedge_ray.jobs.tasks import run_on_ray
from meedge_ray.train.build import build
from meedge_ray.train.manifest import Manifest
from meedge_ray.train.progress import Report

_FEW = {"convolutions": [{"kind": "none"}], "fullyConnected": [{"pooledSize": 1}]}  # EINet's exits come besides


_MNIST = MeedgeNetwork("alexnet", "mnist", Build(8000, 6), Backbone(2, 128, "0.0007", train_samples=10000))


@dataclass(frozen=True)
class Frozen:
    """A pre-trained network whose exits are cultivated: all of EINet's, and those BranchyNet has in some."""

    backbone: str
    train_samples: int
    epochs: int
    kills: int = 1000


@dataclass(frozen=True)
class Together:
    """A multi-exit network trained from nothing, all exits together."""

    data: str
    arguments: dict[str, int]
    train_samples: int
    epochs: int
    kills: int = 1000


@dataclass(frozen=True)
class Network:
    """What is killed: the exits of one published set, of a network built once."""

    built: str
    exits: str


_BUILDS: dict[str, Frozen | Together] = {
    "alexnet-mnist": Frozen("alexnet-mnist", 4000, 4),
    "alexnet": Frozen("alexnet-cifar10", 8000, 6),
    "vgg16": Frozen("vgg16-cifar10", 4000, 5),
    "resnet20": Frozen("resnet20-cifar10", 12000, 8, kills=4000),
    "resnet56": Frozen("resnet56-cifar10", 6000, 5),
    "msdnet21": Together("cifar10", {"blocks": 21, "step": 2, "base": 4, "channels": 16}, 10000, 8),
    "msdnet40": Together("cifar10", {"blocks": 40, "step": 1, "base": 4, "channels": 16}, 10000, 8),
}
NETWORKS_KILLED = {
    "alexnet-mnist": Network("alexnet-mnist", "einet"),
    "b-alexnet": Network("alexnet", "branchynet"),
    "alexnet": Network("alexnet", "einet"),
    "vgg16": Network("vgg16", "einet"),
    "resnet20": Network("resnet20", "einet"),
    "resnet56": Network("resnet56", "einet"),
    "msdnet21": Network("msdnet21", "trained_together"),
    "msdnet40": Network("msdnet40", "trained_together"),
}


def builds(*, quick: bool) -> dict[str, Frozen | Together]:
    """Return what is built, by name."""
    if quick:
        return {name: replace(build, train_samples=512, epochs=1, kills=200) for name, build in _BUILDS.items()}
    return dict(_BUILDS)


def declared(name: str, build_: Frozen | Together, work: Path, report: Report) -> Manifest:
    """Return the manifest of what is built; trains the backbone where that is not done yet."""
    work.mkdir(parents=True, exist_ok=True)
    return _frozen(name, build_, work, report) if isinstance(build_, Frozen) else _together(name, build_, work)


def built(manifest_: Manifest, work: Path, report: Report) -> Path:
    """Return the folder of the manifest's bundle; what is there already is not built again."""
    output = work / manifest_.model.metadata.name
    with cluster():
        build(manifest_, output, run=run_on_ray, report=report)
    return output


def _frozen(name: str, network: Frozen, work: Path, report: Report) -> Manifest:
    backbone = _MNIST if network.backbone == "alexnet-mnist" else NETWORKS[network.backbone]
    base = manifest(network.backbone, backbone, work, None, report)
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
