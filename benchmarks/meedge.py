"""The tables of MEEdge: accuracy under kills beside the baselines (Figures 7(1) and 9(a)), and overhead (Table 2).

Every network is built on Ray and measured, one after the other. Weights of ResNet-20 and -56 and the data
sets come from MEEDGE_SHARED; other backbones are trained first. A network that is finished is kept in the work folder.

Run: python benchmarks/meedge.py [NETWORK ...]
"""

import argparse
import datetime
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _networks import Network, manifest, networks
from _pictures import finite_time_picture, mae_picture
from _results import RESULTS, machine, write_results

from meedge_ray.actors.cluster import cluster
from meedge_ray.cli.output import Bars, show, table
from meedge_ray.domain.elastic import Bundle, bytes_of
from meedge_ray.domain.quantity import format_bytes
from meedge_ray.jobs.tasks import run_on_ray
from meedge_ray.train.build import build
from meedge_ray.train.evaluation import Evaluation, evaluate
from meedge_ray.train.killing import MethodResult
from meedge_ray.train.progress import Report

METHODS = ("single_exit", "multi_exit_fc", "branchynet", "spinn")
PAPER_GAINS = {"single_exit": "7.23 to 329.79 %", "spinn": "0.57 to 27.31 %"}
PAPER_OVERHEAD = {  # Table 2: training, self-merge, KD retraining (GPU-days), storage (GB)
    "AlexNet W3.0": (0.49, 0.17, 1.3, 29.29),
    "ResNet20 W3.0": (0.35, 0.17, 0.55, 25.88),
    "LeNet C10": (4.73, 1.26, 1.97, 2.85),
    "AlexNet C10": (6.2, 4.19, 4.61, 20.23),
    "VGG C100": (13.57, 8.52, 16.82, 134.12),
    "ResNet110 C100": (11.24, 3.46, 8.26, 30.99),
}
TRAINING = ("features", "cultivate")  # stages, as the build reports them
SHARING = ("share",)

Figures = dict[str, Any]


