"""EINet's figures: accuracy under kills of static, dynamic and sample-wise plans (Figures 7 to 10 and 12, Table II).

Every network is built on Ray, once, with one branch at every exit; then all planners run the same branches on the
engine and are killed at the same times of the same samples. The horizon is the time of all blocks and branches, as in
the paper. Backbones come from MEEDGE_SHARED or are trained, as in `meedge.py`.

Run: python benchmarks/einet.py [NETWORK ...]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _einet import built, networks
from _results import RESULTS, write_results

from meedge_ray.api.time_distribution import TimeDistribution
from meedge_ray.bundle.manifest import read_bundle, unit_store
from meedge_ray.cli.output import Bars, show, table
from meedge_ray.domain.elastic import Branch, Bundle, Profile
from meedge_ray.runtime.engine import Planner
from meedge_ray.runtime.exit_planning import SamplewisePlanner, StaticPlanner, ThresholdPlanner, best_static
from meedge_ray.runtime.loading import load_predictor
from meedge_ray.runtime.problem import time_law
from meedge_ray.search.exit_plan import hybrid_search, random_search, static_plan
from meedge_ray.search.inputs import Law
from meedge_ray.train.evaluation import test_samples
from meedge_ray.train.killing import Contender, run_under_kills
from meedge_ray.train.progress import Report
from meedge_ray.train.samples import Samples

SHARES = (0.25, 0.5, 1.0)
THRESHOLDS = (0.5, 0.7, 0.9)
SKIPPED = (0, 1, 2, 3)  # exits between two that run (Figure 10)
DEVIATIONS = (0.5, 1.0)  # of normal laws, in shares of their mean
RANDOM_PLANS = 100  # a decision: more would take the whole horizon
NORMAL_95 = 1.96
PREEMPTED_FROM_MS = 3.0  # of horizon; on shorter ones the 0.1 ms that waking a thread takes would count

Figures = dict[str, Any]


def planners(
    bundle: Bundle, profile: Profile, branches: Sequence[Branch], directory: Path, horizon_ms: float, law: Law | None
) -> dict[str, Planner | None]:
    """Return everything compared, by name; the samples' plans under the law."""
    predictor = load_predictor(unit_store(directory), bundle)
    results = len(branches) + 1
    samplewise = partial(SamplewisePlanner, bundle, profile, branches, predictor, horizon_ms=horizon_ms, law=law)
    return {
        "single exit": StaticPlanner([*(False for _ in branches), True]),
        **{f"static {share:.0%}": StaticPlanner(static_plan(results, share).tolist()) for share in SHARES},
        "best static": best_static(bundle, profile, branches, horizon_ms=horizon_ms, law=law),
        **{f"threshold {value:g}": ThresholdPlanner(value, results) for value in THRESHOLDS},
        f"random, {RANDOM_PLANS} plans": samplewise(search=partial(random_search, plans=RANDOM_PLANS)),
        "hybrid, m=2": samplewise(search=partial(hybrid_search, m=2)),
        "sample-wise": samplewise(),
    }


def run(directory: Path, exits: str, kills: int, report: Report) -> Figures:
    """Return what one network's planners reach."""
    bundle = read_bundle(directory)
    [profile] = bundle.profiles.values()
    branches = sorted(bundle.baselines[exits], key=lambda branch: branch.exit_index)
    horizon_ms = profile.single_exit_ms + sum(profile.branch_ms[branch.name] for branch in branches)
    settings = {
        "profile": profile,
        "horizon_ms": horizon_ms,
        "kills": kills,
        "seed": 0,
        "preempting": horizon_ms > PREEMPTED_FROM_MS,
        "report": report,
    }
    test = test_samples(bundle)
    said: Figures = {"horizon_ms": horizon_ms, "exits": len(branches) + 1, "kills": kills, "laws": {}}
    for law_name, distribution in laws(horizon_ms).items():
        law = time_law(distribution, horizon_ms)
        known = planners(bundle, profile, branches, directory, horizon_ms, law)
        contenders = [Contender(frozenset(branches), planner) for planner in known.values()]
        results, under_kills = run_under_kills(directory, bundle, contenders, test, law=law, **settings)
        names = list(known)
        static = names.index("best static")
        said["laws"][law_name] = {
            name: {
                "killed": result.killed,
                "predicted": result.mae,
                "outputs": result.outputs,
                "over_best_static": result.killed - results[static].killed,
                "error": NORMAL_95 * under_kills.standard_error(index, static),
            }
            for index, (name, result) in enumerate(zip(names, results, strict=True))
        }
    said["skipping"] = skipping(directory, bundle, branches, test, settings)
    assert bundle.predictor is not None  # every bundle of today's format has one
    said["predictor"] = asdict(bundle.predictor)
    return said


