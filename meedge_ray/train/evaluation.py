"""What a bundle is worth on this machine: accuracy over time, over memory, and under random kills.

Every method runs on the same engine in the same minutes: rounds alternate between the methods, and inferences between
one let finish (which gives the times) and one killed (which gives the truth), so that a machine that grows slower does
so for all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meedge_ray.api.elastic_model import Data
from meedge_ray.bundle.manifest import read_bundle, unit_store
from meedge_ray.domain.elastic import Branch, Bundle
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.loading import load_engine, stored_candidates
from meedge_ray.runtime.placing import Placer
from meedge_ray.search.placement import result_times
from meedge_ray.train.data import load_data
from meedge_ray.train.progress import Report, silent
from meedge_ray.train.samples import Samples

_ROUNDS = 25
_SCORED = 2000  # test samples every branch is scored on
_POINTS = 24  # of the mAE over memory

Curve = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class MethodResult:
    """One method on the engine. `curve` holds (ms, accuracy of the best result at hand from then on).

    `mae` is predicted from the times of units and the test accuracies of exits; `killed` is measured: the share of
    inferences, killed at a uniformly drawn time, whose result at hand was right.
    """

    mae: float
    killed: float
    final_accuracy: float
    resident_bytes: int
    branches: tuple[str, ...]
    curve: Curve


@dataclass(frozen=True, slots=True)
class MemoryPoint:
    """The placement of one memory budget, scored on test samples."""

    memory_bytes: int
    mae: float
    promised: float
    branches: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything measured; `over_memory` uses the profile's times, `methods` the times of this run."""

    model: str
    architecture: str
    memory_bytes: int
    horizon_ms: float
    device_type: str
    test_samples: int
    kills_per_method: int
    methods: Mapping[str, MethodResult]
    over_memory: Sequence[MemoryPoint]
    baselines_over_memory: Mapping[str, MemoryPoint]

    def as_json(self) -> dict[str, Any]:
        """Return the evaluation as plain JSON values, with `kills` of our method drawn out."""
        ours = self.methods["meedge"]
        return asdict(self) | {"kills": {"predicted": ours.mae, "measured": ours.killed}}


def placed_engine(directory: Path, bundle: Bundle, branches: Sequence[Branch]) -> Engine:
    """Return an engine with the bundle's backbone and the given branches resident."""
    store = unit_store(directory)
    engine = load_engine(store, bundle.input, bundle.blocks, bundle.final_accuracy)
    engine.place(stored_candidates(store, branches))
    return engine


def evaluate(
    directory: Path,
    *,
    memory_bytes: int,
    horizon_ms: float | None = None,
    kills: int = 10_000,
    seed: int = 0,
    report: Report = silent,
) -> Evaluation:
    """Measure our placement and the baselines of a bundle on the test split of its data.

    Args:
        directory: the bundle's folder.
        memory_bytes: memory budget of our placement.
        horizon_ms: span in which the kill comes, the same for every method.
        kills: killed inferences a method.
        seed: of the kill times.
        report: told the progress.

    Raises:
        MeedgeError: the bundle is damaged, its data is not there, or the budget is below the backbone.
    """
    bundle = read_bundle(directory)
    placer = Placer(bundle, horizon_ms=horizon_ms)
    placement = placer.place(memory_bytes)
    by_name = {branch.name: branch for branch in bundle.branches}
    sets: dict[str, Sequence[Branch]] = {
        "single_exit": (),
        **bundle.baselines,
        "meedge": [by_name[name] for name in placement.branches],
    }
    dataset = load_data(Data.model_validate(dict(bundle.data)), Path.cwd())
    if dataset.input.shape != bundle.input.shape:
        raise InvalidInputError(
            f"samples have shape {dataset.input.shape}, the model takes {bundle.input.shape}", where="data"
        )
    test = dataset.test
    methods = _run_methods(directory, bundle, sets, test, placer.horizon_ms, kills, seed, report)
    over_memory, baselines = _over_memory(directory, bundle, placer, test[_spread(len(test))])
    return Evaluation(
        model=bundle.model,
        architecture=bundle.architecture,
        memory_bytes=memory_bytes,
        horizon_ms=placer.horizon_ms,
        device_type=placement.device_type,
        test_samples=len(test),
        kills_per_method=kills,
        methods=methods,
        over_memory=over_memory,
        baselines_over_memory=baselines,
    )


def accuracy_curve(at_ms: Sequence[float], validation: Sequence[float], test: Sequence[float]) -> Curve:
    """Return (ms, accuracy) of the best result at hand, the best being known from validation alone."""
    curve: Curve = []
    best = -1.0
    for time_ms, known, accuracy in zip(at_ms, validation, test, strict=True):
        if known > best:
            best = known
            curve.append((time_ms, accuracy))
    return curve


def mean_accuracy(curve: Curve, horizon_ms: float) -> float:
    """Return the mAE: the mean over the horizon of the accuracy at hand, 0 before the first result (MEEdge 4.1)."""
    ends_ms = [time_ms for time_ms, _ in curve[1:]] + [horizon_ms]
    area = sum(
        accuracy * max(0.0, min(end_ms, horizon_ms) - start_ms)
        for (start_ms, accuracy), end_ms in zip(curve, ends_ms, strict=True)
        if start_ms < horizon_ms
    )
    return area / horizon_ms


