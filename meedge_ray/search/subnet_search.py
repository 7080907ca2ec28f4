"""Finds the most accurate subnet within a latency budget by measuring few (AdaptiveNet 5.1, Algorithm 1).

Latencies are sums of the links' times and cost nothing; accuracies are measured on data. Evolution and annealing each
come in two forms. The *nearby* form draws and changes subnets so that they stay in [budget - tolerance, budget +
tolerance]; some above the budget are measured too, for when the device gets faster (5.3), but are no answer. The
*plain* form draws from all subnets and puts in random links; whatever is above the budget is dropped unmeasured, and
another tried for it. No subnet is measured twice in either.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.nearby import nearby_init, nearby_mutate
from meedge_ray.search.subnet_trials import Evaluate, Found, Measured, Trials
from meedge_ray.search.subnets import Subnet, SubnetSpace, fastest

__all__ = ["Evaluate", "Found", "Measured", "anneal", "evolve", "fastest", "nearby_init", "nearby_mutate"]

_TRIES = 10  # changes for every child wanted
_CHILDREN = 10  # of a parent
_WARM, _COLD = 0.005, 0.0005  # temperatures of annealing, first and last: differences in accuracy


def evolve(
    space: SubnetSpace,
    link_ms: npt.ArrayLike,
    evaluate: Evaluate,
    *,
    budget_ms: float,
    tolerance_ms: float,
    nearby: bool,
    population: int = 20,
    iterations: int = 40,
    rng: np.random.Generator,
    stop: Callable[[Sequence[Measured]], bool] | None = None,
) -> Found:
    """Return what evolutionary search finds (Algorithm 1).

    Parents are the tenth of `population` most accurate within the budget so far; an iteration measures `population`
    children. So many of one parent share most of their beginnings, and are evaluated in less time. Where the parents
    have too few that are new, the rest is drawn like the first ones. It ends early where all subnets of the range are
    measured.

    Args:
        space: the subnets.
        link_ms: [L] time of every link.
        evaluate: accuracies, 0..1, of a group of subnets; each is asked for once at most.
        budget_ms: the highest latency of an answer.
        tolerance_ms: half the width of the range in the nearby form; it reaches further down where no subnet within
            the budget is in it.
        nearby: the nearby form, or the plain one.
        population: how many are measured at once.
        iterations: how many times after the first.
        rng: the same state gives the same result.
        stop: told of all measured so far, after every group; ends the search by returning True.

    Raises:
        BudgetError: no subnet is within the budget; `where` is "latency_ms".
        InvalidInputError: `where` names the argument that cannot be used.
    """
    _check_counts(population, iterations)
    trials = Trials(space, link_ms, evaluate, budget_ms, tolerance_ms, nearby, rng)
    trials.measure(trials.first(population))
    for _ in range(iterations):
        if stop is not None and stop(trials.measured):
            break
        group = _children(trials, population)
        group += trials.draw(population - len(group), besides=group)
        if not group:
            break
        trials.measure(group)
    return Found.among(trials.measured, budget_ms)


def anneal(
    space: SubnetSpace,
    link_ms: npt.ArrayLike,
    evaluate: Evaluate,
    *,
    budget_ms: float,
    tolerance_ms: float,
    nearby: bool,
    population: int = 4,
    iterations: int = 200,
    rng: np.random.Generator,
    stop: Callable[[Sequence[Measured]], bool] | None = None,
) -> Found:
    """Return what simulated annealing finds: `population` walks side by side, of `iterations` steps each.

    A walk goes on to a random neighbour that is more accurate, or by chance to a less accurate one, the rarer the
    longer it takes. It never leaves the budget once within. Where a step meets nothing new, the walks are offered
    subnets drawn like the first ones; it ends early where all subnets of the range are measured. Other arguments and
    errors as in `evolve`.
    """
    _check_counts(population, iterations)
    trials = Trials(space, link_ms, evaluate, budget_ms, tolerance_ms, nearby, rng)
    first = trials.first(population)
    trials.measure(first)
    walks = [trials.known[subnet] for subnet in first]
    for step in range(iterations):
        if stop is not None and stop(trials.measured):
            break
        offers = [_offer(trials, walk.subnet) for walk in walks]
        if all(offer in trials.known for offer in offers):
            fresh = trials.draw(len(walks))
            if not fresh:
                break
            offers[: len(fresh)] = fresh
        trials.measure(offers)
        temperature = _WARM * (_COLD / _WARM) ** (step / iterations)
        chances = rng.random(len(walks))
        for number, offer in enumerate(offers):
            gain = trials.worth(trials.known[offer]) - trials.worth(walks[number])
            if gain >= 0 or chances[number] < np.exp(gain / temperature):
                walks[number] = trials.known[offer]
    return Found.among(trials.measured, budget_ms)


def _children(trials: Trials, count: int) -> list[Subnet]:
    """Up to so many new changes of the parents, who take turns."""
    parents = trials.parents(max(1, count // _CHILDREN))
    children: dict[Subnet, None] = {}
    for turn in range(_TRIES * count if parents else 0):
        if len(children) == count:
            break
        child = trials.neighbour(parents[turn % len(parents)])
        if child is not None and child not in trials.known:
            children[child] = None
    return list(children)


def _offer(trials: Trials, subnet: Subnet) -> Subnet:
    """A change of the subnet; itself where no change is in the range."""
    for _ in range(_TRIES):
        changed = trials.neighbour(subnet)
        if changed is not None:
            return changed
    return subnet


def _check_counts(population: int, iterations: int) -> None:
    for name, number, least in (("population", population, 1), ("iterations", iterations, 0)):
        if not isinstance(number, int | np.integer) or number < least:
            raise InvalidInputError(f"{number!r} is not a whole number from {least}", where=name)
