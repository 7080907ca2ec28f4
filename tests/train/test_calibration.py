from typing import Any

import numpy as np
import pytest

from meedge_ray.domain.elastic import Calibration
from meedge_ray.search.decisions import calibrated
from meedge_ray.train.calibration import chances, fit_calibrations
from meedge_ray.train.confidences import Confidences

SAMPLES = 4000


def measured(confidence: Any, right: Any) -> Confidences:
    names = (*(f"exit{row}" for row in range(len(confidence) - 1)), "")
    return Confidences(names, np.asarray(confidence, np.float16), np.asarray(right, np.bool_))


def test_calibrated_confidences_are_as_high_as_exits_are_often_right() -> None:
    random = np.random.default_rng(0)
    sure = random.uniform(0.1, 0.9, (3, SAMPLES))
    truth = np.stack([sure[0], 0.5 + 0.4 * sure[1], np.full(SAMPLES, 0.3)])  # well told, too modest, told by nothing
    found = measured(sure, random.random(truth.shape) < truth)
    calibrations = fit_calibrations(found, [np.array([0, 1]), np.array([2])])
    for row, name in enumerate(found.names):
        said = calibrated(sure[row], calibrations[name].slope, calibrations[name].bias)
        assert said == pytest.approx(truth[row], abs=0.06)
    assert calibrations["exit0"].slope == pytest.approx(1, abs=0.1)
    assert calibrations[""].slope < 0.1


def test_a_branch_is_known_by_how_much_more_often_it_is_right_than_its_exit() -> None:
    random = np.random.default_rng(1)
    right = random.random((3, SAMPLES)) < np.array([[0.4], [0.6], [0.9]])
    found = measured(np.full(right.shape, 0.5), right)
    calibrations = fit_calibrations(found, [np.array([0, 1]), np.array([], np.int64), np.array([2])])
    offsets = [calibrations[name].offset for name in found.names]
    assert offsets == pytest.approx([-0.1, 0.1, 0.0], abs=0.02)
    moved = chances(found, calibrations).mean(axis=1)
    assert moved == pytest.approx([0.5, 0.5, 0.9], abs=0.02)


@pytest.mark.parametrize("right", [False, True])
def test_an_exit_that_is_always_or_never_right_has_a_chance_too(right: bool) -> None:
    found = measured(np.random.default_rng(0).random((1, 48)), np.full((1, 48), right))
    [calibration] = fit_calibrations(found, [np.array([0])]).values()
    assert calibration.slope == 0
    assert calibrated(0.5, 0.0, calibration.bias) == pytest.approx(49 / 50 if right else 1 / 50, abs=1e-4)


def test_an_exit_that_is_surer_where_it_is_wrong_has_one_chance_for_all() -> None:
    sure = np.linspace(0.1, 0.9, SAMPLES)
    found = measured([sure], [np.random.default_rng(0).random(SAMPLES) < 1 - sure])
    [calibration] = fit_calibrations(found, [np.array([0])]).values()
    assert calibration == Calibration(slope=0.0, bias=calibration.bias)
    assert calibrated(0.2, 0.0, calibration.bias) == pytest.approx(0.5, abs=0.03)
