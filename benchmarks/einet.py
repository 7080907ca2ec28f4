"""EINet's figures: accuracy under kills of static, dynamic and sample-wise plans (Figures 7 to 10 and 12, Table II).

Every network is built on Ray, once; then all planners run the same branches on the engine and are killed at the same
times of the same samples. The horizon is the time of all blocks and branches, as in the paper. As many inferences as
are killed are let finish: each says for every kill time whether the result at hand was right, so gains, which come from
them, have smaller errors than the kills themselves. Backbones come from MEEDGE_SHARED or are trained.

Run: python benchmarks/einet.py [NETWORK ...]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import numpy as np
from _einet import NETWORKS_KILLED, Frozen, Network, Together, builds, built, declared
from _einet_pictures import draw
from _pruned import pruned
from _results import RESULTS, write_results

from meedge_ray.api.time_distribution import TimeDistribution
from meedge_ray.bundle.manifest import read_bundle, unit_store
from meedge_ray.cli.output import Bars, show, table
from meedge_ray.domain.elastic import FINAL, Branch, Bundle, Profile
from meedge_ray.runtime.engine import Planner
from meedge_ray.runtime.exit_planning import (
    SamplewisePlanner,
    StaticPlanner,
    ThresholdPlanner,
    best_static,
    results_of,
)
from meedge_ray.runtime.loading import load_predictor
from meedge_ray.runtime.problem import time_law
from meedge_ray.search.decisions import Decisions
from meedge_ray.search.exit_plan import expectation, hybrid_search, random_search, static_plan
from meedge_ray.search.inputs import Floats, Law
from meedge_ray.search.predictor import ConfidencePredictor
from meedge_ray.train.confidences import read_confidences
from meedge_ray.train.evaluation import test_samples
from meedge_ray.train.killing import Contender, Kills, MethodResult, placed_engine, run_under_kills
from meedge_ray.train.predictor import train_predictor
from meedge_ray.train.progress import Report
from meedge_ray.train.samples import Samples

SHARES = (0.25, 0.5, 1.0)
THRESHOLDS = (0.5, 0.7, 0.9)
SKIPPED = (0, 1, 2, 3)  # exits between two that run (Figure 10)
KILLS_A_SAMPLE = 3  # there: with one, chance alone moves the truth by up to .8 points
DEVIATIONS = (0.5, 1.0)  # of normal laws, in shares of their mean
RANDOM_PLANS = 100  # a decision: more would take the whole horizon
NORMAL_95 = 1.96
PREEMPTED_FROM_MS = 3.0  # of horizon; on shorter ones the 0.1 ms that waking a thread takes would count
TIMED = 1000  # inferences, to know what decisions take
EVERYTHING, BEST, SAMPLEWISE, RAW = "static 100%", "best static", "sample-wise", "sample-wise, raw"
RANDOM, HYBRID = f"random, {RANDOM_PLANS} plans", "hybrid, m=2"
BY_LAW = (EVERYTHING, BEST, SAMPLEWISE)  # what is killed by normal laws too

Figures = dict[str, Any]


@dataclass(frozen=True)
class World:
    """What one network's planners have in common."""

    directory: Path
    bundle: Bundle
    profile: Profile
    branches: Sequence[Branch]
    horizon_ms: float
    test: Samples
    kills: int
    report: Report

    def under_kills(
        self, planners: Sequence[Planner | None], law: Law | None, kills: int | None = None
    ) -> tuple[list[MethodResult], Kills]:
        """Kill inferences of the engine under every planner."""
        return run_under_kills(
            self.directory,
            self.bundle,
            [Contender(frozenset(self.branches), planner) for planner in planners],
            self.test,
            profile=self.profile,
            horizon_ms=self.horizon_ms,
            law=law,
            kills=self.kills if kills is None else kills,
            seed=0,
            preempting=self.horizon_ms > PREEMPTED_FROM_MS,
            report=self.report,
        )


