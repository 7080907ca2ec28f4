"""Whether planning sample by sample pays: simulated from confidences, with what it costs."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meedge_ray.domain.elastic import FINAL, Branch, Bundle
from meedge_ray.runtime.engine import running_order
from meedge_ray.runtime.exit_planning import SamplewisePlanner, StaticPlanner, best_static, results_of
from meedge_ray.runtime.placing import Placer
from meedge_ray.search.decisions import Decisions
from meedge_ray.search.inputs import Floats
from meedge_ray.search.predictor import ConfidencePredictor
from meedge_ray.train.confidences import Confidences
from meedge_ray.train.curves import Curve, mean_accuracy


def samplewise_gain(
    bundle: Bundle, confidences: Confidences, predictor: ConfidencePredictor, samples: NDArray[np.int64]
) -> tuple[float, float]:
    """Return what sample-wise planning gains over the best static plan in mAE, and the standard error.

    All branches of the best placement for any memory are resident; the kill is uniform over the default horizon.

    Args:
        bundle: the model with one profile.
        confidences: of its exits.
        predictor: of its slots.
        samples: indices of those that the predictor was not trained on.
    """
    placer = Placer(bundle)
    names = set(placer.points()[-1].branches)
    resident = [branch for branch in bundle.branches if branch.name in names]
    static = best_static(bundle, placer.profile, resident, horizon_ms=placer.horizon_ms)
    samplewise = SamplewisePlanner(bundle, placer.profile, resident, predictor, horizon_ms=placer.horizon_ms)
    world = SimulatedExits(bundle, placer, resident, confidences)
    gains = world.mean_accuracies(samplewise, samples) - world.mean_accuracies(static, samples)
    return float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))


class SimulatedExits:
    """Inferences with certain resident branches, replayed from measured times, confidences and rightness."""

    def __init__(self, bundle: Bundle, placer: Placer, resident: Sequence[Branch], confidences: Confidences) -> None:
        """Take the model, whose times count, the resident branches, and what every exit makes of every sample."""
        self._results = results_of(bundle, placer.profile, resident)
        self._horizon_ms, self._law = placer.horizon_ms, placer.law
        row_of = {name: row for row, name in enumerate(confidences.names)}
        rows = [row_of[name] for name in (*(branch.name for branch in running_order(resident)), FINAL)]
        self._confidence: Floats = confidences.confidence[rows].astype(np.float64)
        self._right = confidences.right[rows]

    def mean_accuracies(self, planner: StaticPlanner | SamplewisePlanner, samples: NDArray[np.int64]) -> Floats:
        """Return for every sample [n] the chance that the result at hand is right when the kill comes."""
        return np.array([self._mean_accuracy(planner, int(sample)) for sample in samples])

    def _mean_accuracy(self, planner: StaticPlanner | SamplewisePlanner, sample: int) -> float:
        decisions, results = planner.begin(), self._results
        replan_ms = planner.replan_ms if isinstance(planner, SamplewisePlanner) else 0.0
        now_ms, best = 0.0, -1.0
        curve: Curve = []
        for result, accuracy in enumerate(results.accuracy.tolist()):
            now_ms += float(results.conv_ms[result])
            if not decisions.wanted[result]:
                continue
            now_ms += float(results.branch_ms[result])
            if now_ms >= self._horizon_ms:
                break
            if accuracy > best:
                best = accuracy
                curve.append((now_ms, float(self._right[result, sample])))
            if isinstance(decisions, Decisions) and result + 1 < len(results.slot):
                now_ms += replan_ms
                decisions.after(result, float(self._confidence[result, sample]), now_ms)
        return mean_accuracy(curve, self._horizon_ms, self._law)