class _Runner:
    """One method's engine and what was measured on it."""

    def __init__(self, directory: Path, bundle: Bundle, branches: Sequence[Branch], test: Samples) -> None:
        self.engine = placed_engine(directory, bundle, branches)
        self._test = test
        self._accuracy: dict[str | None, float] = {
            None: bundle.final_accuracy,
            **{branch.name: branch.accuracy for branch in branches},
        }
        self._output_ms: list[list[float]] = []
        self._right: list[bool] = []
        logits = self.engine.infer_batch(test.x)
        self._test_accuracy = {name: float((value.argmax(1) == test.y).mean()) for name, value in logits.items()}
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
                label = self.engine.infer(self._test.x[index], deadline_ms=float(time_ms)).label
                self._right.append(label == self._test.y[index])
            else:
                outputs = self.engine.infer(self._test.x[random.integers(len(self._test))]).outputs
                self._sources = [output.branch for output in outputs]
                self._output_ms.append([output.at_ms for output in outputs])

    def result(self, horizon_ms: float) -> MethodResult:
        """Put together what was measured."""
        at_ms = np.minimum(np.asarray(self._output_ms), horizon_ms).mean(axis=0)
        curve = accuracy_curve(
            at_ms.tolist(),
            [self._accuracy[source] for source in self._sources],
            [self._test_accuracy[source] for source in self._sources],
        )
        return MethodResult(
            mae=mean_accuracy(curve, horizon_ms),
            killed=float(np.mean(self._right)),
            final_accuracy=curve[-1][1],
            resident_bytes=self.engine.resident_bytes,
            branches=self.engine.branches,
            curve=curve,
        )


def _run_methods(
    directory: Path,
    bundle: Bundle,
    sets: Mapping[str, Sequence[Branch]],
    test: Samples,
    horizon_ms: float,
    kills: int,
    seed: int,
    report: Report,
) -> dict[str, MethodResult]:
    random = np.random.default_rng(seed)
    # Stratified over the horizon and over the samples: still uniform, with less noise than independent draws.
    times_ms = random.permutation((np.arange(kills) + random.random(kills)) / kills * horizon_ms)
    victims = random.permutation(np.resize(np.arange(len(test)), kills))
    runners = {name: _Runner(directory, bundle, branches, test) for name, branches in sets.items()}
    for done, part in enumerate(np.array_split(np.arange(kills), _ROUNDS)):
        for runner in runners.values():
            runner.kill(victims[part], times_ms[part], random)
        report("evaluate", done + 1, _ROUNDS)
    return {name: runner.result(horizon_ms) for name, runner in runners.items()}


def _spread(count: int) -> NDArray[np.int64]:
    # Files are often sorted by class: take samples from everywhere.
    return np.unique(np.linspace(0, count - 1, min(count, _SCORED)).astype(np.int64))


def _over_memory(
    directory: Path, bundle: Bundle, placer: Placer, test: Samples
) -> tuple[list[MemoryPoint], dict[str, MemoryPoint]]:
    frontier = placer.frontier()
    last = len(frontier.size_bytes) - 1
    chosen = sorted({round(index) for index in np.linspace(0, last, min(_POINTS, last + 1))})
    placements = [placer.place(bundle.backbone_bytes + int(frontier.size_bytes[index])) for index in chosen]
    known = {branch.name: branch for method in bundle.baselines.values() for branch in method}
    known |= {branch.name: branch for branch in bundle.branches}
    needed = {name for placement in placements for name in placement.branches}
    needed |= {branch.name for method in bundle.baselines.values() for branch in method}
    logits = placed_engine(directory, bundle, [known[name] for name in sorted(needed)]).infer_batch(test.x)
    scores = {name: float((value.argmax(1) == test.y).mean()) for name, value in logits.items()}

    def mae(branches: Sequence[Branch]) -> float:
        return mean_accuracy(_profiled_curve(bundle, placer, branches, scores), placer.horizon_ms)

    points = [
        MemoryPoint(
            memory_bytes=placement.size_bytes,
            mae=mae([known[name] for name in placement.branches]),
            promised=placement.expectation,
            branches=len(placement.branches),
        )
        for placement in placements
    ]
    baselines = {
        name: MemoryPoint(
            memory_bytes=bundle.backbone_bytes + sum(branch.unit.size_bytes for branch in branches),
            mae=mae(branches),
            promised=placer.expectation([branch.name for branch in branches]),
            branches=len(branches),
        )
        for name, branches in {"single_exit": (), **bundle.baselines}.items()
    }
    return points, baselines


def _profiled_curve(
    bundle: Bundle, placer: Placer, branches: Sequence[Branch], scores: Mapping[str | None, float]
) -> Curve:
    ordered = sorted(branches, key=lambda branch: (branch.exit_index, branch.accuracy))
    at_ms, known = result_times(
        range(len(ordered)),
        [branch.exit_index for branch in ordered],
        [placer.profile.branch_ms[branch.name] for branch in ordered],
        [branch.accuracy for branch in ordered],
        backbone_ms=list(accumulate(placer.profile.block_ms))[:-1],
        final_ms=placer.profile.single_exit_ms,
        final_accuracy=bundle.final_accuracy,
    )
    truth = [*(scores[branch.name] for branch in ordered), scores[None]]
    return accuracy_curve(at_ms.tolist(), known.tolist(), truth)
