"""Contenders on the running engine, killed at random times.

All run in the same minutes: rounds alternate between them, and inferences between one let finish (which gives the
times) and one killed (which gives the truth), so that a machine that grows slower does so for all of them.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meedge_ray.bundle.manifest import unit_store
from meedge_ray.domain.answer import Output
from meedge_ray.domain.elastic import Branch, Bundle, Profile
from meedge_ray.runtime.engine import Engine, Planner
from meedge_ray.runtime.loading import load_engine, unit_reader
from meedge_ray.search.inputs import Floats, Law
from meedge_ray.train.curves import Curve, Scores, accuracy_curve, finite_time_curve, mean_accuracy
from meedge_ray.train.preempting import Preemptor
from meedge_ray.train.progress import Report
from meedge_ray.train.samples import Samples

_ROUNDS = 25
_GRID = 10_001  # times at which a law is looked at, to draw from it


class Contender(NamedTuple):
    """What is run: branches, all of them or those that a planner chooses."""

    branches: frozenset[Branch]
    planner: Planner | None = None


@dataclass(frozen=True, slots=True)
class Kills:
    """What each contender made of the samples [kills] that the kills met.

    `right` [contenders, kills]: whether the result at hand was right. `expected` [contenders, kills]: by what share of
    all kills it would have been, from an inference of the same sample that was let finish; it says the same with less
    noise.
    """

    right: NDArray[np.bool_]
    expected: Floats
    samples: NDArray[np.int64]

    def standard_error(self, ours: int, theirs: int) -> float:
        """Return the standard error of how much more often one contender was right than another."""
        return self._error(self.right[ours].astype(np.float64) - self.right[theirs])

    def expected_gain(self, ours: int, theirs: int) -> tuple[float, float]:
        """Return by how much more often one contender is expected to be right than another; the standard error."""
        gap = self.expected[ours] - self.expected[theirs]
        return float(gap.mean()), self._error(gap)

    def _error(self, gap: Floats) -> float:
        # All contenders meet the same samples. Several kills of one sample are not independent of each other, so the
        # error is that of a mean over samples.
        counts = np.bincount(self.samples)
        by_sample = np.bincount(self.samples, weights=gap)[counts > 0]
        shares = counts[counts > 0] / len(gap)
        residuals = by_sample / len(gap) - gap.mean() * shares
        return float(np.sqrt((residuals**2).sum()))


@dataclass(frozen=True, slots=True)
class MethodResult:
    """One contender on the engine.

    `mae` is predicted from the times of results and the test accuracies of exits; `killed` is measured: the share of
    inferences, killed at a drawn time, whose result at hand was right. `curve` has the mean times of results, and is
    empty where a planner chose others from sample to sample; `outputs` is how many came on average. `finite_time` says
    what is reached where the time is known beforehand and one exit is run for alone, by the profile's times;
    `finite_time_mean` is its mean over the horizon.
    """

    mae: float
    killed: float
    final_accuracy: float
    resident_bytes: int
    branches: tuple[str, ...]
    outputs: float
    curve: Curve
    finite_time: Curve
    finite_time_mean: float


def placed_engine(
    directory: Path, bundle: Bundle, branches: Collection[Branch], planner: Planner | None = None
) -> Engine:
    """Return an engine with the bundle's backbone and the given branches resident."""
    store = unit_store(directory)
    engine = load_engine(store, bundle.input, bundle.blocks, bundle.final_accuracy)
    engine.place(tuple(branches), unit_reader(store), planner)
    return engine


def scored(engine: Engine, samples: Samples) -> Scores:
    """Return the accuracy of every resident branch and of the final exit on the samples."""
    right: Counter[str | None] = Counter()
    done = 0
    for chunk in samples.chunks():
        labels = samples.y[done : done + len(chunk)]
        done += len(chunk)
        for name, logits in engine.infer_batch(chunk).items():
            right[name] += int((logits.argmax(1) == labels).sum())
    return {name: count / len(samples) for name, count in right.items()}


def run_under_kills(
    directory: Path,
    bundle: Bundle,
    contenders: Sequence[Contender],
    test: Samples,
    *,
    profile: Profile,
    horizon_ms: float,
    law: Law | None = None,
    kills: int,
    seed: int,
    preempting: bool = False,
    report: Report,
) -> tuple[list[MethodResult], Kills]:
    """Run every contender on an engine of its own; equal ones share one and its result.

    Args:
        directory: the bundle's folder.
        bundle: the model.
        contenders: what is run.
        test: the samples inferred.
        profile: times for the finite-time curves.
        horizon_ms: span in which the kill comes.
        law: of the kill's time; None is the uniform one.
        kills: killed inferences a contender; as many more are let finish.
        seed: of the kill times.
        preempting: another thread takes the processor away; otherwise the engine stops by its own clock, which is
            exact to the microsecond.
        report: told the progress.
    """
    random = np.random.default_rng(seed)
    # Stratified over the law and over the samples: as if drawn one by one, with less noise.
    times_ms = kill_times(random.permutation((np.arange(kills) + random.random(kills)) / kills), horizon_ms, law)
    victims = random.permutation(np.resize(np.arange(len(test)), kills))
    runners = {each: _Runner(directory, bundle, each, test) for each in contenders}
    with Preemptor() as preemptor:
        for done, part in enumerate(np.array_split(np.arange(kills), _ROUNDS)):
            for runner in runners.values():
                runner.kill(victims[part], times_ms[part], random, preemptor if preempting else None)
            report("evaluate", done + 1, _ROUNDS)
    one_of = {each.branches: runner for each, runner in runners.items()}  # exits score alike whatever the planner
    scores = {branches: runner.scores() for branches, runner in one_of.items()}
    results = {each: runner.result(scores[each.branches], profile, horizon_ms, law) for each, runner in runners.items()}
    right = np.array([runners[each].right for each in contenders])
    expected_of = {each: runner.expected(horizon_ms, law) for each, runner in runners.items()}
    expected = np.array([expected_of[each] for each in contenders])
    return [results[each] for each in contenders], Kills(right, expected, victims)


