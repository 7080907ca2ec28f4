import math
from pathlib import Path

import numpy as np
import pytest

from meedge_ray.bundle.manifest import unit_store
from meedge_ray.domain.elastic import Bundle
from meedge_ray.runtime.exit_planning import SamplewisePlanner, StaticPlanner, best_static
from meedge_ray.runtime.loading import load_predictor
from meedge_ray.runtime.placing import Placer
from meedge_ray.train.confidences import FINAL, Confidences, read_confidences
from meedge_ray.train.curves import anytime_curve, mean_accuracy
from meedge_ray.train.exit_policy import SimulatedExits


@pytest.fixture(scope="module")
def confidences(tiny: tuple[Path, Bundle]) -> Confidences:
    folder, bundle = tiny
    assert bundle.confidences is not None
    return read_confidences(unit_store(folder).path(bundle.confidences.sha256))


def test_a_plan_that_runs_all_is_worth_what_the_curve_of_all_says(
    tiny: tuple[Path, Bundle], confidences: Confidences
) -> None:
    _, bundle = tiny
    placer = Placer(bundle)
    resident = bundle.baselines["einet"]
    simulated = SimulatedExits(bundle, placer, resident, confidences)
    everyone = np.arange(confidences.right.shape[1])
    found = simulated.mean_accuracies(StaticPlanner([True] * (len(resident) + 1)), everyone).mean()
    shares = dict(zip(confidences.names, confidences.right.mean(axis=1).tolist(), strict=True))
    scores = {name if name != FINAL else None: share for name, share in shares.items()}
    curve = anytime_curve(bundle, placer.profile, resident, scores)
    assert found == pytest.approx(mean_accuracy(curve, placer.horizon_ms))


def test_a_build_says_what_planning_sample_by_sample_gains(tiny: tuple[Path, Bundle]) -> None:
    _, bundle = tiny
    assert bundle.predictor is not None
    assert -1 < bundle.predictor.gain < 1
    assert math.isfinite(bundle.predictor.gain_error)


def test_decisions_are_paid_for(tiny: tuple[Path, Bundle], confidences: Confidences) -> None:
    folder, bundle = tiny
    placer = Placer(bundle)
    resident = bundle.baselines["einet"]
    predictor = load_predictor(unit_store(folder), bundle)
    assert predictor is not None
    planner = SamplewisePlanner(bundle, placer.profile, resident, predictor, horizon_ms=placer.horizon_ms)
    simulated = SimulatedExits(bundle, placer, resident, confidences)
    everyone = np.arange(confidences.right.shape[1])
    found = simulated.mean_accuracies(planner, everyone).mean()
    planner.replan_ms = placer.horizon_ms  # nothing comes after the first result
    first = simulated.mean_accuracies(planner, everyone).mean()
    assert first < found
    static = best_static(bundle, placer.profile, resident, horizon_ms=placer.horizon_ms)
    assert abs(found - simulated.mean_accuracies(static, everyone).mean()) < 0.3
