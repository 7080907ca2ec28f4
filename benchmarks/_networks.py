"""The networks of MEEdge's tables: where their weights and data come from, and what they are built with."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meedge_ray.api.elastic_model import Data, ElasticModel, Pretrain
from meedge_ray.nn.backbones import build_backbone
from meedge_ray.nn.source import save_weights
from meedge_ray.train.data import load_data
from meedge_ray.train.manifest import Manifest
from meedge_ray.train.pretrain import pretrain
from meedge_ray.train.progress import Report

SHARED = "MEEDGE_SHARED"


@dataclass(frozen=True)
class Build:
    """What is built and measured: a schedule for two CPU cores, where the paper trains 300 epochs on GPUs."""

    train_samples: int
    epochs: int
    zoo: str = "full"
    sharing_epochs: int = 10
    kills: int = 10_000


@dataclass(frozen=True)
class Backbone:
    """How the backbone is trained where it has no weights."""

    epochs: int
    batch_size: int
    learning_rate: str
    train_samples: int | None = None


@dataclass(frozen=True)
class Network:
    """One network on one data set; `paper` is its row in MEEdge's Table 2, and `weights` lie in MEEDGE_SHARED."""

    architecture: str
    data: str
    build: Build
    backbone: Backbone | None = None
    weights: str | None = None
    paper: str | None = None
    arguments: Mapping[str, int] = field(default_factory=dict)


NETWORKS = {
    "resnet20-cifar10": Network("resnet20", "cifar10", Build(6000, 6), weights="resnet20-cifar10.safetensors"),
    "resnet56-cifar10": Network(
        "resnet56", "cifar10", Build(4000, 5, "reduced", kills=5000), weights="resnet56-cifar10.safetensors"
    ),
    "lenet-cifar10": Network("lenet", "cifar10", Build(12000, 8), Backbone(12, 128, "0.002"), paper="LeNet C10"),
    "alexnet-cifar10": Network("alexnet", "cifar10", Build(4000, 6), Backbone(8, 128, "0.0007"), paper="AlexNet C10"),
    "lenet-widar3": Network("lenet", "widar3", Build(1600, 40), Backbone(30, 64, "0.001")),
    "alexnet-widar3": Network("alexnet", "widar3", Build(1600, 40), Backbone(20, 64, "0.0005"), paper="AlexNet W3.0"),
    "resnet20-widar3": Network("resnet20", "widar3", Build(1600, 40), Backbone(20, 64, "0.002"), paper="ResNet20 W3.0"),
    "vgg16-cifar10": Network(
        "vgg16",
        "cifar10",
        Build(4000, 5, "reduced", kills=5000),
        Backbone(8, 128, "0.001", train_samples=20000),
        paper="VGG C100",
    ),
    "resnet110-cifar10": Network(
        "resnet110",
        "cifar10",
        Build(3000, 4, "reduced", kills=2000),
        Backbone(8, 128, "0.002", train_samples=12000),
        paper="ResNet110 C100",
    ),
}

_ZOOS: dict[str, dict[str, Any]] = {
    "full": {},  # the default: 15 convolutions x 7 FC choices
    "reduced": {  # 6 x 4
        "convolutions": [
            {"kind": "none"},
            {"kind": "depthwise"},
            {"kind": "separable"},
            {"kind": "spatiallySeparable"},
            {"kind": "dilated"},
            {"kind": "separable", "layers": 2},
        ],
        "fullyConnected": [
            {"pooledSize": 1},
            {"pooledSize": 4},
            {"pooledSize": 2, "hidden": [64]},
            {"pooledSize": 4, "hidden": [128]},
        ],
    },
    "quick": {
        "convolutions": [{"kind": "none"}, {"kind": "depthwise"}],
        "fullyConnected": [{"pooledSize": 2}, {"pooledSize": 2, "hidden": [32]}],
    },
}
_QUICK = Build(512, 1, "quick", sharing_epochs=1, kills=200)
_IMAGE_NET = {  # what the weights in MEEDGE_SHARED were trained with
    "scale": "0.00392156862745098",
    "mean": ["0.485", "0.456", "0.406"],
    "std": ["0.229", "0.224", "0.225"],
}


