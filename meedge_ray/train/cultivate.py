"""Trains all branches of one exit together on the cached features of the frozen backbone (MEEdge 3.2.1).

The losses are added and the branches share no weights, so one backward pass gives every branch its own gradient: the
same training as one by one, at one pass over the data for all.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from meedge_ray.api.elastic_model import Convolution, Cultivation, FullyConnected
from meedge_ray.nn.branches import branch_name, build_branch
from meedge_ray.train.features import Features
from meedge_ray.train.files import whole_folder

Choice = tuple[Convolution, FullyConnected]
OnEpoch = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class ExitTask:
    """Cultivation of one exit: everything a worker needs, all of it on the shared disk or small."""

    exit_index: int
    choices: tuple[Choice, ...]
    classes: int
    features: Path
    output: Path
    settings: Cultivation

    @property
    def finished(self) -> bool:
        """Whether the exit's result is there, whole."""
        return self.output.exists()


@dataclass(frozen=True, slots=True)
class Cultivated:
    """One trained branch."""

    exit_index: int
    choice: Choice
    module: nn.Module
    accuracy: float

    @property
    def name(self) -> str:
        """The branch's name in the bundle."""
        return branch_name(self.exit_index, *self.choice)


def cultivate_exit(task: ExitTask, on_epoch: OnEpoch) -> None:
    """Train the exit's branches and write weights and accuracies as one folder that appears whole.

    Args:
        task: what to train, on what.
        on_epoch: told the epochs done and the mean and best accuracy on validation after each.
    """
    features = Features(task.features)
    train, validation = (features.features(task.exit_index, split) for split in ("train", "validation"))
    shape = tuple(int(side) for side in train.shape[1:])
    torch.manual_seed(task.settings.seed * 1009 + task.exit_index)
    branches = [build_branch(*choice, (shape[0], shape[1], shape[2]), task.classes) for choice in task.choices]
    labels = features.labels("train")
    optimizer = torch.optim.Adam(
        [parameter for branch in branches for parameter in branch.parameters()],
        lr=float(task.settings.learning_rate),
    )
    steps = -(-len(labels) // task.settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.settings.epochs * steps)
    shuffled = np.random.default_rng(task.settings.seed)
    accuracies = [0.0] * len(branches)
    for epoch in range(task.settings.epochs):
        for branch in branches:
            branch.train()
        for chosen in np.array_split(shuffled.permutation(len(labels)), steps):
            chosen.sort()
            x, y = _batch(train, chosen), torch.from_numpy(labels[chosen])
            loss = torch.stack([nn.functional.cross_entropy(branch(x), y) for branch in branches]).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        accuracies = _accuracies(branches, validation, features.labels("validation"))
        on_epoch(epoch + 1, {"mean_accuracy": float(np.mean(accuracies)), "best_accuracy": max(accuracies)})
    _save(task, branches, accuracies)


def _batch(features: NDArray[np.float16], chosen: NDArray[np.int64]) -> torch.Tensor:
    # Depthwise convolutions run 2 to 8 times faster on channels-last tensors.
    return torch.from_numpy(features[chosen].astype(np.float32)).to(memory_format=torch.channels_last)


@torch.inference_mode()
def _accuracies(branches: Sequence[nn.Module], features: NDArray[np.float16], labels: NDArray[np.int64]) -> list[float]:
    right = np.zeros(len(branches), np.int64)
    for branch in branches:
        branch.eval()
    for chosen in np.array_split(np.arange(len(labels)), -(-len(labels) // 512)):
        x = _batch(features, chosen)
        for index, branch in enumerate(branches):
            right[index] += int((branch(x).argmax(1).numpy() == labels[chosen]).sum())
    return [float(count) / len(labels) for count in right]


def _save(task: ExitTask, branches: Sequence[nn.Module], accuracies: Sequence[float]) -> None:
    names = [branch_name(task.exit_index, *choice) for choice in task.choices]
    weights = {
        f"{name}/{key}": value.contiguous()
        for name, branch in zip(names, branches, strict=True)
        for key, value in branch.state_dict().items()
    }
    with whole_folder(task.output) as partial:
        save_file(weights, partial / "weights.safetensors")
        (partial / "accuracy.json").write_text(json.dumps(dict(zip(names, accuracies, strict=True)), indent=1))


def cultivated(task: ExitTask, feature_shape: tuple[int, int, int]) -> list[Cultivated]:
    """Read a finished exit's branches back, in eval mode."""
    weights = load_file(task.output / "weights.safetensors")
    accuracies: dict[str, float] = json.loads((task.output / "accuracy.json").read_text())
    result = []
    for choice in task.choices:
        name = branch_name(task.exit_index, *choice)
        module = build_branch(*choice, feature_shape, task.classes)
        prefix = f"{name}/"
        module.load_state_dict({key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)})
        result.append(Cultivated(task.exit_index, choice, module.eval(), accuracies[name]))
    return result
