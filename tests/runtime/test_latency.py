import math
import threading

import pytest

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime.latency import LatencyMonitor


def observe(monitor, *ratios):
    return [monitor.observe(ratio * 2.0, 2.0) for ratio in ratios]


def test_the_ratio_is_the_median_of_the_last_inferences():
    monitor = LatencyMonitor(window=3)
    assert observe(monitor, 3.0, 1.0) == [False, False]
    assert monitor.ratio == 1.0
    assert observe(monitor, 2.0) == [True]
    assert monitor.ratio == 2.0
    assert observe(monitor, 5.0, 4.0) == [True, True]
    assert monitor.ratio == 4.0


def test_a_few_slow_inferences_change_nothing():
    monitor = LatencyMonitor()
    observe(monitor, *[1.0] * 9)
    observe(monitor, 50.0, 1.0, 50.0, 50.0, 50.0)
    assert monitor.ratio == 1.0


def test_after_a_restart_the_ratio_stays_until_the_window_is_full():
    monitor = LatencyMonitor(window=2)
    observe(monitor, 3.0, 3.0)
    monitor.restart()
    assert observe(monitor, 1.0) == [False]
    assert monitor.ratio == 3.0
    assert observe(monitor, 1.0) == [True]
    assert monitor.ratio == 1.0


def test_a_budget_shrinks_by_the_ratio_and_has_less_room_than_that():
    monitor = LatencyMonitor(window=1, hysteresis=0.2)
    assert (monitor.within_ms(10), monitor.room_ms(10)) == (10, 8)
    observe(monitor, 2.0)
    assert (monitor.within_ms(10), monitor.room_ms(10)) == (5, 4)


def test_any_thread_may_observe():
    monitor = LatencyMonitor()
    threads = [threading.Thread(target=observe, args=(monitor, *[1.5] * 500)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitor.ratio == 1.5


@pytest.mark.parametrize("settings", [{"window": 0}, {"hysteresis": -0.1}, {"hysteresis": 1.0}])
def test_settings_that_say_nothing_are_refused(settings):
    with pytest.raises(InvalidInputError) as error:
        LatencyMonitor(**settings)
    assert error.value.where in settings


@pytest.mark.parametrize("latencies", [(0, 1), (1, 0), (-1, 1), (math.nan, 1), (1, math.nan), (math.inf, 1)])
def test_what_is_no_latency_is_refused(latencies):
    with pytest.raises(InvalidInputError, match="no latencies"):
        LatencyMonitor(window=1).observe(*latencies)
