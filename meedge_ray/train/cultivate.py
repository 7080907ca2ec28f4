"""Trains all branches of one exit together on the cached features of the frozen backbone (MEEdge 3.2.1)."""

import json
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from meedge_ray.api.elastic_model import Cultivation, Resources
from meedge_ray.domain.quantity import parse_bytes
from meedge_ray.nn.branches import branch_name, build_branch
from meedge_ray.train.checkpoint import grown_weights, read_progress, restore, write_checkpoint
from meedge_ray.train.device import training_device
from meedge_ray.train.features import Features
from meedge_ray.train.files import whole_folder
from meedge_ray.train.stopping import beaten_stems
from meedge_ray.train.tasks import OnEpoch
from meedge_ray.train.zoo_memory import branch_cost, plan_groups
from meedge_ray.train.zoo_network import Choice, Group, Shape, Stem, stems_of
from meedge_ray.train.zoo_training import Maps, ZooTraining

_WEIGHTS = "weights.safetensors"
_ACCURACY = "accuracy.json"


@dataclass(frozen=True, slots=True)
class Cultivated:
    """One trained branch. `stopped_epoch` counts the epochs it was trained where early stopping ended that."""

    exit_index: int
    choice: Choice
    module: nn.Sequential
    accuracy: float
    stopped_epoch: int | None = None

    @property
    def name(self) -> str:
        """The branch's name in the bundle."""
        return branch_name(self.exit_index, *self.choice)

    @property
    def merged_neurons(self) -> tuple[int, ...]:
        """None: that comes later."""
        return ()


@dataclass(frozen=True, slots=True)
class ExitTask:
    """Cultivation of one exit: everything a worker needs, all of it on the shared disk or small.

    Branches of `spared` choices are never stopped early: published methods, which ours is compared with.
    """

    exit_index: int
    choices: tuple[Choice, ...]
    classes: int
    features: Path
    output: Path
    settings: Cultivation
    shared_convolutions: bool = False
    spared: tuple[Choice, ...] = ()

    @property
    def stage(self) -> str:
        """The stage's name in reports."""
        return "cultivate"

    @property
    def name(self) -> str:
        """What it works on, in reports."""
        return f"exit {self.exit_index}"

    @property
    def epochs(self) -> int:
        """Epochs of training."""
        return self.settings.epochs

    @property
    def resources(self) -> Resources:
        """What it takes of a cluster."""
        return self.settings.resources

    @property
    def finished(self) -> bool:
        """Whether the exit's result is there, whole."""
        return self.output.exists()

    @property
    def stems(self) -> list[Stem]:
        """The exit's convolutions and the heads over them."""
        return stems_of(self.exit_index, self.choices, shared=self.shared_convolutions)

    def check(self, feature_shape: Shape) -> None:
        """Refuse the task before any work where it takes more memory than there is.

        Raises:
            InvalidInputError: spec.cultivation.memory is too small.
        """
        self.plan(feature_shape, self.stems)

    def plan(self, feature_shape: Shape, stems: list[Stem]) -> list[list[Stem]]:
        """Return the stems in the groups that are trained at a time; errors are those of `check`."""
        memory = self.settings.memory
        return plan_groups(
            stems,
            feature_shape,
            self.classes,
            batch_size=self.settings.batch_size,
            memory_bytes=None if memory is None else parse_bytes(memory, where="spec.cultivation.memory"),
            device=training_device(),
        )

    def run(self, on_epoch: OnEpoch) -> None:
        """Train the branches, going on after the last epoch that a killed run finished; they appear as a whole folder.

        On one CPU, with as many threads, the result has the same bits however often the run was killed.

        Args:
            on_epoch: told the epochs done and the mean and best accuracy on validation.

        Raises:
            InvalidInputError: spec.cultivation.memory is too small.
        """
        checkpoint = self.output.with_name(f"{self.output.name}.training")
        growth = _Growth(self, checkpoint)
        progress = growth.progress
        while progress.epochs < self.epochs:
            growth.epoch()
            accuracies = list(progress.accuracies.values())
            on_epoch(progress.epochs, {"mean_accuracy": float(np.mean(accuracies)), "accuracy": max(accuracies)})
        del growth  # its memory, before all weights are read
        with whole_folder(self.output) as partial:
            save_file(grown_weights(checkpoint, progress, self.stems), partial / _WEIGHTS)
            said = {
                name: {"accuracy": accuracy, "stoppedEpoch": progress.stopped_epochs.get(name)}
                for name, accuracy in progress.accuracies.items()
            }
            (partial / _ACCURACY).write_text(json.dumps(said, indent=1))
        shutil.rmtree(checkpoint)