def laws(horizon_ms: float) -> dict[str, TimeDistribution]:
    """Return the paper's laws of the kill's time (VI-C3)."""
    known = {"uniform": TimeDistribution()}
    for share in DEVIATIONS:
        normal = {"mean_ms": horizon_ms / 2, "standard_deviation_ms": share * horizon_ms / 2}
        known[f"normal {share:g}"] = TimeDistribution.model_validate({"normal": normal})
    return known


def skipping(
    directory: Path, bundle: Bundle, branches: Sequence[Branch], test: Samples, settings: Mapping[str, Any]
) -> list[Figures]:
    """Return expectation and truth of plans that skip as many exits between two that run (Figure 10)."""
    results = len(branches) + 1
    plans = []
    for skipped in SKIPPED:
        plan = np.zeros(results, dtype=bool)
        plan[results - 1 :: -(skipped + 1)] = True
        plans.append(StaticPlanner(plan.tolist()))
    contenders = [Contender(frozenset(branches), plan) for plan in plans]
    found, _ = run_under_kills(directory, bundle, contenders, test, **settings)
    return [
        {"skipped": skipped, "expectation": result.mae, "truth": result.killed}
        for skipped, result in zip(SKIPPED, found, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="which ones [default: all]")
    parser.add_argument("--work", type=Path, default=Path("build/einet"), help="what is trained, built and finished")
    parser.add_argument("--quick", action="store_true", help="only see that it runs; results stay in the work folder")
    arguments = parser.parse_args()
    known = networks(quick=arguments.quick)
    asked = arguments.networks or list(known)
    if unknown := set(asked) - set(known):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    work: Path = arguments.work.resolve()
    path = (work if arguments.quick else RESULTS) / "einet.json"
    figures: Figures = json.loads(path.read_text())["figures"] if path.exists() else {}
    for name in asked:
        with Bars() as bars:
            bars.console.print(name)
            directory = built(name, known[name], work, bars)
            figures[name] = run(directory, known[name].exits, 200 if arguments.quick else known[name].kills, bars)
        figures = {name: figures[name] for name in known if name in figures}
        if arguments.quick:
            path.write_text(json.dumps({"figures": figures}))
        else:
            write_results("einet", figures)
    print_tables(figures)


def print_tables(figures: Figures) -> None:
    """Print what was right under kills, and what sample-wise planning gains."""
    names = list(next(iter(figures.values()))["laws"]["uniform"])
    for law in next(iter(figures.values()))["laws"]:
        rows = [
            [network, *(f"{said['laws'][law][name]['killed']:.1%}" for name in names)]
            for network, said in figures.items()
        ]
        show(f"Right results at hand under kills, {law}", table(["network", *(f"{name}>" for name in names)], rows), "")
    gains = [
        [network, *(_gain(row["sample-wise"]) for row in said["laws"].values())] for network, said in figures.items()
    ]
    show(
        "Sample-wise over the best static plan, points",
        table(["network", "uniform>", "normal .5>", "normal 1>"], gains),
    )
    truth = [
        [network, *(f"{row['expectation']:.1%} / {row['truth']:.1%}" for row in said["skipping"])]
        for network, said in figures.items()
    ]
    show("", "Expectation / truth", table(["network", *(f"{skipped} skipped>" for skipped in SKIPPED)], truth))


def _gain(row: Mapping[str, float]) -> str:
    return f"{100 * row['over_best_static']:+.2f} +-{100 * row['error']:.2f}"


if __name__ == "__main__":
    main()
