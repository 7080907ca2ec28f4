import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import SHAPE, World

from meedge_ray.api.elastic_model import Data
from meedge_ray.domain.elastic import Bundle
from meedge_ray.runtime.steps import Step
from meedge_ray.search.laws import histogram_law, normal_law
from meedge_ray.train.curves import mean_accuracy
from meedge_ray.train.data import load_data
from meedge_ray.train.killing import Contender, Kills, kill_times, run_under_kills
from meedge_ray.train.preempting import Preemptor
from meedge_ray.train.progress import silent

SAMPLE = np.zeros(SHAPE, np.uint8)


def test_the_error_of_a_difference_is_that_of_drawing_other_samples() -> None:
    random = np.random.default_rng(0)
    samples = np.repeat(np.arange(200), 5)  # five kills each, all right or all wrong more often than not
    easy = random.random(200)[samples]
    chances = np.stack([easy, 0.8 * easy])
    kills = Kills(random.random((2, len(samples))) < chances, chances, samples)
    gap = (kills.right[1].astype(float) - kills.right[0]).reshape(200, 5).mean(axis=1)
    bootstrapped = np.std([random.choice(gap, 200).mean() for _ in range(4000)])
    assert kills.standard_error(1, 0) == pytest.approx(bootstrapped, rel=0.1)
    assert kills.standard_error(1, 0) == kills.standard_error(0, 1)
    assert kills.standard_error(1, 1) == 0
    gain, error = kills.expected_gain(1, 0)
    assert gain == pytest.approx(-0.2 * easy.mean())
    assert error == pytest.approx(0.2 * np.std(easy) / np.sqrt(200))


def test_samples_that_were_killed_unequally_often_or_never_are_taken_as_they_came() -> None:
    samples = np.array([0, 0, 0, 2])
    right = np.array([[1, 1, 0, 1], [0, 1, 0, 0]], dtype=bool)
    kills = Kills(right, right.astype(np.float64), samples)
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


def test_a_preemption_is_tripped_when_its_time_has_come_and_not_before() -> None:
    with Preemptor() as preemptor:
        for wait_ms in (0.0, 3.0, 30.0):
            start = time.perf_counter()
            preemption = preemptor.after(wait_ms)
            while preemption.at == math.inf:
                assert time.perf_counter() - start < 10
            assert (preemption.at - start) * 1e3 >= wait_ms


def test_a_later_preemption_does_not_wait_for_an_earlier_one() -> None:
    with Preemptor() as preemptor:
        forgotten = preemptor.after(60_000)
        preemption = preemptor.after(1)
        start = time.monotonic()
        while preemption.at == math.inf:
            time.sleep(0.001)
            assert time.monotonic() - start < 10
        assert forgotten.at == math.inf


def slow(step: Step) -> Step:
    def run(*arguments: Any) -> Any:
        time.sleep(0.005)
        return step.run(*arguments)

    return step._replace(run=run)


def test_no_result_that_comes_after_the_processor_was_taken_counts(world: World) -> None:
    engine = world.engine()
    engine._placed = replace(engine._placed, steps=tuple(map(slow, engine._placed.steps)))
    with Preemptor() as preemptor:
        endings = set()
        for wait_ms in (0, 1, 5, 10, 15, 10_000):  # the whole takes 20
            answer = engine.infer(SAMPLE, preemption=preemptor.after(wait_ms))
            endings.add(answer.ending)
            assert (answer.label is None) == (answer.ending == "preempted")
    assert endings == {"preempted", "completed"}


def test_kills_by_another_thread_find_what_kills_by_the_clock_find(tiny: tuple[Path, Bundle]) -> None:
    folder, bundle = tiny
    [profile] = bundle.profiles.values()
    branches = bundle.baselines["multi_exit_fc"]
    found = []
    for preempting in (False, True):
        [result], under_kills = run_under_kills(
            folder,
            bundle,
            [Contender(frozenset(branches))],
            load_data(Data.model_validate(dict(bundle.data)), Path()).test,
            profile=profile,
            horizon_ms=100 * profile.single_exit_ms,  # long beside what waking a thread takes
            kills=200,
            seed=0,
            preempting=preempting,
            report=silent,
        )
        found.append(result.killed)
        # Whatever is killed is right as often as runs that were let finish foretell.
        assert result.killed == pytest.approx(under_kills.expected.mean(), abs=0.1)
    assert found[0] == pytest.approx(found[1], abs=0.1)
