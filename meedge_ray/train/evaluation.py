"""What a bundle is worth on this machine: accuracy over time, over memory, and under random kills."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meedge_ray.api.elastic_model import Data
from meedge_ray.api.time_distribution import UNIFORM, TimeDistribution
from meedge_ray.bundle.manifest import read_bundle
from meedge_ray.domain.elastic import Branch, Bundle, bytes_of
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime.placing import Placer
from meedge_ray.train.curves import anytime_curve, mean_accuracy
from meedge_ray.train.data import load_data
from meedge_ray.train.killing import Contender, MethodResult, placed_engine, run_under_kills, scored
from meedge_ray.train.progress import Report, silent
from meedge_ray.train.samples import Samples

_SCORED = 2000  # test samples every branch is scored on
_POINTS = 24  # of the mAE over memory
_NORMAL_95 = 1.96  # standard errors on either side


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours beside one other method, at the memory that method takes (MEEdge Figure 9a).

    Beside the single exit, whose memory leaves nothing for branches, ours has the memory asked for. Gains are shares
    of the other's value, (ours - theirs) / theirs: in `mae`, predicted, and in `killed`, measured; None beside nothing.
    `killed_gain_error` is what 95 % of test splits of this size would move the measured gain by, up or down.
    """

    memory_bytes: int
    ours: MethodResult
    mae_gain: float | None
    killed_gain: float | None
    killed_gain_error: float | None


@dataclass(frozen=True, slots=True)
class MemoryPoint:
    """The placement of one memory budget, scored on test samples."""

    memory_bytes: int
    mae: float
    promised: float
    branches: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything measured; `over_memory` uses the profile's times, `methods` the times of this run.

    In `methods` each has the memory it takes and "meedge" the memory asked for; `comparisons` holds ours beside each
    of the others, by their name. `distribution` is the law of the kill's time, empty for the uniform one.
    """

    model: str
    architecture: str
    memory_bytes: int
    horizon_ms: float
    distribution: Mapping[str, Any]
    device_type: str
    test_samples: int
    kills_per_method: int
    methods: Mapping[str, MethodResult]
    comparisons: Mapping[str, Comparison]
    over_memory: Sequence[MemoryPoint]
    baselines_over_memory: Mapping[str, MemoryPoint]

    def as_json(self) -> dict[str, Any]:
        """Return the evaluation as plain JSON values, with `kills` of our method drawn out."""
        ours = self.methods["meedge"]
        return asdict(self) | {"kills": {"predicted": ours.mae, "measured": ours.killed}}


def evaluate(
    directory: Path,
    *,
    memory_bytes: int,
    horizon_ms: float | None = None,
    distribution: TimeDistribution = UNIFORM,
    kills: int = 10_000,
    seed: int = 0,
    report: Report = silent,
) -> Evaluation:
    """Measure our placements and the baselines of a bundle on the test split of its data.

    Args:
        directory: the bundle's folder.
        memory_bytes: memory budget of our placement; further ones get each baseline's memory.
        horizon_ms: span in which the kill comes, the same for every method.
        distribution: the law of its time; placements are chosen for it, methods killed by it.
        kills: killed inferences a method.
        seed: of the kill times.
        report: told the progress.

    Raises:
        MeedgeError: the bundle is damaged, its data is not there, or the budget is below the backbone.
    """
    bundle = read_bundle(directory)
    placer = Placer(bundle, horizon_ms=horizon_ms, distribution=distribution)
    others: dict[str, Sequence[Branch]] = {"single_exit": (), **bundle.baselines}
    budgets = {name: bundle.backbone_bytes + bytes_of(branches) for name, branches in bundle.baselines.items()}
    budgets["single_exit"] = memory_bytes
    ours = {name: _chosen(bundle, placer, budgets[name]) for name in others}
    test = test_samples(bundle)
    measured, under_kills = run_under_kills(
        directory,
        bundle,
        [Contender(frozenset(branches)) for branches in (*others.values(), *ours.values())],
        test,
        profile=placer.profile,
        horizon_ms=placer.horizon_ms,
        law=placer.law,
        kills=kills,
        seed=seed,
        report=report,
    )
    methods = dict(zip(others, measured[: len(others)], strict=True))
    beside = dict(zip(ours, measured[len(others) :], strict=True))
    over_memory, baselines = _over_memory(directory, bundle, placer, test[_spread(len(test))])
    return Evaluation(
        model=bundle.model,
        architecture=bundle.architecture,
        memory_bytes=memory_bytes,
        horizon_ms=placer.horizon_ms,
        distribution=distribution.model_dump(mode="json", exclude_none=True),
        device_type=placer.device_type,
        test_samples=len(test),
        kills_per_method=kills,
        methods=methods | {"meedge": beside["single_exit"]},
        comparisons={
            name: _compared(budgets[name], beside[name], theirs, under_kills.standard_error(len(others) + index, index))
            for index, (name, theirs) in enumerate(methods.items())
        },
        over_memory=over_memory,
        baselines_over_memory=baselines,
    )


def test_samples(bundle: Bundle) -> Samples:
    """Return the test split of the data a bundle was built with.

    Raises:
        MeedgeError: the data is not there, or is other data.
    """
    dataset = load_data(Data.model_validate(dict(bundle.data)), Path.cwd())
    if dataset.input.shape != bundle.input.shape:
        raise InvalidInputError(
            f"samples have shape {dataset.input.shape}, the model takes {bundle.input.shape}", where="data"
        )
    return dataset.test


def _chosen(bundle: Bundle, placer: Placer, memory_bytes: int) -> list[Branch]:
    names = set(placer.place(memory_bytes).branches)
    return [branch for branch in bundle.branches if branch.name in names]


def _compared(memory_bytes: int, ours: MethodResult, theirs: MethodResult, standard_error: float) -> Comparison:
    return Comparison(
        memory_bytes=memory_bytes,
        ours=ours,
        mae_gain=_gain(ours.mae, theirs.mae),
        killed_gain=_gain(ours.killed, theirs.killed),
        killed_gain_error=_NORMAL_95 * standard_error / theirs.killed if theirs.killed else None,
    )


def _gain(ours: float, theirs: float) -> float | None:
    return (ours - theirs) / theirs if theirs else None


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
    known = {branch.name: branch for branch in (*bundle.branches, *_flat(bundle.baselines))}
    needed = {name for placement in placements for name in placement.branches}
    needed |= {branch.name for branch in _flat(bundle.baselines)}
    scores = scored(placed_engine(directory, bundle, [known[name] for name in sorted(needed)]), test)

    def mae(branches: Sequence[Branch]) -> float:
        return mean_accuracy(anytime_curve(bundle, placer.profile, branches, scores), placer.horizon_ms, placer.law)

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
            memory_bytes=bundle.backbone_bytes + bytes_of(branches),
            mae=mae(branches),
            promised=placer.expectation([branch.name for branch in branches]),
            branches=len(branches),
        )
        for name, branches in {"single_exit": (), **bundle.baselines}.items()
    }
    return points, baselines


def _flat(baselines: Mapping[str, Sequence[Branch]]) -> Iterable[Branch]:
    return (branch for branches in baselines.values() for branch in branches)
