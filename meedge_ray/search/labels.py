"""The search behind the placement frontier: labels, and which of them can be forgotten.

A *label* is a partial placement: m bytes, B ms of branch time spent, v the value collected so far, c the
accuracy of the best result at hand. Outputs (the candidates and the final exit) are taken in the order
they run; output j extends a label whose accuracy it raises, and its result comes at S = alone_j + B:

    m += size_j,  B += cost_j,  v += (c_j - c) G(S),  c = c_j        G(t): chance of no kill before t

**Why few labels are enough.** Let a and b be labels at the same place of the order, with m_a <= m_b. Whatever
b goes on to run, a can run too, skipping what does not raise its accuracy; it fits. The two then differ in this:

- If c_a > c_b, b still collects the accuracy between the two, worth at most (c_a - c_b) G(earliest output b
  can have next).
- If c_a < c_b, a's next result is worth more by (c_b - c_a) G(b's next output): at least (c_b - c_a) G(latest
  output b can have next), if one is certain to come, which it is while the final exit is ahead and better.
- If B_a > B_b, a's results come at most B_a - B_b later than b's. Where G falls by at most L a ms (1/H for the
  uniform law) and no accuracy beyond `top` can be reached, that loses at most L (B_a - B_b) (top - c_a).

So a makes b superfluous if, for both g = low_b (latest; 0 if none is certain) and g = high_b (earliest),

    v_a - L max(0, B_a - B_b) max(0, top - c_a) - c_a g  >=  v_b - c_b g.

Dropping b then loses nothing at any budget. Without a bound L, a must not have spent more than b.

**Tolerance.** If the test fails by a slack s, dropping b loses at most s at any budget. Each label carries
the most that what it stands for can have lost, and a drop that lifts it above what is allowed is not made.

**One branch an exit.** A label remembers the exits it has used, a bit each, and a may only stand for b if
it has used no exit that b has not. An exit needs its bit from its first candidate to its last.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meedge_ray.search.cover import uncovered
from meedge_ray.search.inputs import Candidates, Floats, Integers, Law
from meedge_ray.search.outputs import FINAL, MEANT_GAIN, exit_bits, next_outputs, outputs, prune


@dataclass(slots=True)
class _Labels:
    """Arrays of shape [n], a label each, by size. `node` is the label's last step in the tree of steps."""

    size: Integers
    spent: Floats
    value: Floats
    accuracy: Floats
    used: npt.NDArray[np.uint64]
    loss: Floats
    node: Integers

    @classmethod
    def empty_placement(cls) -> "_Labels":
        nothing = np.zeros(1)
        none, root = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        return cls(none, nothing, nothing.copy(), nothing.copy(), none.astype(np.uint64), nothing.copy(), root)

    def take(self, which: Integers) -> "_Labels":
        return _Labels(*(getattr(self, name).take(which) for name in self.__slots__))

    def join(self, other: "_Labels") -> "_Labels":
        return _Labels(*(np.concatenate((getattr(self, name), getattr(other, name))) for name in self.__slots__))


class _Tree:
    """Every step taken, with the one before it; node 0 is the empty placement."""

    def __init__(self) -> None:
        self._parents = [np.zeros(1, dtype=np.int64)]
        self._outputs = [FINAL]  # of all nodes that grew at once
        self._count = 1

    def grow(self, parents: Integers, output: int) -> Integers:
        start = self._count
        self._parents.append(parents)
        self._outputs.append(output)
        self._count += len(parents)
        return np.arange(start, self._count)

    def paths(self, nodes: Integers) -> list[tuple[int, ...]]:
        parents = np.concatenate(self._parents)
        outputs = np.repeat(self._outputs, [len(grown) for grown in self._parents])
        steps = []  # of all paths at once, the last first
        while nodes.any():
            steps.append(outputs[nodes])
            nodes = parents[nodes]
        columns = np.array(steps[::-1], dtype=np.int64).reshape(len(steps), len(nodes)).T
        return [tuple(path[path != FINAL].tolist()) for path in columns]


def search_labels(
    candidates: Candidates, size_bytes: Integers, law: Law, *, one_per_exit: bool, tolerance: float
) -> tuple[Integers, Floats, list[tuple[int, ...]]]:
    """Return sizes, expectations and members of the best placement at every budget, both strictly rising.

    Raises:
        InvalidInputError: more than 64 exits overlap in time where one branch an exit is asked.
    """
    order = outputs(candidates, prune(candidates, size_bytes, law, one_per_exit=one_per_exit))
    bits, done = exit_bits(candidates, order, one_per_exit=one_per_exit)
    earliest, latest, top = next_outputs(candidates, order)
    labels, tree = _Labels.empty_placement(), _Tree()
    for place, output in enumerate(order.tolist()):
        if output == FINAL:
            labels = _answer_finally(labels, candidates, law)
            continue
        longer = _extend(labels, candidates, int(size_bytes[output]), output, bits[place], law)
        fresh = np.repeat([False, True], [len(labels.size), len(longer.size)])
        labels = labels.join(longer)
        labels.used &= ~done[place]
        if not fresh.any():
            continue
        certain = labels.accuracy < candidates.final_accuracy  # so the final exit is still to come
        keep = uncovered(
            np.argsort(labels.size, kind="stable"),
            labels.spent,
            labels.value,
            labels.accuracy,
            np.where(certain, law(latest[place] + labels.spent), 0.0),
            law(earliest[place] + labels.spent) if np.isfinite(earliest[place]) else np.zeros(len(fresh)),
            labels.used,
            labels.loss,
            top=float(top[place]),
            steepness=law.steepness,
            allowed=tolerance * (place + 1) / len(order),
        )
        labels, fresh = labels.take(keep), fresh[keep]
        labels.node[fresh] = tree.grow(labels.node[fresh], output)
    labels = labels.take(np.lexsort((-labels.value, labels.size)))
    labels = labels.take(_strict_gains(labels.value))
    return labels.size, labels.value, tree.paths(labels.node)


def _extend(labels: _Labels, candidates: Candidates, size: int, output: int, bit: np.uint64, law: Law) -> _Labels:
    accuracy = candidates.accuracy[output]
    which = np.flatnonzero((labels.accuracy < accuracy) & ((labels.used & bit) == 0))
    gain = (accuracy - labels.accuracy[which]) * law(candidates.alone_ms[output] + labels.spent[which])
    worth = gain > 0
    longer, gain = labels.take(which[worth]), gain[worth]
    longer.size += size
    longer.spent += candidates.cost_ms[output]
    longer.value += gain
    longer.accuracy[:] = accuracy
    longer.used |= bit
    return longer


def _answer_finally(labels: _Labels, candidates: Candidates, law: Law) -> _Labels:
    rise = np.maximum(0.0, candidates.final_accuracy - labels.accuracy)
    labels.value += rise * law(candidates.final_ms + labels.spent)
    labels.accuracy = np.maximum(labels.accuracy, candidates.final_accuracy)
    return labels


def _strict_gains(value: Floats) -> Integers:
    kept, best = [], -np.inf
    for index, reached in enumerate(value.tolist()):
        if reached > best + MEANT_GAIN:
            kept.append(index)
            best = reached
    return np.array(kept, dtype=np.int64)
