import threading

import numpy as np
import pytest
from supernets import make_supernet

from meedge_ray.domain.errors import InvalidInputError, NotFoundError, UnavailableError
from meedge_ray.runtime.adaptive_engine import AdaptiveEngine
from meedge_ray.runtime.latency import LatencyMonitor
from meedge_ray.runtime.preemption import Preemption
from meedge_ray.runtime.subnet_pool import SubnetPool
from meedge_ray.search.subnet_search import Measured

FAST = Measured((9, 3), 2.0, 0.5)
MIDDLE = Measured((0, 8, 3), 4.0, 0.6)
GOOD = Measured((4, 1, 6, 3), 6.0, 0.7)
BEST = Measured((0, 1, 2, 3), 8.0, 0.8)
POOL = (FAST, MIDDLE, GOOD, BEST)


class Scripted(LatencyMonitor):
    """Takes every inference as one that took `factor` times what was estimated."""

    factor = 1.0

    def observe(self, actual_ms, estimated_ms):
        assert actual_ms > 0
        return super().observe(self.factor * estimated_ms, estimated_ms)


@pytest.fixture(scope="module")
def supernet():
    return make_supernet()


@pytest.fixture(scope="module")
def sample(supernet):
    return np.random.default_rng(5).integers(0, 256, supernet.bundle.input.shape)


@pytest.fixture
def adaptive(supernet):
    def made(latency_ms, *, pool=POOL, read=supernet.read, window=3, **options):
        return AdaptiveEngine(
            supernet.engine(*BEST.subnet),
            supernet.bundle,
            SubnetPool(pool),
            read,
            latency_ms=latency_ms,
            monitor=Scripted(window=window, hysteresis=0.1),
            **options,
        )

    return made


def run(adaptive, sample, factor, inferences=3):
    """So many inferences at a device's speed, and what came of them."""
    adaptive.monitor.factor = factor
    answers = [adaptive.infer(sample) for _ in range(inferences)]
    adaptive.settle()
    assert all(answer.ending == "completed" for answer in answers)
    return adaptive.status()


def answer_of(supernet, measured, sample):
    return supernet.engine(*measured.subnet).infer(sample).confidences


@pytest.mark.parametrize(("latency_ms", "active"), [(2, FAST), (5.9, MIDDLE), (6, GOOD), (100, BEST)])
def test_it_begins_with_the_best_within_the_budget(adaptive, supernet, sample, latency_ms, active):
    engine = adaptive(latency_ms)
    status = engine.status()
    assert (status.active, status.switches, status.ratio, status.shortfall_ms) == (active, 0, 1.0, 0.0)
    assert (status.searching, status.problem) == (False, "")
    assert status.resident_bytes == supernet.size_bytes(*active.subnet)
    answer = engine.infer(sample)
    assert answer.confidences == answer_of(supernet, active, sample)


def test_when_the_budget_is_exceeded_a_faster_subnet_runs(adaptive, supernet, sample):
    engine = adaptive(8)
    status = run(engine, sample, 1.9)
    assert (status.active, status.ratio, status.switches) == (MIDDLE, 1.9, 1)  # 8 / 1.9 is 4.2
    assert status.resident_bytes == supernet.size_bytes(*MIDDLE.subnet)
    assert engine.infer(sample).confidences == answer_of(supernet, MIDDLE, sample)


def test_when_the_device_has_time_again_the_better_subnet_is_back(adaptive, sample):
    engine = adaptive(8)
    assert run(engine, sample, 3).active == FAST
    assert run(engine, sample, 1.5).active == MIDDLE
    status = run(engine, sample, 0.85)
    assert (status.active, status.switches) == (BEST, 3)


def test_noise_does_not_lead_to_and_fro(adaptive, sample):
    engine = adaptive(8, window=5)
    factors = [0.93, 1.06, 0.95, 1.07, 1.0, 0.97, 5.0, 1.04] * 20
    for factor in factors:
        run(engine, sample, factor, inferences=1)
    status = engine.status()
    assert (status.active, status.switches) == (GOOD, 1)


