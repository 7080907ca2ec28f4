"""Accuracy as a function of the time there was."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from meedge_ray.domain.elastic import Branch, Bundle, Profile
from meedge_ray.search.inputs import Law
from meedge_ray.search.placement import result_times

Curve = list[tuple[float, float]]
"""(ms, accuracy of the best result from then on), 0 before the first."""

Scores = Mapping[str | None, float]
"""Accuracy of every branch by name, and of the final exit by None."""


def accuracy_curve(at_ms: Sequence[float], validation: Sequence[float], test: Sequence[float]) -> Curve:
    """Return the curve of results in the order they come, the best of them being known from validation alone."""
    curve: Curve = []
    best = -1.0
    for time_ms, known, accuracy in zip(at_ms, validation, test, strict=True):
        if known > best:
            best = known
            curve.append((time_ms, accuracy))
    return curve


def mean_accuracy(curve: Curve, horizon_ms: float, law: Law | None = None) -> float:
    """Return the accuracy at hand when the kill comes, on average: of all results that come, the mAE (MEEdge 4.1).

    The kill comes within the horizon, by the uniform law unless another is given.
    """
    times_ms = np.array([*(time_ms for time_ms, _ in curve), horizon_ms])
    chance = np.maximum(0.0, 1.0 - times_ms / horizon_ms) if law is None else law(np.minimum(times_ms, horizon_ms))
    return float(-np.diff(chance) @ np.array([accuracy for _, accuracy in curve]))


def anytime_curve(bundle: Bundle, profile: Profile, branches: Sequence[Branch], scores: Scores) -> Curve:
    """Return the curve of branches that all run, one after the other, as the profile foresees it."""
    ordered = sorted(branches, key=lambda branch: (branch.exit_index, branch.accuracy))
    at_ms, known = result_times(
        range(len(ordered)),
        [branch.exit_index for branch in ordered],
        [profile.branch_ms[branch.name] for branch in ordered],
        [branch.accuracy for branch in ordered],
        backbone_ms=list(accumulate(profile.block_ms))[:-1],
        final_ms=profile.single_exit_ms,
        final_accuracy=bundle.final_accuracy,
    )
    truth = [*(scores[branch.name] for branch in ordered), scores[None]]
    return accuracy_curve(at_ms.tolist(), known.tolist(), truth)


def finite_time_curve(bundle: Bundle, profile: Profile, branches: Sequence[Branch], scores: Scores) -> Curve:
    """Return the curve over times known beforehand, so that one result is run for alone (MEEdge 4.2.1, Figure 7)."""
    reached_ms = list(accumulate(profile.block_ms))
    alone = [
        (reached_ms[branch.exit_index] + profile.branch_ms[branch.name], branch.accuracy, scores[branch.name])
        for branch in branches
    ]
    alone.append((profile.single_exit_ms, bundle.final_accuracy, scores[None]))
    at_ms, known, truth = zip(*sorted(alone), strict=True)
    return accuracy_curve(at_ms, known, truth)
