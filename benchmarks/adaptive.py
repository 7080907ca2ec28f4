"""AdaptiveNet's figures: trade-offs, searches, reuse, switching, shifted data, other tasks (Figures 7 to 13, Table 3).

Supernets are built once, in this process. Backbones come from MEEDGE_SHARED or are trained. What is found on a device's
samples is judged on others.

Run: python benchmarks/adaptive.py [PART ...]
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _adaptive import Device, by_range, reuse, searches, shifted, trade_off
from _adaptive_pictures import draw
from _results import RESULTS, write_results
from _slimmable import measured, slimmed
from _supernets import PRUNED_ONLY, SUPERNETS, built, declared, seconds_of
from _switching import memory, pool_of, switches, under_load
from _two_stage import TASKS
from _two_stage import run as run_task

from meedge_ray.api.elastic_model import Supernet
from meedge_ray.cli.output import Bars
from meedge_ray.nn.source import load_model
from meedge_ray.train.data import load_data
from meedge_ray.train.progress import Report

OWN, JUDGED = 512, 2000  # samples of the device, and others
SEARCHED = ("resnet56", "mobilenetv2")
ABLATED = ("resnet20", "resnet20-distilled", "resnet20-tuned")
BUDGETS = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)  # of the original's latency
ALPHAS, DRAWS = (0.1, 0.3, 1.0), 10
TASK_SAMPLES = 2500

Figures = dict[str, Any]


class Benchmark:
    """One part a method; each returns its figures, by network where there are several."""

    def __init__(self, work: Path, networks: Sequence[str], report: Report, *, quick: bool) -> None:
        self._work, self._networks, self._report, self._quick = work, networks, report, quick

    def device(self, name: str) -> Device:
        """Return a supernet on this machine, built if that is not done yet."""
        own, judged = (64, 128) if self._quick else (OWN, JUDGED)
        return Device(built(name, self._work, self._report, quick=self._quick), own, judged)

    def sizes(self) -> Figures:
        """Table 3: what elastification takes."""
        said = {}
        for name in self._networks:
            bundle = self.device(name).bundle
            said[name] = {
                "subnets": self.device(name).adapter.space.count,
                "variants": len(bundle.variants),
                "backbone_parameters": sum(block.parameters for block in bundle.blocks),
                "added_parameters": sum(variant.parameters for variant in bundle.variants),
                "core_seconds": seconds_of(name, self._work),
            }
        return said

    def search(self) -> Figures:
        """Figure 12."""
        return {name: searches(self.device(name), quick=self._quick) for name in self._networks}

    def reuse(self) -> Figures:
        """Figure 11."""
        return {name: reuse(self.device(name)) for name in self._networks}

    def tradeoff(self) -> Figures:
        """Figure 7: ours, and pruning alone with the same schedule."""
        said: Figures = {}
        for name in self._networks:
            ours = self.device(name)
            budgets_ms = [share * ours.original_ms for share in BUDGETS]
            said[name] = {"ours": trade_off(ours, budgets_ms)}
            if f"{name}-pruned" in SUPERNETS:
                said[name]["pruned"] = trade_off(self.device(f"{name}-pruned"), budgets_ms)
            original = ours.adapter.space.original
            said[name]["original"] = {"latency_ms": ours.original_ms, "accuracy": ours.judge([original])[0]}
        return said

    def slimming(self) -> Figures:
        """Figure 7: on ResNet-56 a slimmable network, trained as long as the pruned blocks."""
        name = "resnet56"
        manifest = declared(name, self._work, self._report, quick=self._quick)
        spec, device = manifest.model.spec, self.device(name)
        data = load_data(spec.data, manifest.base_dir)
        model = load_model(spec.model, input_shape=device.bundle.input.shape, classes=10, base_dir=manifest.base_dir)
        networks = slimmed(
            model.state_dict(),
            56,
            data.train,
            data.input,
            seconds=30 if self._quick else seconds_of(f"{name}-pruned", self._work),
            learning_rate=1e-3,
            batch_size=128,
            seed=0,
            report=self._report,
        )
        return {name: measured(networks, data.input, device.test[device.own : device.own + device.judged])}

    def phases(self) -> Figures:
        """Figure 10."""
        return {name: by_range(self.device(name)) for name in ABLATED}

    def switching(self) -> Figures:
        """Figure 13, with what a switch takes."""
        device = self.device("resnet56")
        pool = pool_of(device)
        return {
            "pool": [[each.latency_ms, each.accuracy] for each in pool.members],
            "switch": switches(device, pool),
            "memory": memory(device, pool),
            "load": under_load(device, pool),
        }

    def shift(self) -> Figures:
        """Figure 9."""
        return {"resnet56": shifted(self.device("resnet56"), ALPHAS, 2 if self._quick else DRAWS)}

    def tasks(self) -> Figures:
        """Figure 8."""
        epochs = {
            "distillation": {"epochs": 8, "learningRate": "0.002"},
            "tuning": {"epochs": 6, "learningRate": "0.0005"},
        }
        said: Figures = {}
        for name in TASKS:
            for method, few in (("ours", {}), ("pruned", PRUNED_ONLY)):
                spec = Supernet.model_validate(epochs | few)
                said.setdefault(name, {})[method] = run_task(name, spec, TASK_SAMPLES, self._work, self._report)
        return said


PARTS: dict[str, Callable[[Benchmark], Any]] = {
    "phases": Benchmark.phases,
    "search": Benchmark.search,
    "reuse": Benchmark.reuse,
    "tradeoff": Benchmark.tradeoff,
    "slimming": Benchmark.slimming,
    "switching": Benchmark.switching,
    "shift": Benchmark.shift,
    "tasks": Benchmark.tasks,
    "sizes": Benchmark.sizes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} [default: all]")
    parser.add_argument("--networks", nargs="+", choices=SEARCHED, default=SEARCHED, help="of parts about several")
    parser.add_argument("--work", type=Path, default=Path("build/adaptive"), help="what is trained and built")
    parser.add_argument("--quick", action="store_true", help="only see that it runs; results stay in the work folder")
    arguments = parser.parse_args()
    asked = arguments.parts or list(PARTS)
    if unknown := set(asked) - set(PARTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    work: Path = arguments.work.resolve()
    folder = work if arguments.quick else RESULTS
    path = folder / "adaptive.json"
    for part in asked:
        with Bars() as bars:
            bars.console.print(part)
            found = PARTS[part](Benchmark(work, arguments.networks, bars, quick=arguments.quick))
        # Read again: another part may have ended meanwhile.
        figures: Figures = json.loads(path.read_text())["figures"] if path.exists() else {}
        figures[part] = figures.get(part, {}) | found
        if arguments.quick:
            path.write_text(json.dumps({"figures": figures}))
        else:
            write_results("adaptive", figures)
        draw(figures, folder)


if __name__ == "__main__":
    main()