def cultivated(task: ExitTask, feature_shape: Shape) -> list[Cultivated]:
    """Read a finished exit's branches back, in eval mode; those that share a convolution hold the very same module."""
    owned: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in load_file(task.output / _WEIGHTS).items():
        owner, _, own = key.partition("/")
        owned[owner][own] = value
    said = json.loads((task.output / _ACCURACY).read_text())
    stem_of = {name: stem.name for stem in task.stems for name, _ in stem.heads}
    convolutions: dict[str, nn.Module] = {}
    result = []
    for choice in task.choices:
        name = branch_name(task.exit_index, *choice)
        module = build_branch(*choice, feature_shape, task.classes)
        module.load_state_dict(owned[stem_of[name]] | owned[name])
        module.convolution = convolutions.setdefault(stem_of[name], module.get_submodule("convolution"))
        accuracy, stopped_epoch = said[name]["accuracy"], said[name]["stoppedEpoch"]
        result.append(Cultivated(task.exit_index, choice, module.eval(), accuracy, stopped_epoch))
    return result


class _Growth:
    """The training of an exit's branches from checkpoint to checkpoint."""

    def __init__(self, task: ExitTask, checkpoint: Path) -> None:
        self.progress = read_progress(checkpoint)
        self._task = task
        self._checkpoint = checkpoint
        self._features = Features(task.features)
        self._validation = self._maps("validation", 0)
        self._train: tuple[int, Maps] | None = None
        self._training: ZooTraining | None = None

    def epoch(self) -> None:
        """Train one epoch, measure, stop who is beaten, and write the checkpoint."""
        settings, progress, epoch = self._task.settings, self.progress, self.progress.epochs
        maps = self._train_maps(epoch)
        steps = -(-len(maps.labels) // settings.batch_size)
        if self._training is None:
            self._training = self._restored(epoch * steps)
        order = np.random.default_rng((settings.seed, epoch)).permutation(len(maps.labels))
        self._training.train(maps, order, steps, settings.epochs * steps)
        progress.accuracies |= self._training.accuracies(self._validation, settings.batch_size)
        progress.epochs += 1
        stopped = self._stopped()
        progress.stopped_epochs |= dict.fromkeys(stopped, progress.epochs)
        write_checkpoint(self._checkpoint, progress, self._training.groups, self._training.optimizer)
        if stopped:
            self._training = None  # the rest is read back from the checkpoint, as after a kill

    def _restored(self, steps_done: int) -> ZooTraining:
        task = self._task
        groups = [
            Group(stems, self._shape, task.classes, seed=task.settings.seed)
            for stems in task.plan(self._shape, self._live)
        ]
        training = ZooTraining(
            groups, training_device(), learning_rate=float(task.settings.learning_rate), steps_done=steps_done
        )
        if steps_done:
            restore(self._checkpoint, self.progress, training.groups, training.optimizer)
        return training

    def _stopped(self) -> list[str]:
        task, early = self._task, self._task.settings.early_stopping
        if early is None or not early.after_epochs <= self.progress.epochs < task.epochs:
            return []
        named = {branch_name(task.exit_index, *choice): choice for choice in task.choices}
        beaten = beaten_stems(
            self._live,
            self.progress.accuracies,
            {name: branch_cost(choice, self._shape, task.classes) for name, choice in named.items()},
            margin=early.margin_percent / 100,
            spared=frozenset(name for name, choice in named.items() if choice in task.spared),
        )
        return [name for stem in beaten for name, _ in stem.heads]

    @property
    def _shape(self) -> Shape:
        channels, height, width = self._features.features(self._task.exit_index, "validation").shape[1:]
        return channels, height, width

    @property
    def _live(self) -> list[Stem]:
        return [stem for stem in self._task.stems if stem.heads[0][0] not in self.progress.stopped_epochs]

    def _train_maps(self, epoch: int) -> Maps:
        view = epoch % self._features.views
        if self._train is None or self._train[0] != view:
            self._train = None  # its memory, before that of the next
            self._train = view, self._maps("train", view)
        return self._train[1]

    def _maps(self, split: str, view: int) -> Maps:
        mapped = self._features.features(self._task.exit_index, split, view)
        return Maps(mapped, self._features.labels(split), training_device(), float(self._task.resources.gpus))