class Stopwatch:
    """Passes progress on, and charges the time since the last call to the stage that reports; kept in a file."""

    def __init__(self, path: Path, report: Report) -> None:
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        self._path = path
        self._report = report
        self._last = time.perf_counter()

    def __call__(self, stage: str, done: float, total: float, detail: str = "") -> None:
        """Take the time and pass on."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
        self._path.write_text(json.dumps(self.seconds))
        self._report(stage, done, total, detail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="which ones [default: all]")
    parser.add_argument("--work", type=Path, default=Path("build/meedge"), help="what is trained, built and finished")
    parser.add_argument("--cifar100", type=Path, help="folder with train.npz and test.npz for the paper's CIFAR-100")
    parser.add_argument("--quick", action="store_true", help="only see that it runs; results stay in the work folder")
    parser.add_argument("--again", action="store_true", help="redo networks that are finished")
    arguments = parser.parse_args()
    known = networks(cifar100=arguments.cifar100 is not None, quick=arguments.quick)
    asked = arguments.networks or list(known)
    if unknown := set(asked) - set(known):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    work: Path = arguments.work.resolve()
    runs = work / ("quick" if arguments.quick else "runs")
    runs.mkdir(parents=True, exist_ok=True)
    results = runs if arguments.quick else RESULTS
    figures = _earlier(results / "meedge.json", known)
    for name in asked:
        finished = runs / f"{name}.json"
        if arguments.again or outdated(finished, known[name]):
            forget(finished)
        if not finished.exists():
            finished.write_text(json.dumps(run(name, known[name], work, runs / name, arguments.cifar100)))
        figures[name] = json.loads(finished.read_text())
        figures = {name: figures[name] for name in known if name in figures}
        if arguments.quick:
            (results / "meedge.json").write_text(json.dumps({"figures": figures}))
        else:
            write_results("meedge", figures)
    finite_time_picture(figures, results / "meedge-finite-time.png")
    mae_picture(figures, results / "meedge-mae.png")
    print_tables(figures)


def outdated(finished: Path, network: Network) -> bool:
    """Return whether a network was finished with another schedule."""
    return finished.exists() and json.loads(finished.read_text())["schedule"] != asdict(network.build)


def forget(finished: Path) -> None:
    """Remove what one network left, but not its trained backbone."""
    for path in (finished, finished.with_suffix(".seconds")):
        path.unlink(missing_ok=True)
    shutil.rmtree(finished.with_suffix(""), ignore_errors=True)


def run(name: str, network: Network, work: Path, output: Path, cifar100: Path | None) -> Figures:
    """Build and evaluate one network."""
    with Bars() as bars:
        watch = Stopwatch(output.with_suffix(".seconds"), bars)
        bars.console.print(name)
        declared = manifest(name, network, work, cifar100, watch)
        with cluster():
            bundle = build(declared, output, run=run_on_ray, report=watch)
        # The cluster is gone: from here on the machine is quiet enough to measure times on.
        measured = evaluate(
            output,
            memory_bytes=bundle.backbone_bytes + bytes_of(bundle.baselines["spinn"]),
            kills=network.build.kills,
            report=watch,
        )
    return said(network, bundle, measured, watch.seconds)


def said(network: Network, bundle: Bundle, measured: Evaluation, seconds: Mapping[str, float]) -> Figures:
    """Return everything measured on one network as JSON values."""
    trained = [branch for branch in bundle.branches if not branch.merged_neurons]
    trained_bytes = bytes_of(trained)
    return {
        "architecture": network.architecture,
        "data": network.data,
        "paper": network.paper,
        "schedule": asdict(network.build),
        "backbone": None if network.backbone is None else asdict(network.backbone),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "exits": bundle.exit_count,
        "final_accuracy": bundle.final_accuracy,
        "branches": {
            "trained": len(trained),
            "merged": len(bundle.branches) - len(trained),
            "eliminated": len(bundle.eliminated),
        },
        "bytes": {
            "backbone": bundle.backbone_bytes,
            "trained": trained_bytes,
            "merged": bytes_of(bundle.branches) - trained_bytes,
        },
        "seconds": _rounded(seconds),
        "memory_bytes": measured.memory_bytes,
        "horizon_ms": measured.horizon_ms,
        "test_samples": measured.test_samples,
        "kills": measured.kills_per_method,
        "methods": {name: _method(method) for name, method in measured.methods.items()},
        "comparisons": {
            name: {
                "memory_bytes": comparison.memory_bytes,
                "mae_gain": _rounded(comparison.mae_gain),
                "killed_gain": _rounded(comparison.killed_gain),
                "killed_gain_error": _rounded(comparison.killed_gain_error),
                "ours": _method(comparison.ours),
            }
            for name, comparison in measured.comparisons.items()
        },
    }


def _method(method: MethodResult) -> Figures:
    return _rounded(asdict(method)) | {"branches": len(method.branches)}


def _rounded(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value


def _earlier(path: Path, known: Mapping[str, Network]) -> Figures:
    if not path.exists():
        return {}
    return {name: said for name, said in json.loads(path.read_text())["figures"].items() if name in known}


def print_tables(figures: Figures) -> None:
    """Print the paper's tables, ours beside the paper's figures."""
    accuracy = [
        [name, *(_percent(said["methods"].get(method)) for method in (*METHODS, "meedge"))]
        for name, said in figures.items()
    ]
    gains = [[name, *(_gains(said["comparisons"].get(method)) for method in METHODS)] for name, said in figures.items()]
    overhead = [[name, *_overhead(said)] for name, said in figures.items()]
    show(
        "Right results at hand under random kills, measured: the mAE. meedge-ray at SPINN's memory",
        table(["network", *(f"{method}>" for method in (*METHODS, "meedge"))], accuracy),
        "",
        "What meedge-ray gains at equal memory (single exit: at SPINN's), relative: predicted, measured with 95 %",
        table(["network", *(f"over {method}>" for method in METHODS)], gains),
        *(f"over {method}: {_span(figures, method)}; the paper, mAE: {paper}" for method, paper in PAPER_GAINS.items()),
        "",
        "Overhead beside the paper's Table 2: seconds on this machine against GPU-days, surviving branches stored",
        table(
            ["network", "training s>", "share s>", "trained>", "merged>", "paper: training GPU-d>", "merge>"]
            + ["retrain>", "GB>"],
            overhead,
        ),
    )


def _percent(method: Figures | None) -> str:
    return "" if method is None else f"{method['killed']:.1%}"


def _gains(comparison: Figures | None) -> str:
    if comparison is None:
        return ""
    predicted, measured = ("-" if gain is None else f"{gain:+.1%}" for gain in _both(comparison))
    error = comparison["killed_gain_error"]
    return f"{predicted}, {measured}" + ("" if error is None else f" +-{error:.1%}")


def _both(comparison: Figures) -> Sequence[float | None]:
    return comparison["mae_gain"], comparison["killed_gain"]


def _span(figures: Figures, method: str) -> str:
    spans = []
    for index, label in enumerate(("predicted", "measured")):
        gains = [_both(said["comparisons"][method])[index] for said in figures.values()]
        known = [gain for gain in gains if gain is not None]
        if known:
            spans.append(f"{100 * min(known):.2f} to {100 * max(known):.2f} % {label}")
    return ", ".join(spans)


def _overhead(said: Figures) -> list[str]:
    seconds = said["seconds"]
    ours = [f"{sum(seconds.get(stage, 0) for stage in stages):.0f}" for stages in (TRAINING, SHARING)]
    ours += [format_bytes(said["bytes"][kind]) for kind in ("trained", "merged")]
    return ours + [str(value) for value in PAPER_OVERHEAD.get(said["paper"], ("", "", "", ""))]


if __name__ == "__main__":
    main()
