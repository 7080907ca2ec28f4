"""The compressed single-exit model of EINet's Figure 9: the backbone with fewer channels, fine-tuned."""

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch_pruning
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from meedge_ray.api.elastic_model import Pretrain
from meedge_ray.bundle.manifest import read_bundle, unit_store, write_bundle
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import MeedgeError
from meedge_ray.nn.multi_exit import has_exits
from meedge_ray.nn.partition import partition
from meedge_ray.nn.source import load_model
from meedge_ray.runtime.loading import load_engine
from meedge_ray.train.assemble import Surveyor, export_blocks
from meedge_ray.train.data import load_data
from meedge_ray.train.killing import scored
from meedge_ray.train.manifest import Manifest
from meedge_ray.train.pretrain import pretrain
from meedge_ray.train.progress import Report

FLOPS_KEPT = 0.5
FINE_TUNING = Pretrain.model_validate({"epochs": 3, "batchSize": 128, "learningRate": "0.001"})
_LAYERS = (nn.Conv2d, nn.Linear)
_STEPS = 100  # in which channels go, until the FLOPs are few enough
_NEAR = 0.01  # enough: a channel less in every layer may be far too few

Shape = tuple[int, int, int]


def pruned(manifest: Manifest, bundle: Bundle, output: Path, report: Report) -> Bundle:
    """Prune a bundle's backbone and return it as a bundle without branches, in the folder `output`.

    What is there already is not made again. A network whose manifest names weights is fine-tuned on the manifest's
    training samples. One that is trained together with its exits is pruned first and then trained alone, on the
    manifest's schedule: what is left of pruning then is the widths, and from nothing they learn as much (Liu et al.
    2019, "Rethinking the value of network pruning").

    Args:
        manifest: what the bundle was built from.
        bundle: gives everything that stays the same.
        output: the folder of the pruned bundle.
        report: told every stage's progress.
    """
    spec = manifest.model.spec
    settings, seed = spec.model.pretrain or FINE_TUNING, spec.cultivation.seed
    made_with = {**bundle.made_with, "flopsKept": str(FLOPS_KEPT), "fineTuning": settings.model_dump_json()}
    finished = _finished(output, made_with)
    if finished is not None:
        return finished
    work = output / ".build"
    work.mkdir(parents=True, exist_ok=True)
    dataset = load_data(spec.data, manifest.base_dir, scratch=work)
    channels, height, width = dataset.input.shape
    shape = channels, height, width
    torch.manual_seed(seed)
    model = load_model(spec.model, input_shape=shape, classes=len(dataset.classes), base_dir=manifest.base_dir)
    prune(model, shape, FLOPS_KEPT)
    pretrain(model, dataset, settings, seed=seed, checkpoint=work / "fine-tuning.safetensors", report=report)
    store = unit_store(output)
    blocks = export_blocks(partition(model, shape), store, report)
    accuracy = scored(load_engine(store, dataset.input, blocks, 0.0), dataset.validation)[None]
    times = Surveyor(store, dataset.input, blocks, accuracy).profile("pruned", [], work, report)
    bundle = replace(
        bundle,
        blocks=blocks,
        final_accuracy=accuracy,
        branches=(),
        baselines={},
        eliminated=(),
        profiles={times.device_type: times},
        confidences=None,
        predictor=None,
        made_with=made_with,
    )
    write_bundle(output, bundle)
    shutil.rmtree(work)
    return bundle


def prune(model: nn.Module, input_shape: Shape, flops_kept: float) -> None:
    """Take the same share of channels from every layer, those of the smallest L1 norm, until so few FLOPs are left.

    Only channels between two layers go. Those that several layers write or read stay: ResNet's shortcuts pad channels
    and MSDNet packs maps, which fixes how many there are.

    Args:
        model: pruned in place.
        input_shape: channels, height and width of one input.
        flops_kept: share of the FLOPs that may be left.
    """
    sample = torch.zeros(1, *input_shape)
    before = _flops(model, sample)
    with warnings.catch_warnings():
        # It looks for channels through MSDNet's packed maps and gives up: none of those are pruned.
        warnings.filterwarnings("ignore", message="Maximum recursive depth reached")
        pruners = [
            torch_pruning.BasePruner(
                part,
                x,
                importance=torch_pruning.importance.MagnitudeImportance(p=1, normalizer=None, group_reduction="first"),
                pruning_ratio=1.0,
                iterative_steps=_STEPS,
                ignored_layers=_fixed_layers(part, x),
            )
            for part, x in _parts(model, sample)
        ]
        for _ in range(_STEPS):
            if _flops(model, sample) <= (flops_kept + _NEAR) * before:
                break
            for pruner in pruners:
                pruner.step()


@torch.no_grad()
def _parts(model: nn.Module, sample: torch.Tensor) -> list[tuple[nn.Module, torch.Tensor]]:
    """Return what is pruned on its own, with its input: through all of an MSDNet's packed maps are too many paths."""
    if not has_exits(model):
        return [(model, sample)]
    parts = []
    for part in (*model.exit_blocks, model.exit_classifiers[-1]):
        parts.append((part, sample))
        sample = part(sample)
    return parts


def _fixed_layers(model: nn.Module, sample: torch.Tensor) -> list[nn.Module]:
    """Return the layers whose output does not go to one other layer alone."""
    nodes = torch_pruning.DependencyGraph().build_dependency(model, sample).module2node
    return [module for module, node in nodes.items() if isinstance(module, _LAYERS) and not _read_by_one_layer(node)]


def _read_by_one_layer(node: torch_pruning.Node) -> bool:
    while len(node.outputs) == 1:
        [node] = node.outputs
        if isinstance(node.module, _LAYERS):
            return True
        if len(node.inputs) != 1:
            return False
    return False


def _flops(model: nn.Module, sample: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(sample)
    return int(counter.get_total_flops())


def _finished(output: Path, made_with: Mapping[str, str]) -> Bundle | None:
    try:
        bundle = read_bundle(output)
    except MeedgeError:
        return None
    return bundle if bundle.made_with == made_with else None
