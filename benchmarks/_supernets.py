"""The supernets of AdaptiveNet's figures: where their backbones come from, and what they are grown with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

from _networks import NETWORKS, Backbone, Build, Network, manifest

from meedge_ray.api.elastic_model import ElasticModel
from meedge_ray.train.build import build
from meedge_ray.train.manifest import Manifest
from meedge_ray.train.progress import Report

TRAIN_SAMPLES = 8000
DISTILLED, TUNED = 8, 4  # epochs


@dataclass(frozen=True)
class Grown:
    """A supernet: of which backbone, with which settings besides the schedule."""

    backbone: str
    supernet: Mapping[str, Any]
    distilled: int = DISTILLED
    tuned: int = TUNED


BACKBONES = {
    "resnet20": NETWORKS["resnet20-cifar10"],
    "resnet56": NETWORKS["resnet56-cifar10"],
    "mobilenetv2": Network(
        "mobilenetv2",
        "cifar10",
        Build(TRAIN_SAMPLES, 1),
        Backbone(10, 128, "0.002", train_samples=20000),
        arguments={"width_percent": 50},
    ),
}
PRUNED_ONLY = {"mergedBlocks": 1, "shrunk": ["0.25", "0.5", "0.75", "0.9"]}
SUPERNETS = {
    "resnet56": Grown("resnet56", {}),
    "resnet56-pruned": Grown("resnet56", PRUNED_ONLY),
    "mobilenetv2": Grown("mobilenetv2", {}),
    "mobilenetv2-pruned": Grown("mobilenetv2", PRUNED_ONLY),
    "resnet20": Grown("resnet20", {}),
    "resnet20-distilled": Grown("resnet20", {}, distilled=DISTILLED + TUNED, tuned=0),
    "resnet20-tuned": Grown("resnet20", {}, distilled=0, tuned=DISTILLED + TUNED),
}


def built(name: str, work: Path, report: Report, *, quick: bool) -> Path:
    """Return the folder of a supernet's bundle; what is there already is not built again.

    It is built in this process alone, so that the processor's seconds it takes are known: `seconds_of`.
    """
    output = work / name
    there = (output / "bundle.json").exists()
    manifest_ = declared(name, work, report, quick=quick)
    start = process_time()
    build(manifest_, output, report=report)
    if not there:
        (work / f"{name}.seconds").write_text(json.dumps(process_time() - start))
    return output


def seconds_of(name: str, work: Path) -> float:
    """Return the processor's seconds that building a supernet took."""
    seconds: float = json.loads((work / f"{name}.seconds").read_text())
    return seconds


def declared(name: str, work: Path, report: Report, *, quick: bool) -> Manifest:
    """Return the manifest of a supernet; trains the backbone where that is not done yet."""
    grown = SUPERNETS[name]
    work.mkdir(parents=True, exist_ok=True)
    base = manifest(f"{grown.backbone}-cifar10", BACKBONES[grown.backbone], work, None, report)
    content = base.model.model_dump(by_alias=True, mode="json", exclude_none=True)
    spec: dict[str, Any] = content["spec"]
    content["metadata"] = {"name": name}
    spec["data"]["trainSamples"] = 512 if quick else TRAIN_SAMPLES
    spec |= {"zoo": None, "sharing": None}
    spec["supernet"] = dict(grown.supernet) | {
        "distillation": {"epochs": 1 if quick else grown.distilled, "learningRate": "0.002"},
        "tuning": {"epochs": 1 if quick else grown.tuned, "learningRate": "0.0005"},
    }
    return Manifest(ElasticModel.model_validate(content), work)
