"""Finds the most accurate subnet within a latency budget by measuring some dozens.

A model of the accuracy stands in for measuring: a subnet loses the sum of what its links lose. Under it the best subnet
of every latency is found exactly, among any number of subnets. What a link loses when it is used alone is known from
when the supernet was made; how losses add up in subnets, on the device's own data, is learnt from those measured. Where
losses do not add up the model errs, so half of what is measured are changes of the best measured so far.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.inputs import Floats, Integers, read_number
from meedge_ray.search.subnet_trials import Evaluate, Found, Trials
from meedge_ray.search.subnets import Subnet, SubnetSpace

_LABELS = 20_000  # kept at a place
_GROUP = 6  # measured between two refits
_PARENTS = 2  # whose changes are the second half of a group
_TRIES = 16  # draws for every subnet wanted

# Standard deviations before anything is measured; those of losses in parts of the mean loss of a variant, but
# _SCALE and the first of _OWN, which are parts of the loss itself.
_SCALE, _COMMON, _OWN = 0.5, 0.25, (0.15, 0.15)
_NOISE = 0.25  # of a measured accuracy: chance, and what does not add up
_SHIFT = 1.0  # of the accuracy of the original on the device's data
_LEAST_LOSS = 0.005  # stands for the mean loss where variants lose nothing


class Point(NamedTuple):
    """A subnet of which no other is at most as slow and loses less."""

    latency_ms: float
    loss: float
    subnet: Subnet


def loss_frontier(space: SubnetSpace, link_ms: npt.ArrayLike, link_loss: npt.ArrayLike) -> list[Point]:
    """Return the subnet of least loss for every latency budget; latencies rise, losses fall.

    The loss of a subnet is the sum of its links'. Labels (latency, loss) of the ways to every place are extended place
    by place, and those that another equals or beats in both are dropped: exact. A place keeps at most about 20,000
    labels. Where there were more, losses are taken in as many steps of equal height, the fastest of each is kept, and a
    loss is within one step a place of the least.

    Args:
        space: the subnets.
        link_ms: [L] time of every link.
        link_loss: [L] what every link loses; negative where it gains.

    Raises:
        InvalidInputError: `where` names the argument that cannot be used.
    """
    times_ms = np.array(space.read_ms(link_ms))
    losses = _read_finite(link_loss, "link_loss", count=len(times_ms))
    places = _ways(space, times_ms, losses)
    last = places[-1]
    subnets = _traced(space, places, np.arange(len(last.loss)))
    return [Point(*point) for point in zip(last.latency_ms.tolist(), last.loss.tolist(), subnets, strict=True)]


def surrogate_search(
    space: SubnetSpace,
    link_ms: npt.ArrayLike,
    link_accuracy: npt.ArrayLike,
    final_accuracy: float,
    evaluate: Evaluate,
    *,
    budget_ms: float,
    tolerance_ms: float,
    evaluations: int = 96,
    rng: np.random.Generator,
) -> Found:
    """Return the best of the subnets measured, which are those that may be the best.

    In every round the subnet of least loss within the budget is measured, and those that are it if losses are drawn at
    random from what the measured ones leave possible (Thompson 1933); and, from the second round on, as many changes
    of the two best (NearbyMutate, AdaptiveNet 5.1). It ends after `evaluations`, or earlier where both bring nothing
    new.

    Args:
        space: the subnets.
        link_ms: [L] time of every link.
        link_accuracy: [L] accuracy of the network where that link alone is used, of a block the network's own; may be
            an estimate a little beyond 0..1.
        final_accuracy: accuracy of the original network, measured together with those.
        evaluate: accuracies, 0..1, of a group of subnets; each is asked for once at most.
        budget_ms: the highest latency of an answer.
        tolerance_ms: how far below the budget changes are looked for.
        evaluations: how many subnets are measured at most.
        rng: the same state gives the same result.

    Raises:
        BudgetError: no subnet is within the budget; `where` is "latency_ms".
        InvalidInputError: `where` names the argument that cannot be used.
    """
    if evaluations < 1:
        raise InvalidInputError(f"{evaluations} evaluations find nothing", where="evaluations", do="Give 1 or more")
    trials = Trials(space, link_ms, evaluate, budget_ms, tolerance_ms, nearby=True, rng=rng)
    final = read_number(final_accuracy, "final_accuracy", most=1.0)
    times_ms = np.array(space.read_ms(link_ms))
    belief = _Belief(final - _read_finite(link_accuracy, "link_accuracy", count=len(times_ms)), space.places)

    def promising(attempt: int) -> Subnet:
        return _best_within(budget_ms, space, times_ms, belief.losses(rng if attempt else None))

    def change(attempt: int) -> Subnet | None:
        parents = trials.parents(_PARENTS)
        changed = trials.neighbour(parents[attempt % len(parents)]) if parents else None
        return changed if changed is not None and space.latency_ms(changed, times_ms) <= budget_ms else None

    while (left := evaluations - len(trials.known)) > 0:
        changes = _fresh(change, min(left, _GROUP) // 2, besides=trials.known)
        group = _fresh(promising, min(left, _GROUP) - len(changes), besides=[*trials.known, *changes]) + changes
        if not group:
            break
        trials.measure(group)
        belief.learn(list(trials.known), [final - each.accuracy for each in trials.measured])
    return Found.among(trials.measured, budget_ms)


def _fresh(draw: Callable[[int], Subnet | None], count: int, besides: Collection[Subnet]) -> list[Subnet]:
    """Up to so many different subnets drawn, in the order they came."""
    found: dict[Subnet, None] = {}
    for attempt in range(_TRIES * count):
        subnet = draw(attempt)
        if subnet is not None and subnet not in besides:
            found[subnet] = None
        if len(found) == count:
            break
    return list(found)


def _read_finite(values: npt.ArrayLike, where: str, *, count: int) -> Floats:
    numbers = np.asarray(values, np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise InvalidInputError(f"not one finite number for each of {count} links", where=where)
    return numbers


class _Labels(NamedTuple):
    """Ways to a place, latencies rising and losses falling: the last link, and which label at its start goes on."""

    latency_ms: Floats
    loss: Floats
    link: Integers
    before: Integers


def _ways(space: SubnetSpace, times_ms: Floats, losses: Floats) -> list[_Labels]:
    nothing = np.zeros(1)
    places = [_Labels(nothing, nothing, np.zeros(1, np.int64), np.zeros(1, np.int64))]
    for place in range(1, space.places + 1):
        links = np.flatnonzero(space.ends == place)
        before = [places[start] for start in space.starts[links]]
        places.append(_extended(links, before, times_ms[links], losses[links]))
    return places


def _best_within(budget_ms: float, space: SubnetSpace, times_ms: Floats, losses: Floats) -> Subnet:
    places = _ways(space, times_ms, losses)
    within = places[-1].latency_ms.searchsorted(budget_ms, side="right") - 1
    return _traced(space, places, np.array([within]))[0]


def _extended(links: Integers, before: list[_Labels], times_ms: Floats, losses: Floats) -> _Labels:
    counts = [len(labels.loss) for labels in before]
    labels = _Labels(
        np.concatenate([each.latency_ms + ms for each, ms in zip(before, times_ms, strict=True)]),
        np.concatenate([each.loss + loss for each, loss in zip(before, losses, strict=True)]),
        np.repeat(links, counts),
        np.concatenate([np.arange(count) for count in counts]),
    )
    labels = _chosen(labels, np.argsort(labels.latency_ms, kind="stable"))
    least = np.minimum.accumulate(labels.loss)
    labels = _chosen(labels, np.append(True, least[1:] < least[:-1]))
    # Of equally fast ones the last loses least.
    labels = _chosen(labels, np.append(labels.latency_ms[1:] > labels.latency_ms[:-1], True))
    if len(labels.loss) <= _LABELS:
        return labels
    steps = np.floor((labels.loss - labels.loss[-1]) / (labels.loss[0] - labels.loss[-1]) * _LABELS)
    return _chosen(labels, np.append(True, steps[1:] < steps[:-1]))


def _chosen(labels: _Labels, which: npt.NDArray[np.bool_] | Integers) -> _Labels:
    return _Labels(labels.latency_ms[which], labels.loss[which], labels.link[which], labels.before[which])


def _traced(space: SubnetSpace, places: list[_Labels], label: Integers) -> list[Subnet]:
    """The ways of some labels of the last place; all are followed back together."""
    at = np.full(len(label), space.places)
    ways = np.full((len(label), space.places), -1)
    for place in range(space.places, 0, -1):
        here = np.flatnonzero(at == place)
        link = places[place].link[label[here]]
        ways[here, space.starts[link]] = link
        label[here] = places[place].before[label[here]]
        at[here] = space.starts[link]
    return [tuple(link for link in way if link >= 0) for way in ways.tolist()]


class _Belief:
    """What links may lose: normal, about the losses of links used alone, given the losses of subnets measured.

    Losses may all be larger or smaller together (_SCALE), by the same amount (_COMMON), or each by its own (_OWN). The
    blocks lose nothing; a last column stands for what the original itself loses on the device's data. The mean is what
    ridge regression towards the prior gives.
    """

    def __init__(self, link_loss: Floats, blocks: int) -> None:
        variants = np.arange(len(link_loss)) >= blocks
        self._prior = np.append(np.where(variants, link_loss, 0.0), 0.0)
        usual = max(float(np.abs(link_loss[variants]).mean()), _LEAST_LOSS) if variants.any() else _LEAST_LOSS
        self._together = np.stack([_SCALE * self._prior, _COMMON * usual * np.append(variants, False)])
        self._own = np.append(variants * (_OWN[0] * np.abs(link_loss) + _OWN[1] * usual), _SHIFT)
        self._noise = _NOISE * usual
        self._covariance = self._together.T @ self._together + np.diag(self._own**2)
        self._links: Floats = np.zeros((0, len(self._prior)))
        self._losses: Floats = np.zeros(0)

    def learn(self, subnets: list[Subnet], losses: list[float]) -> None:
        """Take these, and no others, as measured."""
        self._links = np.zeros((len(subnets), len(self._prior)))
        self._links[:, -1] = 1.0
        for row, subnet in zip(self._links, subnets, strict=True):
            row[list(subnet)] = 1.0
        self._losses = np.array(losses)

    def losses(self, rng: np.random.Generator | None) -> Floats:
        """Return the losses of links: the mean, or drawn at random."""
        drawn, noise = self._prior, np.zeros(len(self._losses))
        if rng is not None:
            drawn = drawn + rng.standard_normal(2) @ self._together + rng.standard_normal(len(drawn)) * self._own
            noise = rng.standard_normal(len(noise)) * self._noise
        # A draw from before anything was measured, moved by what is measured, is one from after (Matheron's rule).
        across = self._covariance @ self._links.T
        measured = self._links @ across + np.eye(len(noise)) * self._noise**2
        moved: Floats = drawn + across @ np.linalg.solve(measured, self._losses - self._links @ drawn - noise)
        return moved[:-1]
