"""The backbone of a build, trained where it came without weights, and the heads that are trained together with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from meedge_ray.api.elastic_model import ElasticModelSpec
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.nn.multi_exit import Head, MultiExit, fresh_heads, has_exits, own_heads
from meedge_ray.nn.partition import Chain, partition
from meedge_ray.nn.source import load_model, save_weights
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.train.data import Dataset
from meedge_ray.train.device import training_device
from meedge_ray.train.pretrain import pretrain
from meedge_ray.train.progress import Report

_BATCH = 64


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


def load_backbone(
    spec: ElasticModelSpec,
    dataset: Dataset,
    input_shape: tuple[int, int, int],
    *,
    base_dir: Path,
    work: Path,
    check: Callable[[Chain], None],
    report: Report,
) -> Backbone:
    """Load the manifest's model and train it where it needs that, going on where an earlier build was killed.

    Args:
        spec: of the build.
        dataset: its train split is trained on.
        input_shape: channels, height and width of one input.
        base_dir: the folder the manifest's paths are relative to.
        work: folder for checkpoints and for what was trained.
        check: refuses a chain that the rest of the build cannot use, before anything is trained.
        report: told the epochs done.

    Raises:
        InvalidInputError: the model or its weights cannot be used, or there would be no exits.
    """
    declared, asked, seed = spec.model, spec.model.pretrain, spec.cultivation.seed
    weights, head_weights = work / "pretrained.safetensors", work / "heads.safetensors"
    if weights.exists():
        declared = declared.model_copy(update={"weights": str(weights), "pretrain": None})
    torch.manual_seed(seed)
    classes = len(dataset.classes)
    model = load_model(declared, input_shape=input_shape, classes=classes, base_dir=base_dir)
    _check_exits(spec, model)
    chain = partition(model, input_shape)
    heads: tuple[Head, ...] = ()
    if has_exits(model):
        heads = own_heads(model)
    elif asked is not None and asked.exits is not None:
        heads = fresh_heads(asked.exits, [chain.map_shape(index) for index in range(chain.exit_count)], classes)
    check(chain)
    modules = nn.ModuleList(head.module for head in heads)
    if declared.pretrain is not None:
        network = Backbone(chain, heads).network if heads else model
        pretrain(network, dataset, declared.pretrain, seed=seed, checkpoint=work / "pretraining", report=report)
        save_weights(modules, head_weights)
        save_weights(model, weights)  # the last: where it is, all is
        chain = partition(model, input_shape)
    elif weights.exists() and heads:
        modules.load_state_dict(safetensors.torch.load_file(head_weights))
    modules.eval()
    return Backbone(chain, heads)


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
