"""The time that placements take besides search and transmission."""

import pytest

from meedge_ray.runtime.overruns import Overruns


@pytest.fixture
def overruns():
    return Overruns()


def test_nothing_is_kept_free_before_anything_was_late(overruns):
    assert overruns.left_ms(100) == 100
    overruns.add(50, foretold_ms=80)
    assert overruns.left_ms(100) == 100


def test_the_worst_of_the_last_few_is_kept_free(overruns):
    for took_ms in (110, 130, 120):
        overruns.add(took_ms, foretold_ms=100)
    assert overruns.left_ms(100) == 70
    for _ in range(4):
        overruns.add(105, foretold_ms=100)
    assert overruns.left_ms(100) == 95


def test_half_the_time_is_always_left(overruns):
    overruns.add(1000, foretold_ms=0)
    assert overruns.left_ms(100) == 50
