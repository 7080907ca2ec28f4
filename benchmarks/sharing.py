"""Weight sharing on real branches: the pre-trained ResNet-20 on CIFAR-10 (MEEdge 4.4, figures 6b, 7(2) and 9c).

Five branches differ in convolution, FC layers or exit, as the paper's do. Three questions: are neurons better shared
inside a branch or between two; how does accuracy fall with the number of merged pairs, and what does retraining bring
back; what does the Hessian of MTZ cost and bring, compared with the L2 distance.

Run: MEEDGE_SHARED=... python benchmarks/sharing.py [--quick]
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from _cifar import CLASSES, resnet20_features
from _results import RESULTS, status_bytes, write_results
from matplotlib.figure import Figure
from torch import Tensor, nn

from meedge_ray.api.elastic_model import Convolution, Cultivation, FullyConnected, Sharing
from meedge_ray.nn.neurons import ascending_pairs, hessian, self_errors
from meedge_ray.nn.sharing import ErrorKind, self_merge, split_head, twin_merge
from meedge_ray.train.cultivate import ExitTask, cultivated
from meedge_ray.train.features import Features
from meedge_ray.train.progress import silent
from meedge_ray.train.retrain import Lessons, retrain
from meedge_ray.train.sharing import fc_inputs, few_lessons
from meedge_ray.train.tasks import run_in_turn

BRANCHES = {  # exit, convolution, kernel size, hidden neurons; all pool to 4x4 maps of 64 channels
    "B1": (7, "separable", 3, (128,)),
    "B2": (7, "separable", 3, (64,)),
    "B3": (7, "dilated", 5, (128,)),
    "B4": (7, "depthwise", 3, (128,)),
    "B5": (8, "separable", 3, (128,)),
    "B6": (7, "separable", 3, (128, 64)),
}
TWINS = ("B1", "B2", "B3", "B4", "B5")  # as many layers each
CURVES = ("B1", "B3", "B6")
SHARES = [round(0.1 * step, 1) for step in range(11)]
WIDE = [(512, 1024), (2048, 1024), (8192, 1024)]  # features, neurons
SAMPLES = 2000
SEED = 0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subject:
    """A trained branch's head, what reaches its FC layers, and what it is retrained on."""

    head: nn.Sequential
    inputs: Tensor
    labels: Tensor
    lessons: Lessons
    settings: Sharing

    def score(self, logits: Tensor) -> float:
        """Return the accuracy of logits on validation."""
        return float((logits.argmax(1) == self.labels).double().mean())

    def accuracy(self, head: nn.Sequential) -> float:
        """Return the accuracy of a head, or of its FC layers, on validation."""
        with torch.no_grad():
            return self.score(split_head(head)[1](self.inputs))

    def retrained(self, head: nn.Sequential, shared: tuple[int, ...]) -> float:
        """Return the accuracy of the head retrained, its shared rows bound."""
        fc = retrain(split_head(head)[1], shared, self.lessons, self.settings, seed=SEED)
        return self.accuracy(fc)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def subjects(work: Path, train_samples: int, epochs: int, settings: Sharing) -> dict[str, Subject]:
    chain, features = resnet20_features(work, train_samples)
    labels = torch.from_numpy(features.labels("validation"))
    found = {}
    for exit_index in sorted({branch[0] for branch in BRANCHES.values()}):
        names = [name for name, branch in BRANCHES.items() if branch[0] == exit_index]
        choices = [
            (
                Convolution.model_validate({"kind": kind, "kernelSize": kernel}),
                FullyConnected.model_validate({"pooledSize": 4, "hidden": hidden}),
            )
            for _, kind, kernel, hidden in (BRANCHES[name] for name in names)
        ]
        cultivation = {"epochs": epochs, "learningRate": "0.001"}  # the paper's; a higher one leaves neurons dead
        task = ExitTask(
            exit_index=exit_index,
            choices=tuple(choices),
            classes=CLASSES,
            features=features.folder,
            output=work / f"exit-{exit_index}",
            settings=Cultivation.model_validate(cultivation),
        )
        run_in_turn([task], silent)
        for name, branch in zip(names, cultivated(task, chain.map_shape(exit_index)), strict=True):
            found[name] = subject(branch.module, exit_index, features, labels, settings)
            print(f"{name}: {branch.name}, {branch.accuracy:.1%}", flush=True)
    return {name: found[name] for name in BRANCHES}


