"""The backbone of a build, trained where it came without weights, and the heads that are trained together with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from meedge_ray.api.elastic_model import ElasticModelSpec, Model
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.nn.multi_exit import Head, MultiExit, fresh_heads, has_exits, own_heads
from meedge_ray.nn.partition import Chain, partition
from meedge_ray.nn.source import load_model, save_weights
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.train.data import Dataset, image_shape
from meedge_ray.train.device import training_device
from meedge_ray.train.pretrain import pretrain
from meedge_ray.train.progress import Report

_BATCH = 64
_WEIGHTS, _HEADS = "pretrained.safetensors", "heads.safetensors"


@dataclass(frozen=True, slots=True)
class Backbone:
    """The chain, and the head at each of its exit points where they were trained together; none where they were not."""

    chain: Chain
    heads: tuple[Head, ...] = ()

    @property
    def network(self) -> MultiExit:
        """Everything as one module, which shares its weights with the chain and the heads."""
        return MultiExit((piece.module for piece in self.chain.pieces), (head.module for head in self.heads))

    @torch.inference_mode()
    def accuracies(self, dataset: Dataset) -> list[float]:
        """Return the share of validation samples every head gets right, and the final exit's at the end."""
        samples, normalizer, device = dataset.validation, Normalizer(dataset.input), training_device()
        network = self.network.to(device).eval()
        right = torch.zeros(len(self.heads) + 1, dtype=torch.int64, device=device)
        for chosen in np.array_split(np.arange(len(samples)), -(-len(samples) // _BATCH)):
            batch = samples[chosen]
            x = torch.from_numpy(normalizer.batch(batch.x)).to(device)
            logits = network(x) if self.heads else (self.chain.run(x),)
            right += (torch.stack(logits).argmax(2) == torch.from_numpy(batch.y).to(device)).sum(1)
        network.to("cpu")
        return [count / len(samples) for count in right.tolist()]


def train_backbone(
    spec: ElasticModelSpec,
    dataset: Dataset,
    *,
    base_dir: Path,
    folder: Path,
    check: Callable[[Chain], None],
    report: Report,
) -> None:
    """Train a model that comes without weights, and its heads with it, going on where a killed run was.

    Args:
        spec: of the build.
        dataset: its train split is trained on.
        base_dir: the folder the manifest's paths are relative to.
        folder: for what is trained, and for a checkpoint meanwhile.
        check: refuses a chain that the rest of the build cannot use, before anything is trained.
        report: told the epochs done.

    Raises:
        InvalidInputError: the model cannot be used, or there would be no exits.
    """
    assert spec.model.pretrain is not None  # else there is nothing to train
    model, backbone = _untrained(spec, spec.model, dataset, base_dir)
    check(backbone.chain)
    pretrain(
        backbone.network if backbone.heads else model,
        dataset,
        spec.model.pretrain,
        seed=spec.cultivation.seed,
        checkpoint=folder / "pretraining",
        report=report,
    )
    save_weights(_modules(backbone.heads), folder / _HEADS)
    save_weights(model, folder / _WEIGHTS)


def load_backbone(spec: ElasticModelSpec, dataset: Dataset, *, base_dir: Path, trained: Path | None) -> Backbone:
    """Load the manifest's model with its weights.

    Args:
        spec: of the build.
        dataset: says the shape of an input, and how many classes there are.
        base_dir: the folder the manifest's paths are relative to.
        trained: the folder of `train_backbone`, where the model came without weights.

    Raises:
        InvalidInputError: the model or its weights cannot be used, or there would be no exits.
    """
    declared = spec.model
    if trained is not None:
        declared = declared.model_copy(update={"weights": str(trained / _WEIGHTS), "pretrain": None})
    _, backbone = _untrained(spec, declared, dataset, base_dir)
    if trained is not None and backbone.heads:
        _modules(backbone.heads).load_state_dict(safetensors.torch.load_file(trained / _HEADS))
    return backbone


def _untrained(spec: ElasticModelSpec, declared: Model, dataset: Dataset, base_dir: Path) -> tuple[nn.Module, Backbone]:
    """Return the model with the weights that are declared, and its chain and heads, which share them."""
    input_shape, classes = image_shape(dataset), len(dataset.classes)
    torch.manual_seed(spec.cultivation.seed)
    model = load_model(declared, input_shape=input_shape, classes=classes, base_dir=base_dir)
    _check_exits(spec, model)
    chain = partition(model, input_shape)
    asked = spec.model.pretrain
    heads: tuple[Head, ...] = ()
    if has_exits(model):
        heads = own_heads(model)
    elif asked is not None and asked.exits is not None:
        heads = fresh_heads(asked.exits, [chain.map_shape(index) for index in range(chain.exit_count)], classes)
    _modules(heads).eval()
    return model, Backbone(chain, heads)


def _modules(heads: Sequence[Head]) -> nn.ModuleList:
    return nn.ModuleList(head.module for head in heads)


def _check_exits(spec: ElasticModelSpec, model: nn.Module) -> None:
    exits = spec.model.pretrain is not None and spec.model.pretrain.exits is not None
    if has_exits(model):
        if exits:
            raise InvalidInputError(
                f"{spec.model.architecture} has exits of its own, which are always trained together",
                where="spec.model.pretrain.exits",
                do="Leave it out",
            )
    elif spec.zoo is None and spec.supernet is None and not exits:
        raise InvalidInputError(
            f"null leaves no exits to build: {spec.model.architecture} has none of its own, and none are trained "
            "together with it",
            where="spec.zoo",
            do="Set spec.model.pretrain.exits to {} to train a branch at every exit point together with the model, or "
            "leave spec.zoo out to cultivate branches",
        )
