"""From a manifest to a bundle: one stage after another, each of which a killed build finds again.

model + data -> partition -> features -> cultivate -> export -> profile -> survive -> bundle
"""

import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from meedge_ray.api.elastic_model import ElasticModelSpec
from meedge_ray.bundle.manifest import read_bundle, unit_store, write_bundle
from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import Block, Branch, Bundle, Eliminated, Profile
from meedge_ray.domain.errors import InvalidInputError, MeedgeError
from meedge_ray.domain.paths import expand_path
from meedge_ray.nn.branches import branch_name, zoo_branches
from meedge_ray.nn.export import export_unit
from meedge_ray.nn.partition import Chain, partition
from meedge_ray.nn.source import load_model, save_weights
from meedge_ray.runtime.loading import load_engine, stored_candidates
from meedge_ray.runtime.profiler import device_type, profile
from meedge_ray.search.survival import survive
from meedge_ray.train.baselines import BaselineChoices, baseline_choices
from meedge_ray.train.cultivate import Cultivated, ExitTask, cultivate_exit, cultivated
from meedge_ray.train.data import Dataset, load_data
from meedge_ray.train.features import cache_features
from meedge_ray.train.manifest import Manifest
from meedge_ray.train.pretrain import pretrain
from meedge_ray.train.progress import Report, silent

Cultivate = Callable[[Sequence[ExitTask], Report], None]


def cultivate_in_turn(tasks: Sequence[ExitTask], report: Report) -> None:
    """Train one exit after the other in this process: what a machine without Ray does."""
    for done, task in enumerate(tasks):

        def on_epoch(epoch: int, figures: Mapping[str, float], *, done: int = done, task: ExitTask = task) -> None:
            report(
                "cultivate",
                done + epoch / task.settings.epochs,
                len(tasks),
                f"exit {task.exit_index}: best {figures['best_accuracy']:.1%}",
            )

        cultivate_exit(task, on_epoch)


def build(
    manifest: Manifest, output: Path, *, cultivate: Cultivate = cultivate_in_turn, report: Report = silent
) -> Bundle:
    """Build the manifest's bundle in the folder `output`, going on where an earlier build was killed.

    Args:
        manifest: what to build.
        output: the bundle's folder; an earlier bundle in it stays whole until the new one replaces it.
        cultivate: trains the exits still missing, here in turn or on a cluster.
        report: told every stage's progress.

    Raises:
        MeedgeError: the manifest, its data or its model cannot be used; the message says which and why.
    """
    spec = manifest.model.spec
    dataset = load_data(spec.data, manifest.base_dir)
    key = _fingerprint(spec, dataset, manifest.base_dir)
    finished = _finished(output, key)
    if finished is not None:
        return finished
    work = output / ".build" / key[:16]
    work.mkdir(parents=True, exist_ok=True)
    chain = partition(_model(manifest, dataset, work, report), dataset.input.shape)
    features = cache_features(chain, dataset, work / "features", report)
    baselines = baseline_choices(chain)
    tasks = _tasks(chain, baselines, spec, len(dataset.classes), work)
    missing = [task for task in tasks if not task.finished]
    if missing:
        cultivate(missing, report)
    trained = [branch for task in tasks for branch in cultivated(task, _feature_shape(chain, task.exit_index))]
    bundle = _assemble(manifest, dataset, chain, trained, baselines, features.final_accuracy, output, report)
    bundle = replace(bundle, made_with={"fingerprint": key, **_versions()})
    write_bundle(output, bundle)
    shutil.rmtree(output / ".build")
    return bundle


def _model(manifest: Manifest, dataset: Dataset, work: Path, report: Report) -> nn.Module:
    spec = manifest.model.spec
    pretrained = work / "pretrained.safetensors"
    declared = spec.model
    if pretrained.exists():
        declared = declared.model_copy(update={"weights": str(pretrained.resolve()), "pretrain": None})
    torch.manual_seed(spec.cultivation.seed)
    model = load_model(declared, input_shape=_image(dataset), classes=len(dataset.classes), base_dir=manifest.base_dir)
    if declared.pretrain is not None:
        pretrain(model, dataset, declared.pretrain, seed=spec.cultivation.seed, report=report)
        save_weights(model, pretrained)
    return model


def _tasks(
    chain: Chain, baselines: BaselineChoices, spec: ElasticModelSpec, classes: int, work: Path
) -> list[ExitTask]:
    tasks = []
    for exit_index in range(chain.exit_count):
        choices = dict.fromkeys(zoo_branches(spec.zoo, _feature_shape(chain, exit_index)))
        choices.update(dict.fromkeys(method[exit_index] for method in baselines.values() if exit_index in method))
        tasks.append(
            ExitTask(
                exit_index=exit_index,
                choices=tuple(choices),
                classes=classes,
                features=work / "features",
                output=work / f"exit-{exit_index:02d}",
                settings=spec.cultivation,
            )
        )
    return tasks