def subject(branch: nn.Module, exit_index: int, features: Features, labels: Tensor, settings: Sharing) -> Subject:
    head = branch.get_submodule("head")
    assert isinstance(head, nn.Sequential)
    inputs = fc_inputs(branch, features.features(exit_index, "validation"), np.arange(len(labels)), CPU)
    lessons = few_lessons(branch, exit_index, features, settings.samples_percent, SEED, CPU)
    return Subject(head, inputs, labels, lessons, settings)


def branch_facts(name: str, one: Subject) -> dict[str, Any]:
    """Return what a branch is; neurons of its first hidden layer that no sample wakes merge for nothing."""
    exit_index, kind, kernel, hidden = BRANCHES[name]
    with torch.no_grad():
        sums = split_head(one.head)[1][0](one.inputs)
    return {
        "branch": name,
        "exit": exit_index,
        "convolution": f"{kind}{kernel}",
        "hidden": hidden,
        "fc_parameters": parameters(one.head),
        "accuracy": one.accuracy(one.head),
        "never_active": int((sums <= 0).all(0).sum()),
    }


def self_and_twins(known: dict[str, Subject]) -> list[dict[str, Any]]:
    """Return what half of the pairs save and cost, inside each branch and between each two (figure 7(2))."""
    figures = []
    for name in TWINS:
        one = known[name]
        merged = self_merge(one.head, one.inputs, one.score, shares=(0.5, 0.5))
        figures.append(
            {
                "merge": "self",
                "branches": [name],
                "saved": 1 - parameters(merged.head) / parameters(one.head),
                "original": [one.accuracy(one.head)],
                "merged": [one.accuracy(merged.head)],
                "retrained": [one.retrained(merged.head, merged.merged_neurons)],
            }
        )
    for pair in combinations(TWINS, 2):
        both = [known[name] for name in pair]
        twins = twin_merge(both[0].head, both[1].head, (both[0].inputs, both[1].inputs), share=0.5)
        whole = sum(parameters(one.head) for one in both)
        figures.append(
            {
                "merge": "twin",
                "branches": list(pair),
                "saved": twins.saved_parameters / whole,
                "original": [one.accuracy(one.head) for one in both],
                "merged": [one.accuracy(head) for one, head in zip(both, twins.heads, strict=True)],
                "retrained": [
                    one.retrained(head, twins.shared_neurons) for one, head in zip(both, twins.heads, strict=True)
                ],
            }
        )
    return figures


def over_pairs(known: dict[str, Subject]) -> list[dict[str, Any]]:
    """Return accuracies over the share of merged pairs, before and after retraining (figure 9c)."""
    figures = []
    for name in CURVES:
        one = known[name]
        for share in SHARES:
            merged = self_merge(one.head, one.inputs, one.score, shares=(share, share))
            figures.append(
                {
                    "branch": name,
                    "share": share,
                    "merged_neurons": merged.merged_neurons,
                    "saved": 1 - parameters(merged.head) / parameters(one.head),
                    "original": one.accuracy(one.head),
                    "merged": one.accuracy(merged.head),
                    "retrained": one.retrained(merged.head, merged.merged_neurons),
                }
            )
    return figures


def errors_on_branches(known: dict[str, Subject]) -> list[dict[str, Any]]:
    """Return what either error leads to, the pairs chosen as in a build (figure 6b and section 3.5.1)."""
    figures = []
    for name, one in known.items():
        for error in ("l2", "hessian"):
            start = time.perf_counter()
            merged = self_merge(one.head, one.inputs, one.score, error=error)
            figures.append(
                {
                    "branch": name,
                    "error": error,
                    "seconds": time.perf_counter() - start,
                    "merged_neurons": merged.merged_neurons,
                    "original": one.accuracy(one.head),
                    "merged": one.accuracy(merged.head),
                    "retrained": one.retrained(merged.head, merged.merged_neurons),
                }
            )
    return figures


