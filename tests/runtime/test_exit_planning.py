"""Inferences that run only the branches a planner wants."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from meedge_ray.domain.elastic import Predictor, Unit
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.exit_planning import (
    SamplewisePlanner,
    StaticPlanner,
    ThresholdPlanner,
    best_static,
    planner_for,
)
from meedge_ray.search.exit_plan import plan_exits
from meedge_ray.search.laws import normal_law
from meedge_ray.search.predictor import ConfidencePredictor

UNIT = Unit(sha256="0" * 64, size_bytes=1)
ALL = ("exit0-small", "exit0-large", "exit1-small", "exit1-large", "exit2-small", "exit2-large")


def predictor(slots: int, *, says: Sequence[float] | None = None, follows: float = 0.0) -> ConfidencePredictor:
    """Says the same numbers of every sample, and of all slots but the first `follows` times its confidence more."""
    hidden = 2
    tensors = {
        "weight0": np.zeros((slots, hidden), np.float32),
        "bias0": np.zeros(hidden, np.float32),
        "weight1": np.eye(hidden, dtype=np.float32),
        "bias1": np.zeros(hidden, np.float32),
        "weight2": np.zeros((hidden, slots), np.float32),
        "bias2": np.asarray([0.5] * slots if says is None else says, np.float32),
    }
    tensors["weight0"][0, 0] = 1
    tensors["weight2"][0, 1:] = follows
    return ConfidencePredictor.from_tensors(tensors)


@pytest.fixture(params=[False, True], ids=["whole", "shared"])
def world(request: Any, worlds: Any) -> Any:
    return worlds(shared=request.param)


def placed(world: Any, planner: Any, *names: str) -> Engine:
    engine: Engine = world.engine()
    engine.place([world.branch(name) for name in names], world.read, planner)
    return engine


def test_only_what_the_planner_wants_is_run(world: Any, samples: Any) -> None:
    wanted = (True, False, False, False, False, True, True)
    engine = placed(world, StaticPlanner(wanted), *ALL)
    answer = engine.infer(samples[0])
    assert [output.branch for output in answer.outputs] == ["exit0-small", "exit2-large", None]
    assert (answer.planner, answer.resident) == ("static", 6)
    expected = {name: int(logits[0].argmax()) for name, logits in world.logits(samples[:1]).items()}
    assert all(output.label == expected[output.branch] for output in answer.outputs)


def test_without_a_planner_all_run_and_the_answer_says_so(world: Any, samples: Any) -> None:
    answer = world.engine(*ALL).infer(samples[0])
    assert len(answer.outputs) == 7
    assert (answer.planner, answer.resident) == ("none", 6)


def test_the_static_plan_is_the_best_for_the_accuracies(world: Any, samples: Any) -> None:
    bundle = world.bundle
    [profile] = bundle.profiles.values()
    branches = [world.branch(name) for name in ALL]
    planner = best_static(bundle, profile, branches, horizon_ms=5.0)
    # Blocks take 1 ms each, small branches 0.1 and large ones 0.2.
    conv_ms, branch_ms = [1, 0, 1, 0, 1, 0, 1], [0.1, 0.2] * 3 + [0.0]
    accuracy = [*(branch.accuracy for branch in branches), bundle.final_accuracy]
    best = plan_exits(conv_ms, branch_ms, accuracy, horizon_ms=5.0)
    assert planner.plan == tuple(best.execute)
    answer = placed(world, planner, *ALL).infer(samples[0])
    wanted = [name for name, runs in zip(ALL, best.execute, strict=False) if runs]
    assert [output.branch for output in answer.outputs] == [*wanted, None]


def test_a_sample_whose_future_is_no_better_runs_no_further_branch(world: Any, samples: Any) -> None:
    [profile] = world.bundle.profiles.values()
    branches = [world.branch(name) for name in ALL]
    hopeless = predictor(4, says=[0, 0, 0, 0])
    planner = SamplewisePlanner(world.bundle, profile, branches, hopeless, horizon_ms=5.0)
    answer = placed(world, planner, *ALL).infer(samples[0])
    assert len(answer.outputs) == 1
    assert (answer.planner, answer.ending) == ("samplewise", "completed")
    assert planner.replan_ms > 0


def test_plans_differ_from_sample_to_sample_and_threads_do_not_mix_them(world: Any) -> None:
    [profile] = world.bundle.profiles.values()
    branches = [world.branch(name) for name in ALL]
    # The surer the first result is, the more is promised of the others.
    grows = predictor(4, says=[0.3, -1, -1, -1], follows=2.2)
    planner = SamplewisePlanner(world.bundle, profile, branches, grows, horizon_ms=5.0)
    engine = placed(world, planner, *ALL)
    samples = np.random.default_rng(2).integers(0, 256, (40, 2, 4, 4), dtype=np.uint8)

    def ran(sample: Any) -> tuple[str | None, ...]:
        return tuple(output.branch for output in engine.infer(sample).outputs)

    alone = [ran(sample) for sample in samples]
    assert len(set(alone)) > 1
    together: list[list[tuple[str | None, ...]]] = [[], []]

    def run(into: list[tuple[str | None, ...]]) -> None:
        into += [ran(sample) for sample in samples]

    threads = [threading.Thread(target=run, args=(into,)) for into in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seen in together:
        # Times differ from run to run, so a plan may; it does not for most.
        assert sum(a == b for a, b in zip(seen, alone, strict=True)) > 30


def test_a_threshold_ends_with_the_first_result_that_reaches_it(world: Any) -> None:
    samples = np.random.default_rng(2).integers(0, 256, (40, 2, 4, 4), dtype=np.uint8)
    whole = world.engine(*ALL)
    engine = placed(world, ThresholdPlanner(0.8, len(ALL) + 1), *ALL)
    lengths = set()
    for sample in samples:
        confidences = [output.confidence for output in whole.infer(sample).outputs]
        reached = [index for index, confidence in enumerate(confidences) if confidence >= 0.8]
        answer = engine.infer(sample)
        assert len(answer.outputs) == (reached[0] + 1 if reached else len(confidences))
        assert answer.ending == "completed"
        lengths.add(len(answer.outputs))
    assert len(lengths) > 1


def test_no_resident_branch_is_a_plan_too(world: Any, samples: Any) -> None:
    [profile] = world.bundle.profiles.values()
    for planner in (
        best_static(world.bundle, profile, [], horizon_ms=5.0),
        SamplewisePlanner(world.bundle, profile, [], predictor(4), horizon_ms=5.0),
    ):
        answer = placed(world, planner).infer(samples[0])
        assert [output.branch for output in answer.outputs] == [None]
        assert answer.ending == "completed"


def test_a_result_after_the_deadline_does_not_complete_a_plan(world: Any, samples: Any) -> None:
    wants_first = StaticPlanner((True, *(False,) * 6))
    assert placed(world, wants_first, *ALL).infer(samples[0]).ending == "completed"
    assert placed(world, wants_first, *ALL).infer(samples[0], deadline_ms=0).ending == "deadline"
    assert placed(world, StaticPlanner((False,) * 7), *ALL).infer(samples[0]).outputs == ()


def test_auto_plans_sample_by_sample_only_where_that_was_found_to_pay(world: Any) -> None:
    [profile] = world.bundle.profiles.values()
    branches = [world.branch(name) for name in ALL]
    ready = predictor(4)
    law = normal_law(2.5, 1.0, horizon_ms=5.0)
    for gain, chosen in ((0.05, "samplewise"), (-0.05, "static")):
        said = Predictor(unit=UNIT, hidden=(2, 2), calibrations={}, error=0.1, gain=gain, gain_error=0.01)
        bundle = replace(world.bundle, predictor=said)
        plan = partial(planner_for, "auto", bundle, profile, branches, horizon_ms=5.0)
        planner = plan(predictor=ready)
        assert planner is not None
        assert planner.name == chosen
        for other in (plan(predictor=None), plan(predictor=ready, law=law)):
            assert other is None or other.name == "static"