def _assemble(
    manifest: Manifest,
    dataset: Dataset,
    chain: Chain,
    trained: Sequence[Cultivated],
    baselines: BaselineChoices,
    final_accuracy: float,
    output: Path,
    report: Report,
) -> Bundle:
    store = unit_store(output)
    blocks = _export_blocks(chain, store, report)
    branches = _export_branches(chain, trained, store, report)
    engine = load_engine(store, dataset.input, blocks, final_accuracy)
    report("profile", 0, 1)
    measured = profile(engine, stored_candidates(store, branches), device_type=device_type())
    report("profile", 1, 1)
    zoo = {
        branch_name(exit_index, *choice)
        for exit_index in range(chain.exit_count)
        for choice in zoo_branches(manifest.model.spec.zoo, _feature_shape(chain, exit_index))
    }
    kept, eliminated = _survivors([branch for branch in branches if branch.name in zoo], measured, final_accuracy)
    fixed = _fixed_sets(baselines, branches)
    named = {branch.name for branch in [*kept, *(branch for method in fixed.values() for branch in method)]}
    spec = manifest.model.spec
    return Bundle(
        model=manifest.model.metadata.name,
        architecture=spec.model.architecture,
        input=dataset.input,
        classes=dataset.classes,
        blocks=blocks,
        final_accuracy=final_accuracy,
        branches=kept,
        baselines=fixed,
        eliminated=eliminated,
        profiles={
            measured.device_type: replace(
                measured, branch_ms={name: ms for name, ms in measured.branch_ms.items() if name in named}
            )
        },
        data=_data_section(spec, manifest.base_dir),
    )


def _export_blocks(chain: Chain, store: UnitStore, report: Report) -> tuple[Block, ...]:
    blocks = []
    for index, piece in enumerate(chain.pieces):
        blocks.append(
            Block(
                name=piece.name,
                unit=store.put(export_unit(piece.module, piece.input_shape)),
                input_shape=piece.input_shape,
                output_shape=piece.output_shape,
                parameters=piece.parameters,
                flops=piece.flops,
            )
        )
        report("export blocks", index + 1, len(chain.pieces))
    return tuple(blocks)


def _export_branches(
    chain: Chain, trained: Sequence[Cultivated], store: UnitStore, report: Report
) -> tuple[Branch, ...]:
    branches = []
    for index, branch in enumerate(trained):
        convolution, fc = branch.choice
        branches.append(
            Branch(
                name=branch.name,
                exit_index=branch.exit_index,
                convolution=convolution.name,
                fc=fc.name,
                unit=store.put(export_unit(branch.module, _feature_shape(chain, branch.exit_index))),
                parameters=sum(parameter.numel() for parameter in branch.module.parameters()),
                accuracy=branch.accuracy,
            )
        )
        report("export branches", index + 1, len(trained))
    return tuple(branches)


def _survivors(
    branches: Sequence[Branch], profile: Profile, final_accuracy: float
) -> tuple[tuple[Branch, ...], tuple[Eliminated, ...]]:
    reached_ms = list(accumulate(profile.block_ms))
    times_ms = [reached_ms[branch.exit_index] + profile.branch_ms[branch.name] for branch in branches]
    _, reasons = survive(
        times_ms,
        [branch.accuracy for branch in branches],
        final_ms=profile.single_exit_ms,
        final_accuracy=final_accuracy,
    )
    kept = tuple(branch for branch, reason in zip(branches, reasons, strict=True) if not reason)
    eliminated = tuple(
        Eliminated(
            name=branch.name,
            exit_index=branch.exit_index,
            accuracy=branch.accuracy,
            time_ms=time_ms,
            reason=reason,
        )
        for branch, time_ms, reason in zip(branches, times_ms, reasons, strict=True)
        if reason
    )
    return kept, eliminated


def _fixed_sets(baselines: BaselineChoices, branches: Sequence[Branch]) -> dict[str, tuple[Branch, ...]]:
    by_name = {branch.name: branch for branch in branches}
    return {
        method: tuple(by_name[branch_name(exit_index, *choice)] for exit_index, choice in sorted(exits.items()))
        for method, exits in baselines.items()
    }


def _feature_shape(chain: Chain, exit_index: int) -> tuple[int, int, int]:
    channels, height, width = chain.pieces[exit_index].output_shape
    return channels, height, width


def _image(dataset: Dataset) -> tuple[int, int, int]:
    if len(dataset.input.shape) != 3:
        raise InvalidInputError(
            f"a sample has shape {dataset.input.shape}; branches need [channels, height, width]", where="spec.data"
        )
    channels, height, width = dataset.input.shape
    return channels, height, width


def _data_section(spec: ElasticModelSpec, base_dir: Path) -> dict[str, Any]:
    # Evaluation happens elsewhere and later: plain paths become absolute, variables stay for who reads them.
    section: dict[str, Any] = spec.data.model_dump(by_alias=True, mode="json", exclude_none=True)
    for field in ("path", "testPath"):
        if field in section and "$" not in section[field]:
            section[field] = str((base_dir / section[field]).resolve())
    return section


def _finished(output: Path, fingerprint: str) -> Bundle | None:
    try:
        bundle = read_bundle(output)
    except MeedgeError:
        return None
    return bundle if bundle.made_with.get("fingerprint") == fingerprint else None


def _fingerprint(spec: ElasticModelSpec, dataset: Dataset, base_dir: Path) -> str:
    digest = hashlib.sha256(spec.model_dump_json().encode())
    for split in (dataset.train, dataset.validation):
        digest.update(np.ascontiguousarray(split.x).data)
        digest.update(split.y.data)
    if spec.model.weights is not None:
        weights = expand_path(spec.model.weights, base_dir, where="spec.model.weights")
        digest.update(weights.read_bytes() if weights.is_file() else b"")
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("meedge-ray", "torch", "onnxruntime", "numpy")}
