"""Which labels are needed: the hot loop of the placement frontier, compiled where a compiler was.

What a label is and why the test loses nothing is told in `labels`.
"""

import numpy as np
import numpy.typing as npt

from meedge_ray.search import native
from meedge_ray.search.inputs import Floats, Integers

Bits = npt.NDArray[np.uint64]


def uncovered(
    by_size: Integers,
    spent: Floats,
    value: Floats,
    accuracy: Floats,
    low: Floats,
    high: Floats,
    used: Bits,
    loss: Floats,
    *,
    top: float,
    steepness: float,
    allowed: float,
) -> Integers:
    """Return which of n labels are needed, in the order given: `by_size`, the smallest first.

    `top` is the accuracy that can still be reached, `steepness` the most by which the chance of no kill falls
    in a ms. Raises `loss` of those that stand for others, up to `allowed`. A label that a later, larger one
    covers is still needed for its size, but no longer compared with: the later one covers what it covers.
    """
    if native.kernels is not None:
        keep = np.empty(len(by_size), dtype=np.bool_)
        native.kernels.uncovered(by_size, spent, value, accuracy, low, high, used, loss, keep, top, steepness, allowed)
        return by_size[keep]
    delay = steepness * np.maximum(0.0, top - accuracy)
    kept, pool = [], np.zeros(0, dtype=np.int64)
    for label in by_size.tolist():
        b, v, c, lo, hi, u = spent[label], value[label], accuracy[label], low[label], high[label], used[label]
        pool_b, pool_v, pool_c, pool_u = spent[pool], value[pool], accuracy[pool], used[pool]
        theirs = pool_v - np.maximum(0.0, pool_b - b) * delay[pool]
        slack = np.maximum((v - c * lo) - (theirs - pool_c * lo), (v - c * hi) - (theirs - pool_c * hi))
        covers = (slack <= allowed - loss[label]) & ((pool_u & ~u) == 0)
        if covers.any():
            first = int(covers.argmax())
            loss[pool[first]] = max(loss[pool[first]], loss[label] + max(slack[first], 0.0))
            continue
        kept.append(label)
        mine = v - np.maximum(0.0, b - pool_b) * delay[label]
        pool_lo, pool_hi = low[pool], high[pool]
        obsolete = (
            (mine - c * pool_lo >= pool_v - pool_c * pool_lo)
            & (mine - c * pool_hi >= pool_v - pool_c * pool_hi)
            & ((u & ~pool_u) == 0)
        )
        pool = np.append(pool[~obsolete], label)
    return np.array(kept, dtype=np.int64)