def world_of(network: Network, directory: Path, kills: int, report: Report) -> World:
    """Return a network's exits, its last one included, with the time of all of them as the horizon."""
    bundle = read_bundle(directory)
    [profile] = bundle.profiles.values()
    branches = sorted(bundle.baselines[network.exits], key=lambda branch: branch.exit_index)
    horizon_ms = profile.single_exit_ms + sum(profile.branch_ms[branch.name] for branch in branches)
    return World(directory, bundle, profile, branches, horizon_ms, test_samples(bundle), kills, report)


def planners(world: World, law: Law | None) -> dict[str, Planner]:
    """Return everything compared, by name; the samples' plans under the law."""
    bundle, profile, branches = world.bundle, world.profile, world.branches
    predictor = load_predictor(unit_store(world.directory), bundle)
    results = len(branches) + 1
    samplewise = partial(SamplewisePlanner, bundle, profile, branches, predictor, horizon_ms=world.horizon_ms, law=law)
    return {
        "single exit": StaticPlanner([*(False for _ in branches), True]),
        **{f"static {share:.0%}": StaticPlanner(static_plan(results, share).tolist()) for share in SHARES},
        BEST: best_static(bundle, profile, branches, horizon_ms=world.horizon_ms, law=law),
        **{f"threshold {value:g}": ThresholdPlanner(value, results) for value in THRESHOLDS},
        RANDOM: samplewise(search=partial(random_search, plans=RANDOM_PLANS)),
        HYBRID: samplewise(search=partial(hybrid_search, m=2)),
        RAW: published(world, law),
        SAMPLEWISE: samplewise(),
    }


def published(world: World, law: Law | None) -> Planner:
    """Return sample-wise planning by confidences as they are, foretold by a predictor of these exits alone."""
    store, bundle = unit_store(world.directory), world.bundle
    assert bundle.confidences is not None  # every bundle of today's format has them
    assert bundle.predictor is not None
    confidences = read_confidences(store.path(bundle.confidences.sha256))
    row_of = {name: row for row, name in enumerate(confidences.names)}
    slots = [np.zeros(0, np.int64)] * len(bundle.blocks)
    for branch in world.branches:
        slots[branch.exit_index] = np.array([row_of[branch.name]])
    slots[-1] = np.array([row_of[FINAL]])
    sure = confidences.confidence.astype(np.float32)
    predictor = ConfidencePredictor.from_tensors(
        train_predictor(sure, sure, np.zeros(len(sure), np.float32), slots).tensors
    )
    uncalibrated = replace(bundle, predictor=replace(bundle.predictor, calibrations={}))
    return SamplewisePlanner(
        uncalibrated, world.profile, world.branches, predictor, horizon_ms=world.horizon_ms, law=law
    )


def run(network: Network, directory: Path, kills: int, report: Report) -> Figures:
    """Return what one network's planners reach."""
    world = world_of(network, directory, kills, report)
    predictor = world.bundle.predictor
    assert predictor is not None  # every bundle of today's format has one
    return {
        "exits": len(world.branches) + 1,
        "single_exit_ms": world.profile.single_exit_ms,
        "horizon_ms": world.horizon_ms,
        "kills": kills,
        "final_accuracy": world.bundle.final_accuracy,
        "predictor": {"error": predictor.error, "gain": predictor.gain, "gain_error": predictor.gain_error},
        "chosen": SAMPLEWISE if predictor.pays else BEST,
        "decisions": decisions(world),
        "laws": {name: reached(world, time_law(law, world.horizon_ms)) for name, law in laws(world.horizon_ms).items()},
        "skipping": skipping(world),
    }


def reached(world: World, law: Law | None) -> Figures:
    """Return what every planner reaches under one law."""
    known = planners(world, law)
    if law is not None:
        known = {name: known[name] for name in BY_LAW}
    results, under_kills = world.under_kills(list(known.values()), law)
    names = list(known)
    said: Figures = {}
    for index, (name, result) in enumerate(zip(names, results, strict=True)):
        said[name] = {
            "killed": result.killed,
            "expected": float(under_kills.expected[index].mean()),
            "outputs": result.outputs,
        }
        for key, other in (("over_best_static", BEST), ("over_everything", EVERYTHING)):
            gain, error = under_kills.expected_gain(index, names.index(other))
            said[name] |= {key: gain, f"{key}_error": NORMAL_95 * error}
    return said


