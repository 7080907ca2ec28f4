import numpy as np
import pytest

from meedge_ray.train.killing import Kills


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
