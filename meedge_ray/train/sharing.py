"""Makes smaller copies of an exit's surviving branches: merge similar neurons, retrain, keep the better (MEEdge 3.5).

Convolutions stay as they are, so what reaches the FC layers is computed once a branch, and the rest takes seconds.
"""

import json
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from meedge_ray.api.elastic_model import Resources, Sharing
from meedge_ray.nn.branches import branch_name
from meedge_ray.nn.sharing import self_merge, smaller_head, split_head
from meedge_ray.train.cultivate import Cultivated, ExitTask, cultivated
from meedge_ray.train.device import training_device
from meedge_ray.train.features import FeatureReader, Features
from meedge_ray.train.files import whole_folder
from meedge_ray.train.retrain import Lessons, retrain
from meedge_ray.train.tasks import OnEpoch
from meedge_ray.train.zoo_network import Choice

_BATCH = 512


@dataclass(frozen=True, slots=True)
class Merged:
    """One merged branch."""

    exit_index: int
    choice: Choice
    module: nn.Module
    accuracy: float
    merged_neurons: tuple[int, ...]

    @property
    def name(self) -> str:
        """The branch's name in the bundle."""
        return f"{branch_name(self.exit_index, *self.choice)}.merged"


@dataclass(frozen=True, slots=True)
class Figures:
    """What merging did to one branch; `merged` is before retraining. Bytes are claimed of weights, 4 a parameter."""

    name: str
    merged_neurons: tuple[int, ...]
    widths: tuple[int, ...]
    accuracy_original: float
    accuracy_merged: float
    accuracy_retrained: float
    parameters_original: int
    parameters: int
    saved_bytes: int

    @property
    def accuracy(self) -> float:
        """Of the weights that were kept."""
        return max(self.accuracy_merged, self.accuracy_retrained)


@dataclass(frozen=True, slots=True)
class SharingTask:
    """Weight sharing of some branches of one exit, after their cultivation."""

    cultivation: ExitTask
    choices: tuple[Choice, ...]
    output: Path
    settings: Sharing

    @property
    def stage(self) -> str:
        """The stage's name in reports."""
        return "share"

    @property
    def name(self) -> str:
        """What it works on, in reports."""
        return self.cultivation.name

    @property
    def exit_index(self) -> int:
        """The exit it works on."""
        return self.cultivation.exit_index

    @property
    def epochs(self) -> int:
        """One a branch."""
        return len(self.choices)

    @property
    def resources(self) -> Resources:
        """What cultivating the exit took."""
        return self.cultivation.settings.resources

    @property
    def finished(self) -> bool:
        """Whether all of the exit's branches are merged."""
        return self.output.exists()

    def run(self, on_epoch: OnEpoch) -> None:
        """Merge and retrain every branch, and write heads and figures as one folder that appears whole."""
        features = Features(self.cultivation.features)
        channels, height, width = features.features(self.exit_index, "train").shape[1:]
        weights: dict[str, Tensor] = {}
        figures: list[Figures] = []
        for done, branch in enumerate(_originals(self, (channels, height, width)), start=1):
            head, said = _share(branch, features, self.settings, self.cultivation.settings.seed)
            weights |= {f"{branch.name}/{key}": value.cpu().contiguous() for key, value in head.state_dict().items()}
            figures.append(said)
            on_epoch(done, {"accuracy": max(one.accuracy for one in figures)})
        with whole_folder(self.output) as partial:
            save_file(weights, partial / "weights.safetensors")
            (partial / "merged.json").write_text(json.dumps([asdict(one) for one in figures], indent=1))


def shared(task: SharingTask, feature_shape: tuple[int, int, int]) -> list[Merged]:
    """Read a finished exit's merged branches back, in eval mode; branches that shared a convolution still do."""
    weights = load_file(task.output / "weights.safetensors")
    figures = [Figures(**said) for said in json.loads((task.output / "merged.json").read_text())]
    result = []
    for original, said in zip(_originals(task, feature_shape), figures, strict=True):
        head = smaller_head(_head(original.module), said.merged_neurons)
        prefix = f"{original.name}/"
        head.load_state_dict({key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)})
        module = nn.Sequential(OrderedDict(convolution=original.module.get_submodule("convolution"), head=head)).eval()
        neurons = tuple(said.merged_neurons)
        result.append(Merged(task.exit_index, original.choice, module, said.accuracy, neurons))
    return result


def fc_inputs(
    branch: nn.Module, features: NDArray[np.float16], chosen: NDArray[np.int64], device: torch.device
) -> Tensor:
    """Return what reaches the first FC layer of a branch in eval mode from the chosen features, [chosen, F]."""
    reader = FeatureReader(features)
    convolution = branch.get_submodule("convolution").to(device)
    pooling, _ = split_head(_head(branch))
    parts = np.array_split(chosen, -(-len(chosen) // _BATCH))
    with torch.no_grad():
        maps = (torch.from_numpy(reader.batch(part)).to(device, torch.float32) for part in parts)
        return torch.cat([pooling(convolution(batch.to(memory_format=torch.channels_last))) for batch in maps])


def few_lessons(
    branch: nn.Module, exit_index: int, features: Features, percent: int, seed: int, device: torch.device
) -> Lessons:
    """Return the share of the training samples a branch is retrained on, the same for all branches of a seed."""
    labels = features.labels("train")
    count = max(1, len(labels) * percent // 100)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(labels))[:count])
    return Lessons(
        inputs=fc_inputs(branch, features.features(exit_index, "train"), chosen, device),
        labels=torch.from_numpy(labels[chosen]).to(device),
        teacher=torch.from_numpy(features.logits("train")[chosen]).to(device),
    )


def _originals(task: SharingTask, feature_shape: tuple[int, int, int]) -> list[Cultivated]:
    return cultivated(replace(task.cultivation, choices=task.choices), feature_shape)


def _share(branch: Cultivated, features: Features, settings: Sharing, seed: int) -> tuple[nn.Sequential, Figures]:
    device = training_device()
    exit_index, head = branch.exit_index, _head(branch.module).to(device)
    labels = torch.from_numpy(features.labels("validation")).to(device)
    inputs = fc_inputs(branch.module, features.features(exit_index, "validation"), np.arange(len(labels)), device)

    def accuracy(logits: Tensor) -> float:
        return float((logits.argmax(1) == labels).double().mean())

    merged = self_merge(head, inputs, accuracy)
    pooling, fc = split_head(merged.head)
    lessons = few_lessons(branch.module, exit_index, features, settings.samples_percent, seed, device)
    retrained = retrain(fc, merged.merged_neurons, lessons, settings, seed=seed)
    with torch.no_grad():
        accuracies = [accuracy(layers(inputs)) for layers in (fc, retrained)]
    before = sum(parameter.numel() for parameter in branch.module.parameters())
    saved = sum(parameter.numel() for parameter in head.parameters()) - sum(
        parameter.numel() for parameter in fc.parameters()
    )
    figures = Figures(
        name=branch.name,
        merged_neurons=merged.merged_neurons,
        widths=tuple(part.out_features for part in fc if isinstance(part, nn.Linear))[:-1],
        accuracy_original=branch.accuracy,
        accuracy_merged=accuracies[0],
        accuracy_retrained=accuracies[1],
        parameters_original=before,
        parameters=before - saved,
        saved_bytes=4 * saved,
    )
    return nn.Sequential(*pooling, *(retrained if accuracies[1] >= accuracies[0] else fc)), figures


def _head(branch: nn.Module) -> nn.Sequential:
    head = branch.get_submodule("head")
    assert isinstance(head, nn.Sequential)
    return head
