"""Which labels are needed: the hot loop of the placement frontier, compiled where a compiler was.

What a label is and why the test loses nothing is told in `labels`.
"""

import numpy as np
import numpy.typing as npt

from meedge_ray.search import native
from meedge_ray.search.inputs import Floats

Bits = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


def uncovered(
    spent: Floats,
    value: Floats,
    accuracy: Floats,
    low: Floats,
    high: Floats,
    used: Bits,
    loss: Floats,
    *,
    allowed: float,
) -> Mask:
    """Return which of n labels, sorted by size, are needed; raises `loss` of those that stand for others.

    A label that a later, larger one covers is still needed for its size, but
    no longer compared with: what it covers of the rest, the later one covers too.
    """
    keep = np.zeros(len(spent), dtype=np.bool_)
    if native.kernels is not None:
        native.kernels.uncovered(spent, value, accuracy, low, high, used, loss, keep, allowed)
        return keep
    pool = np.zeros(0, dtype=np.int64)
    for index in range(len(spent)):
        b, v, c, u = spent[index], value[index], accuracy[index], used[index]
        pool_b, pool_v, pool_c, pool_u = spent[pool], value[pool], accuracy[pool], used[pool]
        lo, hi, pool_lo, pool_hi = low[index], high[index], low[pool], high[pool]
        slack = np.maximum((v - c * lo) - (pool_v - pool_c * lo), (v - c * hi) - (pool_v - pool_c * hi))
        covers = (pool_b <= b) & (slack <= allowed - loss[index]) & ((pool_u & ~u) == 0)
        if covers.any():
            first = int(covers.argmax())
            loss[pool[first]] = max(loss[pool[first]], loss[index] + max(slack[first], 0.0))
            continue
        keep[index] = True
        obsolete = (
            (b <= pool_b)
            & (v - c * pool_lo >= pool_v - pool_c * pool_lo)
            & (v - c * pool_hi >= pool_v - pool_c * pool_hi)
            & ((u & ~pool_u) == 0)
        )
        pool = np.append(pool[~obsolete], index)
    return keep