def kill_times(shares: Floats, horizon_ms: float, law: Law | None) -> Floats:
    """Return the times before which these shares of all kills come, within the horizon."""
    if law is None:
        return shares * horizon_ms
    grid = np.linspace(0.0, horizon_ms, _GRID)
    killed = 1.0 - law(grid)
    times_ms: Floats = np.interp(shares * killed[-1], killed, grid)
    return times_ms


class _Runner:
    """The engine of one contender, and what was measured on it."""

    def __init__(self, directory: Path, bundle: Bundle, contender: Contender, test: Samples) -> None:
        self._engine = placed_engine(directory, bundle, *contender)
        self._bundle = bundle
        self._branches = contender.branches
        self._test = test
        self._known: dict[str | None, float] = {branch.name: branch.accuracy for branch in self._branches}
        self._known[None] = bundle.final_accuracy
        self._runs: list[tuple[Output, ...]] = []
        self._samples: list[int] = []  # of the runs
        self.right: list[bool] = []

    def kill(
        self,
        victims: NDArray[np.int64],
        times_ms: Floats,
        random: np.random.Generator,
        preemptor: Preemptor | None,
    ) -> None:
        """Kill inferences at the given times, and let as many others of the same samples finish to learn the times.

        In random order: a run is faster after a short one, whose units are still in the processor's cache, so both
        kinds must come after both kinds equally often.
        """
        killed = random.permutation(np.repeat([True, False], len(victims)))
        turn, whole = iter(zip(victims, times_ms, strict=True)), iter(victims.tolist())
        for is_killed in killed:
            if is_killed:
                index, time_ms = next(turn)
                sample = self._test.x[index]
                if preemptor is None:
                    label = self._engine.infer(sample, deadline_ms=float(time_ms)).label
                else:
                    label = self._engine.infer(sample, preemption=preemptor.after(float(time_ms))).label
                self.right.append(label == self._test.y[index])
            else:
                self._samples.append(next(whole))
                self._runs.append(self._engine.infer(self._test.x[self._samples[-1]]).outputs)

    def expected(self, horizon_ms: float, law: Law | None) -> Floats:
        """Return of every run that was let finish in what share of all kills the result at hand is right."""
        return np.array(
            [
                self._expected(outputs, int(self._test.y[sample]), horizon_ms, law)
                for outputs, sample in zip(self._runs, self._samples, strict=True)
            ]
        )

    def _expected(self, outputs: Sequence[Output], label: int, horizon_ms: float, law: Law | None) -> float:
        curve = accuracy_curve(
            [min(output.at_ms, horizon_ms) for output in outputs],
            [self._known[output.branch] for output in outputs],
            [float(output.label == label) for output in outputs],
        )
        return mean_accuracy(curve, horizon_ms, law)

    def scores(self) -> Scores:
        """Return the accuracy of every exit on the test samples."""
        return scored(self._engine, self._test)

    def result(self, scores: Scores, profile: Profile, horizon_ms: float, law: Law | None) -> MethodResult:
        """Put together what was measured."""
        by_sources: dict[tuple[str | None, ...], list[list[float]]] = defaultdict(list)
        for outputs in self._runs:
            at_ms = [min(output.at_ms, horizon_ms) for output in outputs]
            by_sources[tuple(output.branch for output in outputs)].append(at_ms)
        # What is at hand is linear in the times, so runs of the same results may be taken together.
        curves = [
            accuracy_curve(
                np.mean(times, axis=0).tolist(),
                [self._known[source] for source in sources],
                [scores[source] for source in sources],
            )
            for sources, times in by_sources.items()
        ]
        weights = np.array([len(times) for times in by_sources.values()]) / len(self._runs)
        finite_time = finite_time_curve(self._bundle, profile, tuple(self._branches), scores)
        return MethodResult(
            mae=float(weights @ np.array([mean_accuracy(curve, horizon_ms, law) for curve in curves])),
            killed=float(np.mean(self.right)),
            final_accuracy=float(weights @ np.array([curve[-1][1] if curve else 0.0 for curve in curves])),
            resident_bytes=self._engine.resident_bytes,
            branches=self._engine.branches,
            outputs=float(weights @ np.array([len(sources) for sources in by_sources])),
            curve=curves[0] if len(curves) == 1 else [],
            finite_time=finite_time,
            finite_time_mean=mean_accuracy(finite_time, horizon_ms, law),
        )
