"""Branch survival (MEEdge 3.2.2): which trained branches are worth keeping as candidates."""

import numpy as np
import numpy.typing as npt

from meedge_ray.search.inputs import read_floats, read_number


def survive(
    time_ms: npt.ArrayLike, accuracy: npt.ArrayLike, *, final_ms: float, final_accuracy: float
) -> tuple[npt.NDArray[np.bool_], tuple[str, ...]]:
    """Return a mask [K] of the survivors, and why each other branch is eliminated ("" for survivors).

    A branch survives if its result comes before the original inference completes (criterion 1), or if it
    comes later but is better than the original's (criterion 2). `time_ms` counts from the inference's
    start: the backbone up to the exit and the branch.

    Raises:
        InvalidInputError: lengths differ, or a number is NaN or out of range.
    """
    accuracies = read_floats(accuracy, "accuracy", most=1.0)
    times = read_floats(time_ms, "time_ms", count=len(accuracies))
    final, reference = (
        read_number(final_ms, "final_ms"),
        read_number(final_accuracy, "final_accuracy", most=1.0),
    )
    keep = (times < final) | (accuracies > reference)
    reasons = tuple(
        ""
        if kept
        else f"answers after {time:.4g} ms, not before the final exit at {final:.4g} ms, "
        f"and is not more accurate: {value:.4f} against {reference:.4f}"
        for kept, time, value in zip(keep, times, accuracies, strict=True)
    )
    return keep, reasons
