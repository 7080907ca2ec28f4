"""What cultivation costs and what memory it takes: the pre-trained ResNet-20 on CIFAR-10, all 105 branches an exit.

Three ways of training the same zoo for as many epochs on the same machine:
- plain: each branch alone, through the frozen backbone up to its exit in every step, in PyTorch's default layout. Its
  cost is that of a few steps of every convolution choice at every exit, taken for all steps of all branches; validation
  is not counted. Accuracies are those of a drawn sample of branches, trained to the end;
- own: all branches of an exit at once on cached features, each with a convolution of its own;
- shared: the same with one convolution under all FC choices.
The cost of the latter two is everything: caching features, reading them, validation, checkpoints. Branches and batches
are seeded alike, so plain and own differ by rounding only.

Shared convolutions are another network, so what they cost in accuracy is compared again where branches have settled:
for more steps, at three exits.

Memory is the largest resident set of a fresh process that cultivates the first exit under a declared limit, for data
sets of one, two and four times as many samples.

Run: MEEDGE_SHARED=... python benchmarks/cultivation.py [--quick]; with a GPU it measures the CPU first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _networks import NETWORKS, manifest
from _results import status_bytes, write_results
from torch import Tensor, nn
from torch.nn import functional

from meedge_ray.api.elastic_model import Cultivation, Zoo
from meedge_ray.nn.branches import branch_name, build_branch, zoo_branches
from meedge_ray.nn.partition import Chain, partition
from meedge_ray.nn.source import load_model
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.train.cultivate import ExitTask, cultivated
from meedge_ray.train.data import Dataset, load_data
from meedge_ray.train.device import training_device
from meedge_ray.train.features import cache_features
from meedge_ray.train.progress import silent
from meedge_ray.train.samples import Samples
from meedge_ray.train.zoo_network import Choice, Group, stems_of

SHAPE, CLASSES, BATCH, SEED = (3, 32, 32), 10, 64, 0
MEMORY, MAP = "1Gi", (16, 32, 32)  # declared, and the largest map of the network
TARGETS = {"cost_ratio": 10, "accuracy_points": 0.5}
Step = Callable[[Tensor, Tensor], None]
Schedule = torch.optim.lr_scheduler.LRScheduler


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    train_samples: int = 1536
    validation_samples: int = 1000
    epochs: int = 3
    exits: tuple[int, ...] = tuple(range(10))
    sampled_an_exit: int = 2
    memory_samples: int = 2048
    zoo: Zoo = field(default_factory=Zoo)


# A few dozen steps leave a branch anywhere: what sharing costs in accuracy shows only where branches have settled.
LONGER = Size(train_samples=4096, epochs=5, exits=(1, 4, 8), sampled_an_exit=8)
QUICK = Size(
    256,
    200,
    1,
    (0, 9),
    1,
    256,
    Zoo.model_validate(
        {
            "convolutions": [{"kind": "none"}, {"kind": "depthwise", "kernelSize": 5}, {"kind": "separable"}],
            "fullyConnected": [{"pooledSize": 1}, {"pooledSize": 4}, {"pooledSize": 4, "hidden": [64]}],
        }
    ),
)


class Plain:
    """Training as without this package: one branch on top of the frozen backbone."""

    def __init__(self, chain: Chain, dataset: Dataset, size: Size) -> None:
        self._chain = chain
        self._size = size
        self._device = training_device()
        normalizer = Normalizer(dataset.input)
        self._train, self._validation = (
            (torch.from_numpy(normalizer.batch(part.x[:])), torch.from_numpy(part.y))
            for part in (dataset.train, dataset.validation)
        )

    def step_seconds(self, exit_index: int, choice: Choice, steps: int = 3) -> float:
        """Return the time of a step: the quickest of a few."""
        _, step, _ = self._prepared(exit_index, choice)
        batch = [part[:BATCH] for part in self._train]
        step(*batch)
        taken = []
        for _ in range(steps):
            start = time.perf_counter()
            step(*batch)
            _finished()
            taken.append(time.perf_counter() - start)
        return min(taken)

    def accuracy(self, exit_index: int, choice: Choice) -> float:
        """Return a branch's accuracy after all epochs."""
        branch, step, schedule = self._prepared(exit_index, choice)
        x, y = self._train
        for epoch in range(self._size.epochs):
            order = np.random.default_rng((SEED, epoch)).permutation(len(y))
            for chosen in np.array_split(order, _steps(len(y))):
                rows = np.sort(chosen)
                step(x[rows], y[rows])
                schedule.step()
        x, y = self._validation
        branch.eval()
        with torch.inference_mode():
            said = torch.cat([branch(self._map(part, exit_index)).argmax(1).cpu() for part in x.split(BATCH)])
        return float((said == y).double().mean())

    def _prepared(self, exit_index: int, choice: Choice) -> tuple[nn.Module, Step, Schedule]:
        shape = self._chain.map_shape(exit_index)
        branch = _as_cultivation_begins(exit_index, choice, shape).to(self._device)
        optimizer = torch.optim.Adam(branch.parameters(), lr=float(_settings(self._size).learning_rate))
        all_steps = self._size.epochs * _steps(len(self._train[1]))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, all_steps)

        def step(x: Tensor, y: Tensor) -> None:
            branch.train()
            loss = functional.cross_entropy(branch(self._map(x, exit_index)), y.to(self._device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return branch, step, schedule

    @torch.no_grad()
    def _map(self, x: Tensor, exit_index: int) -> Tensor:
        x = x.to(self._device)
        for piece in self._chain.pieces[: exit_index + 1]:
            x = piece.module(x)
        return x


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small size, to try it; writes no results")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # cultivates a folder and says its memory
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)  # says its figures and writes nothing
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if arguments.quick else Size()
    if arguments.worker is not None:
        _task(0, MAP, arguments.worker, size, "shared", memory=MEMORY).run(lambda *_: None)
        print(status_bytes("VmHWM"))  # not ru_maxrss: a new process inherits its parent's
        return
    figures: dict[str, Any] = {}
    if training_device().type != "cpu":
        figures = _again({"CUDA_VISIBLE_DEVICES": ""}, "--json", *(["--quick"] if arguments.quick else []))
    figures[training_device().type] = _measured(size)
    if arguments.json:
        print(json.dumps(figures))
        return
    figures["settled"] = _settled(replace(QUICK, exits=(0,)) if arguments.quick else LONGER)
    figures["memory"] = _memory(size, *(["--quick"] if arguments.quick else []))
    _show(figures)
    if not arguments.quick:
        print(f"written: {write_results('cultivation', figures | {'targets': TARGETS})}")


def _measured(size: Size) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        chain, dataset = _network(work, size)
        start = time.perf_counter()
        cache_features(chain, dataset, work / "features", silent)
        caching_s = time.perf_counter() - start
        for piece in chain.pieces:
            piece.module.to(training_device())
        plain = Plain(chain, dataset, size)
        choices = {index: zoo_branches(size.zoo, chain.map_shape(index)) for index in size.exits}
        plain_s = _plain_seconds(plain, choices, size)
        grown = {way: _cultivated(chain, work, size, way) for way in ("own", "shared")}
        sampled = _sampled(choices, size)
        alone = [plain.accuracy(*branch) for branch in sampled]
    figures: dict[str, Any] = {
        "branches": sum(map(len, choices.values())),
        "train_samples": size.train_samples,
        "epochs": size.epochs,
        "sampled_branches": [branch_name(exit_index, *choice) for exit_index, choice in sampled],
        "caching_s": caching_s,
        "plain": {"seconds": plain_s, "accuracy": float(np.mean(alone))},
    }
    for way, (seconds, accuracies) in grown.items():
        ours = [accuracies[branch_name(exit_index, *choice)] for exit_index, choice in sampled]
        figures[way] = {
            "seconds": seconds + caching_s,
            "accuracy": float(np.mean(ours)),
            "cost_ratio": plain_s / (seconds + caching_s),
            "accuracy_points": 100 * float(np.mean(ours) - np.mean(alone)),
            "accuracy_points_a_branch": [100 * (mine - its) for mine, its in zip(ours, alone, strict=True)],
        }
    return figures


def _settled(size: Size) -> dict[str, Any]:
    """Compare branches over a shared convolution with branches trained alone, for longer and at a few exits."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        chain, dataset = _network(work, size)
        cache_features(chain, dataset, work / "features", silent)
        for piece in chain.pieces:
            piece.module.to(training_device())
        plain = Plain(chain, dataset, size)
        _, accuracies = _cultivated(chain, work, size, "shared")
        sampled = _sampled({index: zoo_branches(size.zoo, chain.map_shape(index)) for index in size.exits}, size)
        alone = np.array([plain.accuracy(*branch) for branch in sampled])
    names = [branch_name(exit_index, *choice) for exit_index, choice in sampled]
    points = 100 * (np.array([accuracies[name] for name in names]) - alone)
    return {
        "train_samples": size.train_samples,
        "epochs": size.epochs,
        "exits": size.exits,
        "plain_accuracy": float(alone.mean()),
        "shared_points": float(points.mean()),
        "shared_points_error": float(points.std() / np.sqrt(len(points))),
        "shared_points_a_branch": dict(zip(names, points.tolist(), strict=True)),
    }


def _network(work: Path, size: Size) -> tuple[Chain, Dataset]:
    name = "resnet20-cifar10"
    network = replace(NETWORKS[name], build=replace(NETWORKS[name].build, train_samples=size.train_samples))
    declared = manifest(name, network, work, None, silent)
    spec = declared.model.spec
    dataset = load_data(spec.data, declared.base_dir)
    model = load_model(spec.model, input_shape=SHAPE, classes=CLASSES, base_dir=declared.base_dir)
    # From everywhere: files are often sorted by class.
    spread = np.linspace(0, len(dataset.validation) - 1, size.validation_samples).astype(np.int64)
    validation: Samples = dataset.validation[spread]
    return partition(model, SHAPE), replace(dataset, validation=validation)


def _plain_seconds(plain: Plain, choices: dict[int, list[Choice]], size: Size) -> float:
    """Return the time of all steps of all branches; a convolution choice is timed under one FC choice, drawn."""
    random = np.random.default_rng(SEED)
    total = 0.0
    for exit_index, here in choices.items():
        for convolution in dict.fromkeys(convolution for convolution, _ in here):
            alike = [choice for choice in here if choice[0] == convolution]
            drawn = alike[random.integers(len(alike))]
            total += len(alike) * plain.step_seconds(exit_index, drawn)
    return total * size.epochs * _steps(size.train_samples)


def _cultivated(chain: Chain, work: Path, size: Size, way: str) -> tuple[float, dict[str, float]]:
    seconds, accuracies = 0.0, {}
    for exit_index in size.exits:
        shape = chain.map_shape(exit_index)
        task = _task(exit_index, shape, work, size, way)
        start = time.perf_counter()
        task.run(lambda *_: None)
        seconds += time.perf_counter() - start
        accuracies |= {branch.name: branch.accuracy for branch in cultivated(task, shape)}
    return seconds, accuracies


def _task(
    exit_index: int, shape: tuple[int, int, int], work: Path, size: Size, way: str, memory: str | None = None
) -> ExitTask:
    return ExitTask(
        exit_index=exit_index,
        choices=tuple(zoo_branches(size.zoo, shape)),
        classes=CLASSES,
        features=work / "features",
        output=work / f"{way}-{exit_index:02d}",
        settings=_settings(size).model_copy(update={"memory": memory}),
        shared_convolutions=way == "shared",
    )


def _settings(size: Size) -> Cultivation:
    declared = {"epochs": size.epochs, "batchSize": BATCH, "learningRate": "0.003", "seed": SEED}
    return Cultivation.model_validate(declared)


def _steps(samples: int) -> int:
    return -(-samples // BATCH)


def _sampled(choices: dict[int, list[Choice]], size: Size) -> list[tuple[int, Choice]]:
    random = np.random.default_rng(SEED)
    return [
        (exit_index, here[drawn])
        for exit_index, here in choices.items()
        for drawn in random.choice(len(here), size.sampled_an_exit, replace=False)
    ]


def _as_cultivation_begins(exit_index: int, choice: Choice, shape: tuple[int, int, int]) -> nn.Module:
    stems = stems_of(exit_index, [choice], shared=False)
    parts = Group(stems, shape, CLASSES, seed=SEED).parts()
    branch = build_branch(*choice, shape, CLASSES)
    branch.load_state_dict({key.partition("/")[2]: part.of(part.whole).detach() for key, part in parts})
    return branch


def _finished() -> None:
    if training_device().type == "cuda":
        torch.cuda.synchronize()


def _memory(size: Size, *options: str) -> dict[str, Any]:
    peaks = {}
    for times in (1, 2, 4):
        samples = times * size.memory_samples
        with tempfile.TemporaryDirectory() as folder:
            _write_features(Path(folder) / "features", samples)
            peaks[samples] = _again({"CUDA_VISIBLE_DEVICES": ""}, "--worker", folder, *options)
    return {"declared": MEMORY, "features_bytes_a_sample": 2 * int(np.prod(MAP)), "peak_rss_bytes": peaks}


def _write_features(folder: Path, samples: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(SEED)
    few = random.standard_normal((256, *MAP), np.float32).astype(np.float16)
    for split, count in (("train", samples), ("validation", 256)):
        np.save(folder / f"{split}.labels.npy", np.arange(count) % CLASSES)
        mapped = np.lib.format.open_memmap(
            folder / f"{split}.0.0.npy", mode="w+", dtype=np.float16, shape=(count, *MAP)
        )
        for start in range(0, count, len(few)):
            mapped[start : start + len(few)] = few[: count - start]
    (folder / "features.json").write_text(json.dumps({"views": 1}))


def _again(environment: dict[str, str], *options: str) -> Any:  # noqa: ANN401 - JSON
    command = [sys.executable, __file__, *options]
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def _show(figures: dict[str, Any]) -> None:
    layout = "{:<6} {:<8} {:>9} {:>11} {:>10} {:>8}"
    print(layout.format("on", "way", "seconds", "times less", "accuracy", "points"))
    for device in ("cpu", "cuda"):
        for way in ("plain", "own", "shared") if device in figures else ():
            row = figures[device][way]
            ratio, points = (row.get(name) for name in TARGETS)
            print(
                layout.format(
                    device,
                    way,
                    f"{row['seconds']:.0f}",
                    "-" if ratio is None else f"{ratio:.1f}",
                    f"{row['accuracy']:.1%}",
                    "-" if points is None else f"{points:+.2f}",
                )
            )
    settled = figures["settled"]
    schedule = f"{settled['train_samples']} samples, {settled['epochs']} epochs, exits {settled['exits']}"
    points = f"{settled['shared_points']:+.2f} +-{settled['shared_points_error']:.2f} points"
    count = len(settled["shared_points_a_branch"])
    print(f"{schedule}: shared {points} beside {count} branches alone at {settled['plain_accuracy']:.1%}")
    memory = figures["memory"]
    for samples, peak in memory["peak_rss_bytes"].items():
        print(f"{samples} samples under {memory['declared']}: at most {peak / 2**20:.0f} MiB resident")


if __name__ == "__main__":
    main()
