"""Laws of the kill's time other than the uniform one: G(t), the chance of no kill before t, and how steep it is.

The expectation weighted by any law (MEEdge 3.3.2, 4.1) needs G alone, see `placement`. The steepness, the law's
greatest density, is what lets the exact search forget labels, see `labels`.
"""

import math

import numpy as np
import numpy.typing as npt

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.inputs import Floats, Law, read_floats, read_number

_OUTSIDE = 1e-6  # of a histogram that may lie beyond the horizon: rounding
_INSIDE = 0.01  # of a normal law that must lie within the horizon: with less, its tail decides alone

_erf = np.frompyfunc(math.erf, 1, 1)


def histogram_law(edges_ms: npt.ArrayLike, probabilities: npt.ArrayLike, *, horizon_ms: float) -> Law:
    """Return the law with `probabilities` [n] between `edges_ms` [n + 1], evenly spread from edge to edge.

    The edges strictly ascend from 0, the probabilities are shares of their sum.

    Raises:
        InvalidInputError: kills after the horizon, or numbers that are no histogram; `where` names the argument.
    """
    edges = read_floats(edges_ms, "edges_ms")
    shares = read_floats(probabilities, "probabilities", count=max(0, len(edges) - 1))
    if not len(shares) or edges[0] != 0 or (np.diff(edges) <= 0).any():
        raise InvalidInputError("at least two edges that ascend from 0 are needed", where="edges_ms")
    if not shares.sum() > 0:
        raise InvalidInputError("at least one must be above 0", where="probabilities")
    left = np.append(np.cumsum(shares[::-1])[::-1], 0.0) / shares.sum()  # of the chance, at every edge
    late = float(np.interp(horizon_ms, edges, left))
    if late > _OUTSIDE:
        raise InvalidInputError(
            f"{late:.2%} of the kills come after the horizon of {horizon_ms:.6g} ms",
            where="edges_ms",
            do="Give a longer horizon_ms, or a histogram that ends with it",
        )
    steepness = float((-np.diff(left) / np.diff(edges)).max())
    return Law(lambda times: np.interp(times, edges, left), steepness=steepness)


def normal_law(mean_ms: float, standard_deviation_ms: float, *, horizon_ms: float) -> Law:
    """Return the normal law truncated to 0..`horizon_ms`.

    Raises:
        InvalidInputError: the deviation is not above 0, or hardly any of the law lies within the horizon.
    """
    deviation = read_number(standard_deviation_ms, "standard_deviation_ms")
    if not deviation > 0:
        raise InvalidInputError("must be above 0", where="standard_deviation_ms")
    if not math.isfinite(mean_ms):
        raise InvalidInputError(f"{mean_ms} is not a finite number", where="mean_ms")

    def below(times: Floats) -> Floats:  # twice the chance, less a constant
        scaled = (times - mean_ms) / (deviation * math.sqrt(2))
        return np.asarray(_erf(scaled), dtype=np.float64)

    start, end = below(np.array([0.0, horizon_ms])).tolist()
    inside = (end - start) / 2
    if inside < _INSIDE:
        raise InvalidInputError(
            f"only {inside:.2%} of the law lies within the horizon of {horizon_ms:.6g} ms",
            where="mean_ms",
            do="Give a mean within the horizon, a smaller deviation, or a longer horizon_ms",
        )
    nearest = min(max(mean_ms, 0.0), horizon_ms)
    density = math.exp(-(((nearest - mean_ms) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))
    return Law(lambda times: np.clip((end - below(times)) / (end - start), 0.0, 1.0), steepness=density / inside)
