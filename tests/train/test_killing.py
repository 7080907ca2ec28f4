import numpy as np
import pytest

from meedge_ray.search.laws import histogram_law, normal_law
from meedge_ray.train.curves import mean_accuracy
from meedge_ray.train.killing import Kills, kill_times


def test_the_error_of_a_difference_is_that_of_drawing_other_samples() -> None:
    random = np.random.default_rng(0)
    samples = np.repeat(np.arange(200), 5)  # five kills each, all right or all wrong more often than not
    easy = random.random(200)[samples]
    kills = Kills(random.random((2, len(samples))) < np.stack([easy, 0.8 * easy]), samples)
    gap = (kills.right[1].astype(float) - kills.right[0]).reshape(200, 5).mean(axis=1)
    bootstrapped = np.std([random.choice(gap, 200).mean() for _ in range(4000)])
    assert kills.standard_error(1, 0) == pytest.approx(bootstrapped, rel=0.1)
    assert kills.standard_error(1, 0) == kills.standard_error(0, 1)
    assert kills.standard_error(1, 1) == 0


def test_samples_that_were_killed_unequally_often_or_never_are_taken_as_they_came() -> None:
    samples = np.array([0, 0, 0, 2])
    kills = Kills(np.array([[1, 1, 0, 1], [0, 1, 0, 0]], dtype=bool), samples)
    # Mean 1/2; sample 0 adds 1/4 where 3/8 were its part, sample 2 adds 1/4 where 1/8 were.
    assert kills.standard_error(0, 1) == pytest.approx(np.hypot(1 / 8, 1 / 8))


def test_kills_come_as_their_law_says() -> None:
    shares = (np.arange(10_000) + 0.5) / 10_000
    assert kill_times(shares, 8.0, None) == pytest.approx(8.0 * shares)
    halves = kill_times(shares, 8.0, histogram_law([0, 2, 8], [1, 1], horizon_ms=8.0))
    assert (halves <= 2).mean() == pytest.approx(0.5, abs=0.001)
    assert np.median(halves[halves > 2]) == pytest.approx(5.0, abs=0.01)
    normal = kill_times(shares, 8.0, normal_law(4.0, 1.0, horizon_ms=8.0))
    assert (normal.mean(), normal.std()) == pytest.approx((4.0, 1.0), abs=0.01)


def test_the_mean_accuracy_under_a_law_is_that_of_its_kills() -> None:
    curve = [(1.0, 0.3), (2.5, 0.8), (9.0, 1.0)]  # the last comes after the horizon
    shares = (np.arange(100_000) + 0.5) / 100_000
    for law in (None, normal_law(4.0, 1.5, horizon_ms=8.0), histogram_law([0, 2, 8], [3, 1], horizon_ms=8.0)):
        times = kill_times(shares, 8.0, law)
        at_hand = np.where(times < 1.0, 0.0, np.where(times < 2.5, 0.3, 0.8))
        assert mean_accuracy(curve, 8.0, law) == pytest.approx(at_hand.mean(), abs=1e-3)