def test_a_subnet_that_is_slower_than_estimated_is_not_gone_back_to(adaptive, sample):
    engine = adaptive(8)
    for _ in range(10):
        run(engine, sample, 1.09 if engine.status().active == BEST else 1.0)
    status = engine.status()
    assert (status.active, status.switches) == (GOOD, 1)


def test_another_budget_counts_at_once(adaptive, sample):
    engine = adaptive(8)
    run(engine, sample, 1.0)
    assert engine.set_budget(4).active == MIDDLE
    assert engine.set_budget(7).active == GOOD
    assert engine.set_budget(8).active == BEST
    run(engine, sample, 2.0)
    status = engine.set_budget(12)
    assert (status.active, status.latency_ms, status.ratio) == (GOOD, 12, 2.0)


def test_below_the_fastest_the_fastest_runs_and_the_shortfall_is_said(adaptive, sample):
    engine = adaptive(1.5)
    assert (engine.status().active, engine.status().shortfall_ms) == (FAST, 0.5)
    assert engine.set_budget(8).shortfall_ms == 0
    status = engine.set_budget(0.25)
    assert (status.active, status.shortfall_ms) == (FAST, 1.75)
    assert run(engine, sample, 2.0).shortfall_ms == 3.75


@pytest.mark.parametrize("latency_ms", [0, -1, float("nan"), float("inf")])
def test_what_is_no_budget_is_refused(adaptive, latency_ms):
    engine = adaptive(8)
    with pytest.raises(InvalidInputError, match="no latency") as error:
        engine.set_budget(latency_ms)
    assert error.value.where == "latency_ms"
    assert engine.status().latency_ms == 8
    with pytest.raises(InvalidInputError, match="no latency"):
        adaptive(latency_ms)


def test_a_pool_of_another_network_is_refused(adaptive):
    with pytest.raises(InvalidInputError) as error:
        adaptive(8, pool=[*POOL, Measured((0, 77, 3), 9.0, 0.9)])
    assert error.value.where == "subnet"
    with pytest.raises(InvalidInputError) as error:
        adaptive(8, look_ahead=-1)
    assert error.value.where == "look_ahead"


def test_only_units_that_are_not_resident_are_read(adaptive, supernet):
    read = []
    engine = adaptive(8, read=lambda unit: read.append(unit) or supernet.read(unit))
    assert read == []
    engine.set_budget(6)
    links = supernet.bundle.links
    assert read == [links[4].unit, links[6].unit]


def test_neighbours_stay_loaded_and_a_switch_to_them_reads_nothing_first(adaptive, supernet, sample):
    read = []
    engine = adaptive(4, look_ahead=1, read=lambda unit: read.append(unit) or supernet.read(unit))
    links = supernet.bundle.links
    assert engine.status().resident_bytes == supernet.size_bytes(*FAST.subnet, *MIDDLE.subnet, *GOOD.subnet)
    place, placed = engine._engine.place, []

    def watched(*arguments, **options):
        before = len(read)
        place(*arguments, **options)
        placed.append((options.get("body") is not None, read[before:]))

    engine._engine.place = watched
    status = engine.set_budget(6)
    assert placed == [(True, []), (False, [links[2].unit])]
    assert status.resident_bytes == supernet.size_bytes(*MIDDLE.subnet, *GOOD.subnet, *BEST.subnet)
    assert engine.infer(sample).confidences == answer_of(supernet, GOOD, sample)


def test_a_new_search_is_asked_for_when_nothing_fits_and_its_subnets_join_the_pool(adaptive, supernet, sample):
    found = Measured((9, 3), 0.7, 0.4)
    asked, may_end = [], threading.Event()

    def search_again(budget_ms):
        asked.append(budget_ms)
        may_end.wait()
        return [found]

    engine = adaptive(8, search_again=search_again)
    engine.monitor.factor = 8.0
    while not asked:
        assert engine.infer(sample).ending == "completed"
    status = engine.status()
    assert (status.active, status.searching, asked) == (FAST, True, [1.0])
    assert status.shortfall_ms == 8.0
    may_end.set()
    engine.settle()
    status = engine.status()
    assert (status.active, status.searching, status.shortfall_ms) == (found, False, 0.0)
    assert run(engine, sample, 1.0).active == GOOD
    assert asked == [1.0]


