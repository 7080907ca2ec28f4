"""The outputs a placement can have, in the order they run, before any is chosen."""

import numpy as np

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.cover import Bits, uncovered
from meedge_ray.search.inputs import UNBOUNDED, Candidates, Floats, Integers, Law

FINAL = -1
MEANT_GAIN = 1e-12  # of expectation; below it a gain is rounding
_MOST_BITS = 64


def prune(candidates: Candidates, size_bytes: Integers, law: Law, *, one_per_exit: bool) -> Integers:
    """Return the candidates that no other makes superfluous whatever else is placed.

    Branch a replaces b if it is no larger, no later and no less accurate. With cumulative timing both must
    be at one exit: from an earlier exit, a slow a delays what lies between the two exits, and a quick poor
    branch there may be worth more than all that a gains over b.
    """
    useful = law(candidates.alone_ms) > 0
    if candidates.timing == "independent":
        late = candidates.alone_ms >= candidates.final_ms
        useful &= ~late | (candidates.accuracy > candidates.final_accuracy)
    rivals = candidates.exit_index
    if candidates.timing == "independent" and not one_per_exit:
        rivals = np.zeros_like(rivals)
    kept = []
    for group in np.unique(rivals[useful]):
        which = np.flatnonzero(useful & (rivals == group))
        time, accuracy = candidates.alone_ms[which], candidates.accuracy[which]
        by_size = np.lexsort((-accuracy, time, size_bytes[which]))
        nothing = np.zeros(len(which))
        free = np.zeros(len(which), dtype=np.uint64)
        # As labels without accuracy at hand: spent is the time, value the accuracy, and later is never as good.
        needed = uncovered(
            by_size,
            time,
            accuracy,
            nothing,
            nothing,
            nothing,
            free,
            nothing.copy(),
            top=1.0,
            steepness=UNBOUNDED,
            allowed=0.0,
        )
        kept.append(which[needed])
    return np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)


def outputs(candidates: Candidates, kept: Integers) -> Integers:
    """Return the kept candidates and the final exit in the order they run."""
    order = candidates.run_order()
    order = order[np.isin(order, kept)]
    place = len(order)
    if candidates.timing == "independent":
        place = int(np.searchsorted(candidates.alone_ms[order], candidates.final_ms))
    return np.insert(order, place, FINAL)


def exit_bits(candidates: Candidates, order: Integers, *, one_per_exit: bool) -> tuple[Bits, Bits]:
    """Return for every place of the order the bit of its exit, and the bits that end with it."""
    bits, done = np.zeros(len(order), dtype=np.uint64), np.zeros(len(order), dtype=np.uint64)
    if not one_per_exit:
        return bits, done
    exits = np.where(order == FINAL, FINAL, np.append(candidates.exit_index, FINAL)[order])
    last = {int(exit_index): place for place, exit_index in enumerate(exits)}
    free = list(range(_MOST_BITS))
    held: dict[int, int] = {}
    for place, exit_index in enumerate(exits.tolist()):
        if exit_index == FINAL:
            continue
        if exit_index not in held:
            if not free:
                raise InvalidInputError(
                    f"the results of more than {_MOST_BITS} exits overlap in time", where="one_per_exit"
                )
            held[exit_index] = free.pop()
        bits[place] = 1 << held[exit_index]
        if last[exit_index] == place:
            done[place] = bits[place]
            free.append(held.pop(exit_index))
    return bits, done


def next_outputs(candidates: Candidates, order: Integers) -> tuple[Floats, Floats, Floats]:
    """Return for every place what can come after it, if nothing else ran: earliest and latest time, best accuracy."""
    # FINAL is -1: the one appended.
    times = np.append(candidates.alone_ms, candidates.final_ms)[order]
    accuracies = np.append(candidates.accuracy, candidates.final_accuracy)[order]
    earliest = np.append(np.minimum.accumulate(times[::-1])[::-1][1:], np.inf)
    latest = np.append(np.maximum.accumulate(times[::-1])[::-1][1:], 0.0)
    top = np.append(np.maximum.accumulate(accuracies[::-1])[::-1][1:], 0.0)
    return earliest, latest, top