def networks(*, cifar100: bool, quick: bool) -> dict[str, Network]:
    """Return all networks by name; those of the paper's CIFAR-100 run on it where it is there, else on CIFAR-10."""
    known = dict(NETWORKS)
    if cifar100:
        for name, network in NETWORKS.items():
            if network.paper and network.paper.endswith("C100"):
                known[name.replace("cifar10", "cifar100")] = replace(known.pop(name), data="cifar100")
    if quick:
        known = {name: replace(network, build=_QUICK) for name, network in known.items()}
    return known


def manifest(name: str, network: Network, work: Path, cifar100: Path | None, report: Report) -> Manifest:
    """Return what to build; fetches the data and trains the backbone where that is not done yet."""
    data = data_section(network.data, work, cifar100)
    if network.weights is not None:
        weights = shared() / "models" / network.weights
        normalization: dict[str, Any] = _IMAGE_NET
    else:
        weights = work / f"{name}.safetensors"
        normalization = _trained(network, data, weights, report)
    build = network.build
    content = {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "ElasticModel",
        "metadata": {"name": name},
        "spec": {
            "model": {
                "architecture": network.architecture,
                "arguments": dict(network.arguments),
                "weights": str(weights),
            },
            "data": data | {"normalization": normalization, "trainSamples": build.train_samples},
            "zoo": _ZOOS[build.zoo] | {"sharedConvolutions": True},
            "cultivation": {"epochs": build.epochs, "learningRate": "0.003"},
            "sharing": {"epochs": build.sharing_epochs},
        },
    }
    return Manifest(ElasticModel.model_validate(content), work)


def _trained(network: Network, data: dict[str, Any], weights: Path, report: Report) -> dict[str, Any]:
    """Train the backbone unless its weights are there; return the normalization it is trained with."""
    backbone = network.backbone
    assert backbone is not None  # where there are no weights
    few = {} if backbone.train_samples is None else {"trainSamples": backbone.train_samples}
    dataset = load_data(Data.model_validate(data | few), Path())
    if not weights.exists():
        torch.manual_seed(0)
        channels, height, width = dataset.input.shape
        model = build_backbone(
            network.architecture,
            input_shape=(channels, height, width),
            classes=len(dataset.classes),
            arguments=network.arguments,
        )
        schedule = {
            "epochs": backbone.epochs,
            "batchSize": backbone.batch_size,
            "learningRate": backbone.learning_rate,
        }
        checkpoint = weights.with_suffix(".checkpoint")
        settings = Pretrain.model_validate(schedule)
        pretrain(model, dataset, settings, seed=0, checkpoint=checkpoint, report=report)
        save_weights(model, weights)
        checkpoint.unlink()
    return {
        "mean": [f"{value:.6f}" for value in dataset.input.mean],
        "std": [f"{value:.6f}" for value in dataset.input.std],
    }


def data_section(name: str, work: Path, cifar100: Path | None) -> dict[str, Any]:
    """Return the manifest's section; fetches what is not there yet."""
    if name == "widar3":
        path = work / "widar3.npz"
        if not path.exists():
            packed = np.load(shared() / "data" / "widar3" / "bvp.npz")
            np.savez(path, x=packed["x"].astype(np.float32), y=packed["gesture"].astype(np.int64))
        return {"source": "npz", "path": str(path)}
    folder = cifar100 if name == "cifar100" else work / name
    assert folder is not None  # networks() offers CIFAR-100 only where it is
    if name != "cifar100" and not (folder / "test.npz").exists():
        unpack = shared() / "data" / "unpack.py"
        subprocess.run([sys.executable, str(unpack), name, str(folder), "--npz"], check=True)
    return {
        "source": "npz",
        "path": str(folder / "train.npz"),
        "testPath": str(folder / "test.npz"),
        # Backbones have seen every training image: on those they look better than they are.
        "split": {"validationFrom": "test", "validationPercent": 50},
    }


def shared() -> Path:
    """Return the folder MEEDGE_SHARED names."""
    if SHARED not in os.environ:
        sys.exit(f"set {SHARED} to the folder that holds models/ and data/")
    return Path(os.environ[SHARED])