def test_while_a_search_runs_a_better_subnet_may_come_back(adaptive, sample):
    may_end, searching = threading.Event(), threading.Event()

    def search_again(budget_ms):
        searching.set()
        may_end.wait()
        return ()

    engine = adaptive(1, search_again=search_again)
    searching.wait()
    assert engine.set_budget(8).active == BEST
    assert engine.status().searching
    may_end.set()
    engine.settle()
    assert engine.status().active == BEST


def test_a_search_that_finds_nothing_is_not_repeated_for_the_same(adaptive, sample):
    asked = []
    engine = adaptive(8, search_again=lambda budget_ms: asked.append(budget_ms) or ())
    for _ in range(5):
        run(engine, sample, 8.0)
    assert asked == [1.0]
    run(engine, sample, 16.0)
    assert asked == [1.0, 0.5]
    engine.set_budget(7.9)
    engine.settle()
    assert len(asked) == 3


def test_a_search_that_fails_is_said(adaptive):
    def search_again(budget_ms):
        raise UnavailableError("the samples are gone")

    engine = adaptive(1, search_again=search_again)
    engine.settle()
    status = engine.status()
    assert (status.active, status.problem, status.searching) == (FAST, "the samples are gone", False)


def test_a_search_that_returns_what_is_no_subnet_is_said(adaptive):
    engine = adaptive(1, search_again=lambda budget_ms: [Measured((9,), 0.5, 0.9)])
    engine.settle()
    assert (engine.status().active, engine.status().problem[:7]) == (FAST, "subnet:")


def test_a_subnet_whose_units_are_gone_is_passed_over(adaptive, supernet, sample):
    gone = {supernet.bundle.links[8].unit}

    def read(unit):
        if unit in gone:
            raise NotFoundError("the unit is gone")
        return supernet.read(unit)

    engine = adaptive(8, read=read)
    status = engine.set_budget(4)
    assert (status.active, status.problem) == (FAST, "the unit is gone")
    assert run(engine, sample, 1.0).active == FAST
    assert engine.set_budget(6).problem == ""
    engine.set_budget(2)
    gone.update(link.unit for link in supernet.bundle.links)
    status = engine.set_budget(8)
    assert (status.active, status.problem) == (FAST, "the unit is gone")
    assert engine.infer(sample).confidences == answer_of(supernet, FAST, sample)


@pytest.mark.parametrize(("estimated_ms", "is_late"), [(1e-6, True), (1e6, False)])
def test_what_was_cut_off_counts_only_where_it_was_late_already(supernet, sample, estimated_ms, is_late):
    pool = SubnetPool([FAST._replace(latency_ms=1e-9), BEST._replace(latency_ms=estimated_ms)])
    engine = supernet.engine(*BEST.subnet)
    monitor = LatencyMonitor(window=1)
    adaptive = AdaptiveEngine(engine, supernet.bundle, pool, supernet.read, latency_ms=estimated_ms, monitor=monitor)
    stopped = Preemption()
    stopped.trip()
    assert adaptive.infer(sample, preemption=stopped).ending == "preempted"
    adaptive.settle()
    assert (monitor.ratio > 1) == is_late
    assert (adaptive.status().active.subnet == FAST.subnet) == is_late


def test_no_inference_fails_or_mixes_bodies_while_the_speed_changes(adaptive, supernet, sample):
    expected = {answer_of(supernet, member, sample) for member in POOL}
    assert len(expected) == len(POOL)
    engine = adaptive(8, look_ahead=1)
    done, seen, failures = threading.Event(), set(), []

    def infer():
        try:
            while not done.is_set():
                answer = engine.infer(sample)
                assert answer.ending == "completed"
                seen.add(answer.confidences)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=infer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for factor, active in ((1.9, MIDDLE), (4.0, FAST), (0.8, BEST), (1.2, GOOD)) * 3:
        engine.monitor.factor = factor
        while engine.status().active != active and not failures:
            done.wait(0.001)
    engine.set_budget(3)
    done.set()
    for thread in threads:
        thread.join()
    engine.settle()
    assert not failures
    assert seen <= expected
    status = engine.status()
    assert (status.active, status.problem) == (FAST, "")
    assert status.resident_bytes == supernet.size_bytes(*FAST.subnet, *MIDDLE.subnet)
