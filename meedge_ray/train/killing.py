"""Sets of branches on the running engine, killed at random times.

All sets run in the same minutes: rounds alternate between them, and inferences between one let finish (which gives the
times) and one killed (which gives the truth), so that a machine that grows slower does so for all of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meedge_ray.bundle.manifest import unit_store
from meedge_ray.domain.elastic import Branch, Bundle, Profile
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.loading import load_engine, unit_reader
from meedge_ray.train.curves import Curve, Scores, accuracy_curve, finite_time_curve, mean_accuracy
from meedge_ray.train.progress import Report
from meedge_ray.train.samples import Samples

_ROUNDS = 25


@dataclass(frozen=True, slots=True)
class Kills:
    """Whether each set's result at hand was right [sets, kills], and which sample each kill met [kills]."""

    right: NDArray[np.bool_]
    samples: NDArray[np.int64]

    def standard_error(self, ours: int, theirs: int) -> float:
        """Return the standard error of how much more often one set was right than another.

        Kills meet all sets with the same samples at the same times. Those of one sample are not independent of each
        other, so the error is that of a mean over samples.
        """
        gap = self.right[ours].astype(np.float64) - self.right[theirs]
        counts = np.bincount(self.samples)
        by_sample = np.bincount(self.samples, weights=gap)[counts > 0]
        shares = counts[counts > 0] / len(gap)
        residuals = by_sample / len(gap) - gap.mean() * shares
        return float(np.sqrt((residuals**2).sum()))


@dataclass(frozen=True, slots=True)
class MethodResult:
    """One set of branches on the engine.

    `mae` is predicted from the times of `curve` and the test accuracies of exits; `killed` is measured: the share of
    inferences, killed at a uniformly drawn time, whose result at hand was right. `finite_time` says what is reached
    where the time is known beforehand and one exit is run for alone, by the profile's times; `finite_time_mean` is its
    mean over the horizon.
    """

    mae: float
    killed: float
    final_accuracy: float
    resident_bytes: int
    branches: tuple[str, ...]
    curve: Curve
    finite_time: Curve
    finite_time_mean: float


def placed_engine(directory: Path, bundle: Bundle, branches: Sequence[Branch]) -> Engine:
    """Return an engine with the bundle's backbone and the given branches resident."""
    store = unit_store(directory)
    engine = load_engine(store, bundle.input, bundle.blocks, bundle.final_accuracy)
    engine.place(branches, unit_reader(store))
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
    sets: Sequence[Sequence[Branch]],
    test: Samples,
    *,
    profile: Profile,
    horizon_ms: float,
    kills: int,
    seed: int,
    report: Report,
) -> tuple[list[MethodResult], Kills]:
    """Run every set of branches on an engine of its own; sets of the same branches share one and its result.

    Args:
        directory: the bundle's folder.
        bundle: the model.
        sets: the branches of each.
        test: the samples inferred.
        profile: times for the finite-time curves.
        horizon_ms: span in which the kill comes.
        kills: killed inferences a set; as many more are let finish.
        seed: of the kill times.
        report: told the progress.
    """
    random = np.random.default_rng(seed)
    # Stratified over the horizon and over the samples: still uniform, with less noise than independent draws.
    times_ms = random.permutation((np.arange(kills) + random.random(kills)) / kills * horizon_ms)
    victims = random.permutation(np.resize(np.arange(len(test)), kills))
    runners: dict[frozenset[Branch], _Runner] = {}
    for branches in sets:
        if frozenset(branches) not in runners:
            runners[frozenset(branches)] = _Runner(directory, bundle, branches, test)
    for done, part in enumerate(np.array_split(np.arange(kills), _ROUNDS)):
        for runner in runners.values():
            runner.kill(victims[part], times_ms[part], random)
        report("evaluate", done + 1, _ROUNDS)
    results = {key: runner.result(profile, horizon_ms) for key, runner in runners.items()}
    right = np.array([runners[frozenset(branches)].right for branches in sets])
    return [results[frozenset(branches)] for branches in sets], Kills(right, victims)


class _Runner:
    """The engine of one set of branches, and what was measured on it."""

    def __init__(self, directory: Path, bundle: Bundle, branches: Sequence[Branch], test: Samples) -> None:
        self._engine = placed_engine(directory, bundle, branches)
        self._bundle = bundle
        self._branches = branches
        self._test = test
        self._output_ms: list[list[float]] = []
        self.right: list[bool] = []
        self._sources: list[str | None] = []

    def kill(self, victims: NDArray[np.int64], times_ms: NDArray[np.float64], random: np.random.Generator) -> None:
        """Kill inferences at the given times, and let as many others finish to learn the times.

        In random order: a run is faster after a short one, whose units are still in the processor's cache, so both
        kinds must come after both kinds equally often.
        """
        killed = random.permutation(np.repeat([True, False], len(victims)))
        turn = iter(zip(victims, times_ms, strict=True))
        for is_killed in killed:
            if is_killed:
                index, time_ms = next(turn)
                label = self._engine.infer(self._test.x[index], deadline_ms=float(time_ms)).label
                self.right.append(label == self._test.y[index])
            else:
                outputs = self._engine.infer(self._test.x[random.integers(len(self._test))]).outputs
                self._sources = [output.branch for output in outputs]
                self._output_ms.append([output.at_ms for output in outputs])

    def result(self, profile: Profile, horizon_ms: float) -> MethodResult:
        """Put together what was measured."""
        scores = scored(self._engine, self._test)
        known: dict[str | None, float] = {branch.name: branch.accuracy for branch in self._branches}
        known[None] = self._bundle.final_accuracy
        at_ms = np.minimum(np.asarray(self._output_ms), horizon_ms).mean(axis=0)
        curve = accuracy_curve(
            at_ms.tolist(), [known[source] for source in self._sources], [scores[source] for source in self._sources]
        )
        finite_time = finite_time_curve(self._bundle, profile, self._branches, scores)
        return MethodResult(
            mae=mean_accuracy(curve, horizon_ms),
            killed=float(np.mean(self.right)),
            final_accuracy=curve[-1][1],
            resident_bytes=self._engine.resident_bytes,
            branches=self._engine.branches,
            curve=curve,
            finite_time=finite_time,
            finite_time_mean=mean_accuracy(finite_time, horizon_ms),
        )
