"""On the device: finds the most accurate subnet within a latency budget, on the device's own data (AdaptiveNet 5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.answer import Answer
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime.adaptive_engine import AdaptiveEngine
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.loading import load_engine, unit_reader
from meedge_ray.runtime.profiler import GROUP
from meedge_ray.runtime.subnet_evaluation import SubnetEvaluator
from meedge_ray.runtime.subnet_pool import SubnetPool
from meedge_ray.runtime.subnets import link_times, subnet_bundle, subnet_space
from meedge_ray.search.subnet_search import Found, Measured, anneal, evolve
from meedge_ray.search.subnets import Subnet, fastest
from meedge_ray.search.surrogate import surrogate_search

Strategy = Literal["surrogate", "evolution", "annealing", "plain-evolution", "plain-annealing"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
CACHE_BYTES = 64 * 2**20  # of features, unless said

_NEAR = 0.1  # of the budget: how far from it subnets are searched
_MEASURED = 50  # inferences of the subnet that was chosen
_WARM_UP = 5


@dataclass(frozen=True, slots=True)
class Adaptation:
    """What the search chose, and what it took.

    `subnet` numbers the links of the bundle in the order they run. `estimated_ms` is the sum of their times in this
    device's table, `latency_ms` the median of whole inferences. `accuracy` is the share of the device's samples it gets
    right, or on which it agrees with the original where those have no labels. `shortfall_ms` is by how much even the
    fastest subnet misses the budget; 0 where one fits. `pool` has the best of all that were evaluated, for a changed
    budget, and the original where no better one is as quick.
    """

    subnet: Subnet
    estimated_ms: float
    latency_ms: float
    accuracy: float
    original_ms: float
    original_accuracy: float
    labelled: bool
    shortfall_ms: float
    subnets: int
    evaluated: int
    profile_s: float
    search_s: float
    pool: SubnetPool


class Adapter:
    """A bundle's supernet on this device: its latency table, measured once, and the device's samples."""

    def __init__(
        self,
        bundle: Bundle,
        store: UnitStore,
        samples: Any,  # noqa: ANN401 - whatever a user hands over
        labels: Any = None,  # noqa: ANN401
        *,
        cache_bytes: int = CACHE_BYTES,
        link_ms: Sequence[float] | None = None,
    ) -> None:
        """Measure every link's latency unless `link_ms` says them.

        Args:
            bundle: with variants.
            store: of its units.
            samples: raw ones [n, ...], as the data set stores them.
            labels: [n] class numbers; None takes what the original network says for right.
            cache_bytes: most memory that features kept for other subnets may take.
            link_ms: time of every link of `bundle.links` on this device.

        Raises:
            InvalidInputError: there are no variants, or samples, labels or memory cannot be used; `where` names them.
            MeedgeError: a unit is missing or damaged.
        """
        if not bundle.variants:
            raise InvalidInputError(
                "the bundle has no lighter blocks to choose from",
                where=bundle.model,
                do="Add `supernet: {}` to the manifest's spec and build it again",
            )
        self.bundle = bundle
        self.space = subnet_space(bundle)
        self._store, self._samples, self._labelled = store, samples, labels is not None
        start = perf_counter()
        self.link_ms: NDArray[np.float64] = self._table() if link_ms is None else np.asarray(link_ms, np.float64)
        self.profile_s = perf_counter() - start
        self.evaluator = SubnetEvaluator(
            bundle.links,
            unit_reader(store),
            bundle.input,
            samples,
            labels,
            self.link_ms,
            cache_bytes=cache_bytes,
        )

    @property
    def original_ms(self) -> float:
        """Latency of the original network by this device's table."""
        return self.space.latency_ms(self.space.original, self.link_ms)

    def adapt(self, latency_ms: float, *, strategy: Strategy = "surrogate", seed: int = 0) -> Adaptation:
        """Return the most accurate subnet found whose latency is within the budget.

        Where not even the fastest is, that one is returned, with its shortfall.

        Args:
            latency_ms: budget of one inference.
            strategy: how to search; the plain forms of the published ones are there to be compared with.
            seed: of what is drawn.

        Raises:
            InvalidInputError: the budget is not above 0, or there is no such strategy.
        """
        if not (np.isfinite(latency_ms) and latency_ms > 0):
            raise InvalidInputError(f"{latency_ms} ms is no latency", where="latency_ms", do="Give more than 0")
        if strategy not in STRATEGIES:
            raise InvalidInputError(
                f"there is no strategy {strategy!r}", where="strategy", do=f"Choose one of {', '.join(STRATEGIES)}"
            )
        start = perf_counter()
        quickest = fastest(self.space, self.link_ms)
        shortfall_ms = max(0.0, self.space.latency_ms(quickest, self.link_ms) - latency_ms)
        before = self.evaluator.evaluated
        found = (
            self._alone(quickest) if shortfall_ms else self.search(latency_ms, strategy, np.random.default_rng(seed))
        )
        original = Measured(self.space.original, self.original_ms, self.evaluator([self.space.original])[0])
        evaluated = self.evaluator.evaluated - before
        search_s = perf_counter() - start
        pool = SubnetPool((*found.measured, original))
        best = found.best if shortfall_ms else pool.best(latency_ms) or found.best
        return Adaptation(
            subnet=best.subnet,
            estimated_ms=best.latency_ms,
            latency_ms=self._measured_ms(best.subnet),
            accuracy=best.accuracy,
            original_ms=self._measured_ms(original.subnet),
            original_accuracy=original.accuracy,
            labelled=self._labelled,
            shortfall_ms=shortfall_ms,
            subnets=self.space.count,
            evaluated=evaluated,
            profile_s=self.profile_s,
            search_s=search_s,
            pool=pool,
        )

    def running(self, chosen: Adaptation, latency_ms: float, *, look_ahead: int = 0) -> AdaptiveEngine:
        """Return an engine that keeps to a budget with the subnets found, and searches again where none of them does.

        Args:
            chosen: whose pool is run.
            latency_ms: budget of one inference.
            look_ahead: see `AdaptiveEngine`.
        """
        store, bundle = self._store, self.bundle
        return AdaptiveEngine(
            self._engine(bundle),
            bundle,
            chosen.pool,
            unit_reader(store),
            latency_ms=latency_ms,
            look_ahead=look_ahead,
            search_again=lambda budget_ms: self.adapt(budget_ms).pool.members,
        )

    def adapted(self, subnet: Subnet) -> Bundle:
        """Return a subnet as a bundle, the accuracies of its exits measured anew on this device's samples."""
        plain = subnet_bundle(self.bundle, subnet, final_accuracy=self.bundle.final_accuracy)
        engine, read = self._engine(plain), unit_reader(self._store)
        accuracy: dict[str | None, float] = {}
        for first in range(0, max(1, len(plain.branches)), GROUP):
            engine.place(plain.branches[first : first + GROUP], read)
            for name, logits in engine.infer_batch(self._samples).items():
                accuracy[name] = float((logits.argmax(1) == self.evaluator.labels).mean())
        final_accuracy = accuracy.pop(None)
        measured = {name: value for name, value in accuracy.items() if name is not None}
        return subnet_bundle(self.bundle, subnet, final_accuracy=final_accuracy, branch_accuracy=measured)

    def search(self, latency_ms: float, strategy: Strategy, rng: np.random.Generator) -> Found:
        """Search the subnets within a budget that at least the fastest keeps; arguments as of `adapt`."""
        if strategy == "surrogate":
            final = self.bundle.final_accuracy
            losses = {variant.name: variant.accuracy_loss for variant in self.bundle.variants}
            alone = [final - losses.get(link.name, 0.0) for link in self.bundle.links]
            return surrogate_search(
                self.space,
                self.link_ms,
                alone,
                final,
                self.evaluator,
                budget_ms=latency_ms,
                tolerance_ms=_NEAR * latency_ms,
                rng=rng,
            )
        walk = evolve if strategy.endswith("evolution") else anneal
        return walk(
            self.space,
            self.link_ms,
            self.evaluator,
            budget_ms=latency_ms,
            tolerance_ms=_NEAR * latency_ms,
            nearby=not strategy.startswith("plain"),
            rng=rng,
        )

    def _table(self) -> NDArray[np.float64]:
        means, _ = link_times(self.bundle, unit_reader(self._store))
        # What follows the last link until the answer is charged to it: every subnet has one such link.
        after_ms = median(answer.elapsed_ms - answer.outputs[-1].at_ms for answer in self._answers(self.space.original))
        means[self.space.ends == self.space.places] += after_ms
        return means

    def _alone(self, subnet: Subnet) -> Found:
        [accuracy] = self.evaluator([subnet])
        measured = Measured(subnet, self.space.latency_ms(subnet, self.link_ms), accuracy)
        return Found(best=measured, measured=(measured,), trail=((1, accuracy),))

    def _measured_ms(self, subnet: Subnet) -> float:
        return median(answer.elapsed_ms for answer in self._answers(subnet))

    def _answers(self, subnet: Subnet) -> list[Answer]:
        engine = self._engine(subnet_bundle(self.bundle, subnet, final_accuracy=self.bundle.final_accuracy))
        sample = engine.random_sample()
        return [engine.infer(sample) for _ in range(_WARM_UP + _MEASURED)][_WARM_UP:]

    def _engine(self, bundle: Bundle) -> Engine:
        return load_engine(self._store, bundle.input, bundle.blocks, bundle.final_accuracy)
