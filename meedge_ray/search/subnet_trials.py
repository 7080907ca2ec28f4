"""Subnets that a search tries: where they come from, what is measured of them, and what was found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from meedge_ray.domain.errors import BudgetError
from meedge_ray.search.inputs import read_floats, read_number
from meedge_ray.search.nearby import mutate, nearby_init, nearby_mutate
from meedge_ray.search.subnets import Subnet, SubnetSpace, fastest, slowest

_ABOVE = 4  # one change in so many may go above the budget: 1 is as published, but wastes up to half on no answers

Evaluate = Callable[[Sequence[Subnet]], Sequence[float]]


class Measured(NamedTuple):
    """A subnet with the latency foretold, in ms, and the accuracy measured, 0..1."""

    subnet: Subnet
    latency_ms: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    `best` is the most accurate within the budget, of equals the faster; `measured` all that were measured, in order;
    `trail` the number measured so far and the best accuracy within the budget by then, 0 before the first.
    """

    best: Measured
    measured: tuple[Measured, ...]
    trail: tuple[tuple[int, float], ...]

    @classmethod
    def among(cls, measured: Sequence[Measured], budget_ms: float) -> "Found":
        """Return the best of those measured, of which one at least must be within the budget."""
        within = [each for each in measured if each.latency_ms <= budget_ms]
        trail: list[tuple[int, float]] = []
        accuracy = 0.0
        for number, each in enumerate(measured, start=1):
            accuracy = max(accuracy, each.accuracy) if each.latency_ms <= budget_ms else accuracy
            trail.append((number, accuracy))
        return cls(best=max(within, key=_rank), measured=tuple(measured), trail=tuple(trail))


class Trials:
    """The range of latencies searched, how subnets in it are come by, and what is measured so far."""

    def __init__(
        self,
        space: SubnetSpace,
        link_ms: npt.ArrayLike,
        evaluate: Evaluate,
        budget_ms: float,
        tolerance_ms: float,
        nearby: bool,
        rng: np.random.Generator,
    ) -> None:
        self._space, self._evaluate, self._nearby, self._rng = space, evaluate, nearby, rng
        self._times_ms = space.read_ms(link_ms)
        self._budget_ms = read_number(budget_ms, "latency_ms")
        tolerance = read_number(tolerance_ms, "tolerance_ms")
        least = fastest(space, self._times_ms)
        least_ms = space.latency_ms(least, self._times_ms)
        if self._budget_ms < least_ms:
            raise BudgetError(
                f"{budget_ms:g} ms is {least_ms - self._budget_ms:.3g} ms less than the fastest subnet takes",
                where="latency_ms",
                do=f"Allow {least_ms:.6g} ms at least",
            )
        self._high_ms = self._budget_ms + tolerance if nearby else self._budget_ms
        self._low_ms, self._start = self._reach(tolerance) if nearby else (0.0, least)
        self.known: dict[Subnet, Measured] = {}

    @property
    def measured(self) -> tuple[Measured, ...]:
        """All measured so far, in order."""
        return tuple(self.known.values())

    def first(self, count: int) -> list[Subnet]:
        """Return what to begin with: random subnets of the range, one of them within the budget."""
        drawn = self._draw(count)
        if any(self._latency_ms(subnet) <= self._budget_ms for subnet in drawn):
            return drawn
        return [self._start, *drawn[1:]]

    def draw(self, count: int, besides: Sequence[Subnet] = ()) -> list[Subnet]:
        """Return up to so many random subnets of the range that are neither measured nor among `besides`."""
        if not count:
            return []
        old = {*self.known, *besides}
        return [subnet for subnet in self._draw(count + len(old)) if subnet not in old][:count]

    def neighbour(self, subnet: Subnet) -> Subnet | None:
        """Return a random change of a subnet, None if it is out of the range.

        In the nearby form only some are let above the budget.
        """
        high_ms = self._budget_ms
        if self._nearby:
            high_ms = self._high_ms if self._rng.integers(_ABOVE) == 0 else self._budget_ms
            changed = nearby_mutate(self._space, subnet, self._times_ms, self._low_ms, high_ms, self._rng)
        else:
            changed = mutate(self._space, subnet, self._rng)
        return changed if self._low_ms <= self._latency_ms(changed) <= high_ms else None

    def measure(self, group: Sequence[Subnet]) -> None:
        """Measure those of the group that are not yet."""
        new = [subnet for subnet in dict.fromkeys(group) if subnet not in self.known]
        if not new:
            return
        accuracies = read_floats(self._evaluate(new), "evaluate", count=len(new), most=1.0)
        for subnet, accuracy in zip(new, accuracies, strict=True):
            self.known[subnet] = Measured(subnet, self._latency_ms(subnet), float(accuracy))

    def worth(self, measured: Measured) -> float:
        """Return its accuracy, -1 above the budget."""
        return measured.accuracy if measured.latency_ms <= self._budget_ms else -1.0

    def parents(self, count: int) -> list[Subnet]:
        """Return up to so many of the best within the budget, the best first."""
        within = [each for each in self.known.values() if each.latency_ms <= self._budget_ms]
        return [each.subnet for each in sorted(within, key=_rank, reverse=True)[:count]]

    def _reach(self, tolerance_ms: float) -> tuple[float, Subnet]:
        """The lower end of the nearby range, low enough for a subnet within the budget; and such a subnet."""
        slowest_ms = self._latency_ms(slowest(self._space, self._times_ms))
        top_ms = min(self._budget_ms, slowest_ms)
        below_ms = tolerance_ms
        while below_ms < top_ms:
            low_ms = top_ms - below_ms
            within = nearby_init(self._space, self._times_ms, low_ms, self._budget_ms, 1, self._rng)
            if within:
                return low_ms, within[0]
            below_ms = 2 * below_ms or top_ms / 1024
        return 0.0, fastest(self._space, self._times_ms)

    def _draw(self, count: int) -> list[Subnet]:
        return nearby_init(self._space, self._times_ms, self._low_ms, self._high_ms, count, self._rng)

    def _latency_ms(self, subnet: Subnet) -> float:
        return self._space.latency_ms(subnet, self._times_ms)


def _rank(measured: Measured) -> tuple[float, float]:
    return measured.accuracy, -measured.latency_ms
