"""The loops of the exit planners in NumPy: the reference of what is compiled.

**The uniform law** (`best_uniform`). A result no better than the best so far only delays others, so the results of
a best plan rise. Fix the last branch l with confidence z. Every branch i run before it takes b_i of what z is worth, so
the worth of a plan is a sum over consecutive outputs i -> j, with C the time up to an exit and c the confidence,

    Q(l) = z (1 - C_l)        Q(i) = max over j in (i, l] of c_i (C_j - C_i + b_j) - z b_j + Q(j)

and a shortest path finds the best: O(n^2) for each l. Where no plan overruns the horizon, a last branch that a later
one equals could be followed by that one, so only exits better than all after them need be tried as l.

**Any law** (`best_by_law`). Labels as in `labels`, all of size nothing: branch time spent, value, confidence at hand.
"""

from itertools import combinations

import numpy as np

from meedge_ray.search import native
from meedge_ray.search.cover import uncovered
from meedge_ray.search.exit_inputs import Booleans, Exits
from meedge_ray.search.inputs import UNBOUNDED, Floats, Integers
from meedge_ray.search.outputs import MEANT_GAIN

_BATCH = 1 << 14  # plans valued at once
_TIMES = 1 << 12  # that a law is asked at once


def values(exits: Exits, plans: Booleans) -> Floats:
    """Return the expectations [P] of plans [P, exits ahead] (EINet, Algorithm 1)."""
    ran = np.where(plans, exits.cost, 0.0).cumsum(axis=1)
    chance = exits.chance(exits.reach + ran)
    at_hand = np.where(plans & (chance > 0), exits.confidence[exits.start :], 0.0)
    at_hand = np.insert(at_hand, 0, exits.best_confidence, axis=1)
    rises = np.diff(np.maximum.accumulate(at_hand, axis=1), axis=1)
    gains = np.insert(rises * chance, 0, _value_at_hand(exits), axis=1)
    return np.cumsum(gains, axis=1)[:, -1]  # one after the other, as the compiled loop does


def best_uniform(exits: Exits) -> Booleans:
    """Return the best plan of the exits ahead under the uniform law."""
    reach, cost, confidence = exits.reach, exits.cost, exits.confidence[exits.start :]
    count, at_hand = len(reach), exits.best_confidence
    best, highest = _value_at_hand(exits), at_hand
    chosen: list[int] = []
    overruns = count > 0 and reach[-1] + np.cumsum(cost)[-1] > 1.0 + MEANT_GAIN
    at = reach + cost
    earliest = float(at.min(initial=np.inf))
    for last in range(count - 1, -1, -1):
        z = float(confidence[last])
        if z <= (at_hand if overruns else highest):
            continue
        highest = max(highest, z)
        if at_hand * (earliest - (1.0 - exits.left)) + z * (1.0 - earliest) <= best:
            continue  # no plan is worth more than its last result from the earliest time on
        worth, following = np.full(last + 1, -np.inf), np.full(last + 1, -1)
        worth[last] = z * (1.0 - reach[last]) - z * cost[last]
        for i in range(last - 1, -1, -1):
            if at_hand < confidence[i] <= z:
                steps = confidence[i] * at[i + 1 : last + 1] + worth[i + 1 :]
                following[i] = i + 1 + steps.argmax()
                worth[i] = steps.max() - confidence[i] * reach[i] - z * cost[i]
        steps = at_hand * at[: last + 1] + worth
        value = float(steps.max() - at_hand * (1.0 - exits.left))
        if value > best + MEANT_GAIN:
            best, chosen = value, [int(steps.argmax())]
            while following[chosen[-1]] >= 0:
                chosen.append(int(following[chosen[-1]]))
    plan = np.zeros(count, dtype=np.bool_)
    plan[chosen] = True
    return _stripped(exits, plan)


