"""What AdaptiveNet's figures are made of: searches, reuse, trade-offs, shifted data, on a built supernet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meedge_ray.bundle.manifest import read_bundle, unit_store
from meedge_ray.domain.elastic import Bundle
from meedge_ray.runtime.adaptation import Adapter
from meedge_ray.runtime.loading import unit_reader
from meedge_ray.runtime.subnet_evaluation import SubnetEvaluator
from meedge_ray.search.subnet_search import anneal, evolve, fastest, nearby_init
from meedge_ray.search.subnets import Subnet
from meedge_ray.train.evaluation import test_samples
from meedge_ray.train.samples import Samples

BUDGET = 0.6  # of the original's latency, where one is searched for
NEAR = 0.1  # of the budget: the range of nearby searches
POPULATION = 50
ITERATIONS = {"plain-evolution": 61, "evolution": 21}  # 3,100 and 1,100 subnets
WALKS, STEPS = 8, 100  # of annealing: 800 subnets
SEEDS = {"plain-evolution": 1, "evolution": 1, "annealing": 1, "surrogate": 5}
CACHE_BYTES = 256 * 2**20
RANGES = 6  # of latency
IN_RANGE = 12  # subnets

Figures = dict[str, Any]


@dataclass(frozen=True)
class Device:
    """A supernet on this machine: samples to search with and others to report on."""

    directory: Path
    own: int  # samples to search with
    judged: int  # samples to report on

    @cached_property
    def bundle(self) -> Bundle:
        return read_bundle(self.directory)

    @cached_property
    def test(self) -> Samples:
        samples = test_samples(self.bundle)
        return samples[np.random.default_rng(0).permutation(len(samples))]

    @cached_property
    def adapter(self) -> Adapter:
        return self.on(self.test[: self.own])

    @cached_property
    def judge(self) -> SubnetEvaluator:
        return self.evaluator(self.test[self.own : self.own + self.judged], CACHE_BYTES)

    def on(self, samples: Samples) -> Adapter:
        known = None if "adapter" not in self.__dict__ else self.adapter.link_ms.tolist()
        return Adapter(
            self.bundle,
            unit_store(self.directory),
            np.asarray(samples.x),
            samples.y,
            cache_bytes=CACHE_BYTES,
            link_ms=known,
        )

    def evaluator(self, samples: Samples, cache_bytes: int, *, batch: int = 128) -> SubnetEvaluator:
        return SubnetEvaluator(
            self.bundle.links,
            unit_reader(unit_store(self.directory)),
            self.bundle.input,
            np.asarray(samples.x),
            samples.y,
            self.adapter.link_ms,
            cache_bytes=cache_bytes,
            batch=batch,
        )

    @property
    def original_ms(self) -> float:
        return self.adapter.original_ms

    @property
    def budget_ms(self) -> float:
        return BUDGET * self.original_ms


@dataclass
class Timed:
    """An evaluator whose time is noted after every group, with the best subnet within the budget so far."""

    evaluate: Callable[[Sequence[Subnet]], Sequence[float]]
    latency_ms: Callable[[Subnet], float]
    budget_ms: float

    def __post_init__(self) -> None:
        self.trail: list[tuple[int, float, float, Subnet | None]] = []
        self._start, self._subnets = perf_counter(), 0
        self._best: tuple[float, Subnet | None] = (0.0, None)

    def __call__(self, subnets: Sequence[Subnet]) -> list[float]:
        found = list(self.evaluate(subnets))
        self._subnets += len(subnets)
        for subnet, accuracy in zip(subnets, found, strict=True):
            if accuracy > self._best[0] and self.latency_ms(subnet) <= self.budget_ms:
                self._best = accuracy, subnet
        self.trail.append((self._subnets, perf_counter() - self._start, *self._best))
        return found


def searches(device: Device, *, quick: bool) -> Figures:
    """Return how each strategy comes to the accuracy that plain evolution ends with (Figure 12).

    Of thousands of subnets the one that is best on some samples is so by chance as well, so what is reached is judged
    on samples no search has seen.
    """
    rows: dict[str, list[Figures]] = {
        name: [_searched(device, name, seed, quick=quick) for seed in range(1 if quick else seeds)]
        for name, seeds in SEEDS.items()
    }
    target = rows["plain-evolution"][0]["unseen"]
    for row in (row for several in rows.values() for row in several):
        reached = next((each for each in row["trail"] if each[3] >= target), None)
        row["subnets_to_target"], row["seconds_to_target"] = (None, None) if reached is None else reached[:2]
    return {"budget_ms": device.budget_ms, "samples": device.own, "strategies": rows}


def _searched(device: Device, strategy: str, seed: int, *, quick: bool) -> Figures:
    adapter, budget_ms, random = device.adapter, device.budget_ms, np.random.default_rng(seed)
    # The usual way shares nothing between subnets.
    evaluate = device.evaluator(device.test[: device.own], 0) if strategy.startswith("plain") else adapter.evaluator
    timed = Timed(evaluate, lambda subnet: adapter.space.latency_ms(subnet, adapter.link_ms), budget_ms)
    arguments: Figures = {"budget_ms": budget_ms, "tolerance_ms": NEAR * budget_ms, "rng": random}
    if strategy == "surrogate":
        kept, adapter.evaluator = adapter.evaluator, timed  # type: ignore[assignment]  # it is called alike
        adapter.search(budget_ms, strategy, random)
        adapter.evaluator = kept
    elif strategy == "annealing":
        counts = {"population": WALKS, "iterations": 2 if quick else STEPS}
        anneal(adapter.space, adapter.link_ms, timed, nearby=True, **counts, **arguments)
    else:
        counts = {"population": POPULATION, "iterations": 2 if quick else ITERATIONS[strategy]}
        nearby = not strategy.startswith("plain")
        evolve(adapter.space, adapter.link_ms, timed, nearby=nearby, **counts, **arguments)
    return _row(timed, device)


def _row(timed: Timed, device: Device) -> Figures:
    best = list(dict.fromkeys(subnet for *_, subnet in timed.trail if subnet is not None))
    unseen = dict(zip(best, device.judge(best), strict=True))
    trail = [
        (count, seconds, accuracy, 0.0 if subnet is None else unseen[subnet])
        for count, seconds, accuracy, subnet in timed.trail
    ]
    subnets, seconds, accuracy, judged = trail[-1]
    return {"subnets": subnets, "seconds": seconds, "accuracy": accuracy, "unseen": judged, "trail": trail}


def reuse(device: Device, seed: int = 0) -> Figures:
    """Return the time that 100 subnets take with so many features kept, and none (Figure 11)."""
    adapter, random = device.adapter, np.random.default_rng(seed)
    near = NEAR * device.budget_ms
    first = nearby_init(adapter.space, adapter.link_ms, device.budget_ms - near, device.budget_ms + near, 100, random)
    groups: list[list[Subnet]] = []

    def noted(subnets: Sequence[Subnet]) -> list[float]:
        groups.append(list(subnets))
        return adapter.evaluator(subnets)

    evolve(
        adapter.space,
        adapter.link_ms,
        noted,
        budget_ms=device.budget_ms,
        tolerance_ms=near,
        nearby=True,
        population=100,
        iterations=6,
        rng=random,
    )
    samples = device.test[: device.own]
    largest = max(int(np.prod(block.input_shape)) for block in device.bundle.blocks) * 4
    said: Figures = {}
    for name, subnets in (("first", first), ("sixth", groups[-1])):
        for batch in (32, 128):
            rows = {}
            for features in (0, 1, 2, 4, 16):
                evaluator = device.evaluator(samples, features * largest * batch, batch=batch)
                evaluator(subnets[:2])  # warm
                begun = evaluator.seconds
                evaluator(subnets)
                rows[features] = evaluator.seconds - begun
            said[f"{name}, batches of {batch}"] = rows
    return said


def trade_off(device: Device, budgets_ms: Sequence[float]) -> list[Figures]:
    """Return what the surrogate search finds for every budget, judged on samples it did not see (Figure 7)."""
    points = []
    for budget_ms in budgets_ms:
        chosen = device.adapter.adapt(budget_ms)
        points.append(
            {
                "budget_ms": budget_ms,
                "estimated_ms": chosen.estimated_ms,
                "latency_ms": chosen.latency_ms,
                "accuracy": device.judge([chosen.subnet])[0],
                "shortfall_ms": chosen.shortfall_ms,
            }
        )
    return points


def by_range(device: Device, seed: int = 0) -> list[Figures]:
    """Return the mean accuracy of random subnets in every range of latency (Figure 10)."""
    adapter, random = device.adapter, np.random.default_rng(seed)
    low_ms = adapter.space.latency_ms(fastest(adapter.space, adapter.link_ms), adapter.link_ms)
    edges = np.linspace(low_ms, device.original_ms, RANGES + 1).tolist()
    rows = []
    for low, high in pairwise(edges):
        drawn = nearby_init(adapter.space, adapter.link_ms, low, high, IN_RANGE, random)
        if drawn:
            rows.append({"from": low / device.original_ms, "to": high / device.original_ms})
            rows[-1]["accuracy"] = mean(adapter.evaluator(drawn))
    return rows


def shifted(device: Device, alphas: Sequence[float], draws: int) -> list[Figures]:
    """Return what searching on a device's own classes gains over searching on all of them (Figure 9).

    Classes are drawn by a Dirichlet law; half of the device's samples are searched with, half judge.
    """
    adapter = device.adapter
    everywhere = adapter.adapt(device.budget_ms).subnet
    rows = []
    for alpha in alphas:
        gains: list[float] = []
        for draw in range(draws):
            samples = device.test[dirichlet(device.test.y, alpha, 2 * device.own, np.random.default_rng((draw, 7)))]
            here = device.on(samples[: device.own])
            chosen = here.search(device.budget_ms, "surrogate", np.random.default_rng(draw)).best.subnet
            ours, theirs = device.evaluator(samples[device.own :], CACHE_BYTES)([chosen, everywhere])
            gains.append(ours - theirs)
        error = 1.96 * float(np.std(gains, ddof=1)) / len(gains) ** 0.5
        rows.append({"alpha": alpha, "draws": draws, "gain": mean(gains), "error": error, "median": median(gains)})
    return rows


def dirichlet(labels: NDArray[np.int64], alpha: float, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return `count` different samples whose classes have shares drawn by a symmetric Dirichlet law."""
    classes = np.unique(labels)
    shares = random.dirichlet(np.full(len(classes), alpha))
    chances = (shares / np.bincount(labels)[classes])[np.searchsorted(classes, labels)] + 1e-12
    chosen: NDArray[np.int64] = random.choice(len(labels), count, replace=False, p=chances / chances.sum())
    return chosen