def cost_of_pairs(features: int, neurons: int, error: ErrorKind) -> dict[str, Any]:
    """Return seconds and memory of finding a wide layer's pairs; run it in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    weights, inputs = torch.randn(neurons, features + 1), torch.randn(SAMPLES, features)
    ascending_pairs(self_errors(weights[:64, :9], None))  # what is loaded with the first call is not the layer's
    before = from_here_bytes()
    start = time.perf_counter()
    ascending_pairs(self_errors(weights, hessian(inputs) if error == "hessian" else None))
    return {
        "features": features,
        "neurons": neurons,
        "error": error,
        "seconds": time.perf_counter() - start,
        "peak_bytes": peak_bytes() - before,
    }


def from_here_bytes() -> int:
    """Return the process's resident bytes; its peak counts anew from here on."""
    Path("/proc/self/clear_refs").write_text("5")  # importing torch takes more than many a layer does
    return status_bytes("VmRSS")


def peak_bytes() -> int:
    # Not ru_maxrss: a new process inherits its parent's.
    return status_bytes("VmHWM")


def alone(work: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def draw(figures: dict[str, list[dict[str, Any]]]) -> Path:
    mpl.rcParams["svg.hashsalt"] = "meedge"
    picture = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = picture.subplots(1, 3)
    for kind, marker in (("self", "o"), ("twin", "x")):
        rows = [row for row in figures["self_and_twins"] if row["merge"] == kind]
        for stage, colour in (("merged", "tab:orange"), ("retrained", "tab:green")):
            change = [100 * float(np.mean(np.subtract(row[stage], row["original"]))) for row in rows]
            saved = [100 * row["saved"] for row in rows]
            left.scatter(saved, change, marker=marker, color=colour, label=f"{kind}-merged, {stage}")
    left.axhline(0, color="grey", linewidth=0.8)
    left.set(xlabel="FC parameters saved (%)", ylabel="accuracy change (points)", title="Half of the pairs")
    left.legend(fontsize=7)
    for name, colour in zip(CURVES, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        rows = [row for row in figures["over_pairs"] if row["branch"] == name]
        shares = [100 * row["share"] for row in rows]
        for stage, line in (("merged", "--"), ("retrained", "-")):
            middle.plot(shares, [100 * row[stage] for row in rows], line, color=colour, label=f"{name}, {stage}")
        middle.axhline(100 * rows[0]["original"], color=colour, linewidth=0.6, linestyle=":")
    middle.axvspan(100 / 3, 50, color="grey", alpha=0.15)
    middle.set(xlabel="pairs merged (%)", ylabel="accuracy (%)", title="Grey: where a build looks")
    middle.legend(fontsize=7)
    for error, colour in (("l2", "tab:blue"), ("hessian", "tab:red")):
        rows = [row for row in figures["cost_of_pairs"] if row["error"] == error]
        right.plot([row["features"] for row in rows], [row["peak_bytes"] / 2**20 for row in rows], "o-", color=colour)
        right.plot([], [], "o-", color=colour, label=error)
    right.set(xlabel="features of a layer of 1,024 neurons", ylabel="peak memory (MiB)", title="Errors of all pairs")
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.legend(fontsize=7)
    path = RESULTS / "sharing.png"
    picture.savefig(path, dpi=110)
    return path


def show(figures: dict[str, list[dict[str, Any]]]) -> None:
    for heading, rows in figures.items():
        print(f"\n{heading}")
        print("  ".join(f"{key:>14}" for key in rows[0]))
        for row in rows:
            print("  ".join(f"{_cell(value):>14}" for value in row.values()))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list | tuple):
        return " ".join(_cell(part) for part in value)
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute's try: few samples and epochs, nothing written")
    quick = parser.parse_args().quick
    if "MEEDGE_SHARED" not in os.environ:
        sys.exit("set MEEDGE_SHARED to the folder that holds models/ and data/")
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # for convolutions; FC layers are too small to gain by it
    with tempfile.TemporaryDirectory() as folder:
        samples, epochs = (1000, 2) if quick else (6000, 10)
        known = subjects(Path(folder), samples, epochs, Sharing(epochs=2 if quick else 10))
    torch.set_num_threads(1)
    figures = {
        "branches": [branch_facts(name, one) for name, one in known.items()],
        "self_and_twins": self_and_twins(known),
        "over_pairs": over_pairs(known),
        "errors_on_branches": errors_on_branches(known),
        "cost_of_pairs": [
            alone(cost_of_pairs, features, neurons, error)
            for features, neurons in (WIDE[:1] if quick else WIDE)
            for error in ("l2", "hessian")
        ],
    }
    show(figures)
    if not quick:
        print(f"written: {write_results('sharing', dict(figures))}, {draw(figures)}")


if __name__ == "__main__":
    main()