def laws(horizon_ms: float) -> dict[str, TimeDistribution]:
    """Return the paper's laws of the kill's time (VI-C3)."""
    known = {"uniform": TimeDistribution()}
    for share in DEVIATIONS:
        normal = {"mean_ms": horizon_ms / 2, "standard_deviation_ms": share * horizon_ms / 2}
        known[f"normal {share:g}"] = TimeDistribution.model_validate({"normal": normal})
    return known


def skipping(world: World) -> list[Figures]:
    """Return of plans that skip as many exits between two that run what was expected and the truth (Figure 10).

    `expectation` is by the times and test accuracies of the same minutes, `planned` by profile and validation samples,
    which is what a planner goes by.
    """
    results = results_of(world.bundle, world.profile, world.branches)
    plans = []
    for skipped in SKIPPED:
        plan = np.zeros(len(results.accuracy), dtype=bool)
        plan[:: -(skipped + 1)] = True
        plans.append(plan)
    # Every test sample as often: the truth is to differ from the expectation by the kill times alone.
    kills = KILLS_A_SAMPLE * len(world.test)
    found, _ = world.under_kills([StaticPlanner(plan.tolist()) for plan in plans], None, kills)
    times = (results.conv_ms, results.branch_ms, results.accuracy)
    return [
        {
            "skipped": skipped,
            "planned": expectation(plan, *times, horizon_ms=world.horizon_ms),
            "expectation": result.mae,
            "truth": result.killed,
        }
        for skipped, plan, result in zip(SKIPPED, plans, found, strict=True)
    ]


class _Timed:
    """Decisions whose times are noted."""

    name = SAMPLEWISE

    def __init__(self, planner: SamplewisePlanner) -> None:
        self._planner = planner
        self.times_us: list[float] = []

    def begin(self, deadline_ms: float | None = None) -> "_TimedDecisions":
        return _TimedDecisions(self._planner.begin(deadline_ms), self.times_us)


class _TimedDecisions:
    def __init__(self, decisions_: Decisions, times_us: list[float]) -> None:
        self._decisions, self._times_us = decisions_, times_us
        self.wanted = decisions_.wanted

    def after(self, result: int, logits: Any, elapsed_ms: float) -> None:  # noqa: ANN401
        start = perf_counter()
        self._decisions.after(result, logits, elapsed_ms)
        self._times_us.append(1e6 * (perf_counter() - start))


def decisions(world: World) -> Figures:
    """Return what predicting and planning take in the running engine, beside the whole inference."""
    timed = _Timed(planners(world, None)[SAMPLEWISE])  # type: ignore[arg-type]  # that one is
    engine = placed_engine(world.directory, world.bundle, world.branches, timed)
    elapsed_ms: list[float] = []
    shares: list[float] = []
    for sample in _spread(world.test, TIMED):
        before = len(timed.times_us)
        elapsed_ms.append(engine.infer(sample).elapsed_ms)
        shares.append(sum(timed.times_us[before:]) / 1e3 / elapsed_ms[-1])
    return {
        "decision_us": median(timed.times_us),
        "an_inference": len(timed.times_us) / TIMED,
        "inference_ms": median(elapsed_ms),
        "share": median(shares),
        "mean_share": mean(shares),
    }


def _spread(samples: Samples, count: int) -> Floats:
    return samples.x[np.linspace(0, len(samples) - 1, count).round().astype(np.int64)]