def best_by_law(exits: Exits) -> Booleans:
    """Return the best plan of the exits ahead under any law."""
    reach, cost, confidence = exits.reach, exits.cost, exits.confidence[exits.start :]
    alone = reach + cost
    earliest = np.append(np.minimum.accumulate(alone[::-1])[::-1], 0.0)[1:]  # of all further exits
    top = np.append(np.maximum.accumulate(confidence[::-1])[::-1], 0.0)[1:]
    steepness = UNBOUNDED if exits.law is None else min(UNBOUNDED, exits.law.steepness * exits.horizon_ms)
    plan = np.zeros(len(reach), dtype=np.bool_)
    if native.kernels is not None:
        arrays = (reach, cost, confidence, earliest, top, plan, np.empty(_TIMES))
        numbers = (exits.best_confidence, _value_at_hand(exits), steepness)
        native.kernels.plan_by_law(*arrays, exits.chance, *numbers)
        return plan
    spent, value, accuracy = np.zeros(1), np.array([_value_at_hand(exits)]), np.array([exits.best_confidence])
    node, parents, outputs = np.zeros(1, np.int64), [0], [-1]  # of the tree of plans; node 0 is the empty one
    for exit_ in np.flatnonzero(confidence > exits.best_confidence).tolist():
        longer = spent + cost[exit_]
        times = np.concatenate((reach[exit_] + longer, earliest[exit_] + spent, earliest[exit_] + longer))
        chance = exits.chance(times)  # at once: a law may be slow to call
        count = len(spent)
        gain = (confidence[exit_] - accuracy) * chance[:count]
        which = (gain > 0).nonzero()[0]
        if not len(which):
            continue
        ahead = np.concatenate((chance[count : 2 * count], chance[2 * count :][which]))
        node = np.concatenate((node, np.arange(len(parents), len(parents) + len(which))))
        parents += node[which].tolist()
        outputs += [exit_] * len(which)
        spent = np.concatenate((spent, longer[which]))
        value = np.concatenate((value, value[which] + gain[which]))
        accuracy = np.concatenate((accuracy, np.full(len(which), confidence[exit_])))
        keep = _needed(spent, value, accuracy, ahead, float(top[exit_]), steepness)
        spent, value, accuracy, node = spent[keep], value[keep], accuracy[keep], node[keep]
    step = int(node[value.argmax()])
    while step:
        plan[outputs[step]] = True
        step = parents[step]
    return plan


def search_hybrid(exits: Exits, outputs: int) -> Booleans:
    """Return the plan of EINet's hybrid search: the best with up to `outputs` branches, extended greedily."""
    count = len(exits.conv_ms) - exits.start
    best, value = np.zeros(count, dtype=np.bool_), _value_at_hand(exits)
    for chosen in range(1, min(outputs, count) + 1):
        sets = np.array(list(combinations(range(count), chosen)))
        for first in range(0, len(sets), _BATCH):
            part = sets[first : first + _BATCH]
            plans = np.zeros((len(part), count), dtype=np.bool_)
            np.put_along_axis(plans, part, values=True, axis=1)
            best, value = _better(exits, plans, best, value)
    plan = best
    while not plan.all():
        missing = np.flatnonzero(~plan)
        plans = np.tile(plan, (len(missing), 1))
        plans[np.arange(len(missing)), missing] = True
        plan = plans[values(exits, plans).argmax()]
        best, value = _better(exits, plan[None], best, value)
    return best


def search_random(exits: Exits, plans: int, random: np.random.Generator) -> Booleans:
    """Return the best of so many random plans of the exits ahead."""
    count = len(exits.conv_ms) - exits.start
    best, value = np.zeros(count, dtype=np.bool_), _value_at_hand(exits)
    for first in range(0, plans, _BATCH):
        drawn = random.random((min(_BATCH, plans - first), count)) < 0.5
        best, value = _better(exits, drawn, best, value)
    return best


def _value_at_hand(exits: Exits) -> float:
    return exits.best_confidence * float(exits.chance(np.array([1.0 - exits.left]))[0])


def _better(exits: Exits, plans: Booleans, best: Booleans, value: float) -> tuple[Booleans, float]:
    reached = values(exits, plans)
    highest = int(reached.argmax())
    return (plans[highest], float(reached[highest])) if reached[highest] > value else (best, value)


def _stripped(exits: Exits, plan: Booleans) -> Booleans:
    # Skips what raises nothing: each such branch only delays others.
    spent, at_hand, kept = 0.0, exits.best_confidence, np.zeros_like(plan)
    reach, cost, confidence = exits.reach, exits.cost, exits.confidence[exits.start :]
    for exit_ in np.flatnonzero(plan).tolist():
        chance = exits.chance(np.array([reach[exit_] + (spent + cost[exit_])]))[0]
        if confidence[exit_] > at_hand and chance > 0:
            spent, at_hand, kept[exit_] = spent + cost[exit_], confidence[exit_], True
    return kept


def _needed(
    spent: Floats, value: Floats, accuracy: Floats, earliest_chance: Floats, top: float, steepness: float
) -> Integers:
    nothing = np.zeros(len(spent))
    return uncovered(
        np.argsort(spent, kind="stable"),
        spent,
        value,
        accuracy,
        nothing,
        earliest_chance,
        np.zeros(len(spent), dtype=np.uint64),
        nothing.copy(),
        top=top,
        steepness=steepness,
        allowed=0.0,
    )
