"""What the confidences of every exit are worth: fitted to how often it is right."""

from collections.abc import Mapping, Sequence
from math import log

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from meedge_ray.domain.elastic import Calibration
from meedge_ray.search.decisions import SUREST, calibrated
from meedge_ray.search.inputs import Floats, Integers
from meedge_ray.train.confidences import Confidences

_DIGITS = 6


def fit_calibrations(confidences: Confidences, slots: Sequence[Integers]) -> dict[str, Calibration]:
    """Return the calibration of every exit by name.

    Args:
        confidences: of all exits.
        slots: rows of every slot's branches.
    """
    fitted = [_fitted(*pair) for pair in zip(confidences.confidence, confidences.right, strict=True)]
    offset = np.zeros(len(fitted))
    for rows in slots:
        if len(rows):
            often = np.array([_chances(confidences.confidence[row], fitted[row]).mean() for row in rows])
            offset[rows] = often - often.mean()
    return {
        name: Calibration(slope=slope, bias=bias, offset=round(float(off), _DIGITS))
        for name, (slope, bias), off in zip(confidences.names, fitted, offset, strict=True)
    }


def chances(confidences: Confidences, calibrations: Mapping[str, Calibration]) -> NDArray[np.float32]:
    """Return how likely every exit is right of every sample, less the exit's offset [exits, samples]."""
    known = [calibrations[name] for name in confidences.names]
    rows = [
        _chances(row, (each.slope, each.bias)) - each.offset
        for row, each in zip(confidences.confidence, known, strict=True)
    ]
    return np.stack(rows).astype(np.float32)


def _chances(confidence: NDArray[np.float16], line: tuple[float, float]) -> Floats:
    found: Floats = calibrated(confidence.astype(np.float64), *line)
    return found


def _fitted(confidence: NDArray[np.float16], right: NDArray[np.bool_]) -> tuple[float, float]:
    """Return slope and bias; the slope is 0 where surer results are not more often right."""
    always = (right.sum() + 1) / (len(right) + 2)
    flat = 0.0, round(log(always / (1 - always)), _DIGITS)
    if right.all() or not right.any():
        return flat
    inside = np.clip(confidence.astype(np.float64), SUREST, 1 - SUREST)
    model = LogisticRegression().fit(np.log(inside / (1 - inside))[:, None], right)
    slope, bias = float(model.coef_[0, 0]), float(model.intercept_[0])
    return (round(slope, _DIGITS), round(bias, _DIGITS)) if slope > 0 else flat