def compressed(name: str, build: Frozen, whole: World, work: Path, report: Report) -> Figures:
    """Return what the pruned network reaches alone, killed as the whole one was (Figure 9)."""
    directory = work / f"{name}-pruned"
    bundle = pruned(declared(name, build, work, report), whole.bundle, directory, report)
    [profile] = bundle.profiles.values()
    world = World(directory, bundle, profile, (), whole.horizon_ms, whole.test, whole.kills, report)
    [result], _ = world.under_kills([None], None)
    return {
        "killed": result.killed,
        "single_exit_ms": profile.single_exit_ms,
        "final_accuracy": bundle.final_accuracy,
        "flops_kept": float(bundle.made_with["flopsKept"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="which ones [default: all]")
    parser.add_argument("--work", type=Path, default=Path("build/einet"), help="what is trained, built and finished")
    parser.add_argument("--quick", action="store_true", help="only see that it runs; results stay in the work folder")
    arguments = parser.parse_args()
    asked = arguments.networks or list(NETWORKS_KILLED)
    if unknown := set(asked) - set(NETWORKS_KILLED):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS_KILLED)}")
    work: Path = arguments.work.resolve()
    folder = work if arguments.quick else RESULTS
    path = folder / "einet.json"
    figures: Figures = json.loads(path.read_text())["figures"] if path.exists() else {}
    known = builds(quick=arguments.quick)
    for name in asked:
        network = NETWORKS_KILLED[name]
        with Bars() as bars:
            bars.console.print(name)
            figures[name] = killed(name, network, known[network.built], work, bars)
        figures = {name: figures[name] for name in NETWORKS_KILLED if name in figures}
        if arguments.quick:
            path.write_text(json.dumps({"figures": figures}))
        else:
            write_results("einet", figures)
    draw(figures, folder)
    print_tables(figures)


def killed(name: str, network: Network, build: Frozen | Together, work: Path, report: Report) -> Figures:
    """Build a network if that is not done yet, and return its figures."""
    directory = built(declared(network.built, build, work, report), work, report)
    said = {"built": asdict(build)} | run(network, directory, build.kills, report)
    if isinstance(build, Frozen) and name == network.built:
        whole = world_of(network, directory, build.kills, report)
        said["pruned"] = compressed(name, build, whole, work, report)
    return said


def print_tables(figures: Figures) -> None:
    """Print what was right under kills, and what sample-wise planning gains and takes."""
    names = list(next(iter(figures.values()))["laws"]["uniform"])
    rows = [
        [network, *(f"{said['laws']['uniform'][name]['killed']:.1%}" for name in names)]
        for network, said in figures.items()
    ]
    show(
        "Right results at hand under kills, uniform law", table(["network", *(f"{name}>" for name in names)], rows), ""
    )
    laws_ = list(next(iter(figures.values()))["laws"])
    rows = [
        [network, said["chosen"], *(_gain(said["laws"][law][SAMPLEWISE], "over_best_static") for law in laws_)]
        for network, said in figures.items()
    ]
    head = ["network", "chosen", *(f"{law}>" for law in laws_)]
    show("Sample-wise over the best static plan, points, with 95 % errors", table(head, rows), "")
    rows = [
        [
            network,
            f"{said['decisions']['decision_us']:.1f} us",
            f"{said['decisions']['an_inference']:.1f}",
            f"{said['decisions']['inference_ms']:.2f} ms",
            f"{said['decisions']['share']:.1%}",
        ]
        for network, said in figures.items()
    ]
    head = ["network", "a decision>", "decisions>", "inference>", "share>"]
    show("What predicting and planning take", table(head, rows), "")
    rows = [
        [
            network,
            *(f"{row['planned']:.1%} / {row['expectation']:.1%} / {row['truth']:.1%}" for row in said["skipping"]),
        ]
        for network, said in figures.items()
    ]
    head = ["network", *(f"{skipped} skipped>" for skipped in SKIPPED)]
    show("Planned / expectation / truth", table(head, rows))


def _gain(row: Mapping[str, float], over: str) -> str:
    return f"{100 * row[over]:+.2f} +-{100 * row[f'{over}_error']:.2f}"


if __name__ == "__main__":
    main()
