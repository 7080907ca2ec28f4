"""From a manifest to a bundle: one stage after another, each of which a killed build finds again.

model + data -> partition -> features -> cultivate -> export -> profile -> survive -> bundle
"""

import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from meedge_ray.api.elastic_model import ElasticModelSpec
from meedge_ray.bundle.manifest import read_bundle, write_bundle
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import InvalidInputError, MeedgeError
from meedge_ray.domain.paths import expand_path
from meedge_ray.nn.branches import zoo_branches
from meedge_ray.nn.partition import Chain, partition
from meedge_ray.nn.source import load_model, save_weights
from meedge_ray.train.assemble import assemble
from meedge_ray.train.baselines import baseline_choices
from meedge_ray.train.cultivate import ExitTask, cultivate_exit, cultivated
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
    work = (output / ".build" / key[:16]).resolve()  # workers run elsewhere
    work.mkdir(parents=True, exist_ok=True)
    chain = partition(_model(manifest, dataset, work, report), dataset.input.shape)
    features = cache_features(chain, dataset, work / "features", report)
    tasks = _tasks(chain, spec, len(dataset.classes), work)
    missing = [task for task in tasks if not task.finished]
    if missing:
        cultivate(missing, report)
    trained = [branch for task in tasks for branch in cultivated(task, chain.map_shape(task.exit_index))]
    bundle = assemble(manifest, dataset, chain, trained, features.final_accuracy, output, report)
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


def _tasks(chain: Chain, spec: ElasticModelSpec, classes: int, work: Path) -> list[ExitTask]:
    baselines = baseline_choices(chain)
    tasks = []
    for exit_index in range(chain.exit_count):
        choices = dict.fromkeys(zoo_branches(spec.zoo, chain.map_shape(exit_index)))
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


def _image(dataset: Dataset) -> tuple[int, int, int]:
    if len(dataset.input.shape) != 3:
        raise InvalidInputError(
            f"a sample has shape {dataset.input.shape}; branches need [channels, height, width]", where="spec.data"
        )
    channels, height, width = dataset.input.shape
    return channels, height, width


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
