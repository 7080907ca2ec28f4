"""Plans for a deadline that is known (MEEdge 3.4: finite-time inference)."""

from dataclasses import replace
from itertools import product
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.domain.elastic import Branch, Unit
from meedge_ray.runtime.cache import Cache
from meedge_ray.runtime.device import Device
from meedge_ray.runtime.exit_planning import FiniteTimePlanner, StaticPlanner
from meedge_ray.runtime.latency import WINDOW, LatencyMonitor

MS = st.floats(0.05, 5)
ACCURACY = st.integers(1, 99).map(lambda percent: percent / 100)
FACTOR = NormalDist(1.0, 0.3)  # what an inference takes, over what it takes by the profile


@st.composite
def models(draw, world):
    """The small world's bundle with other times and accuracies, up to five branches anywhere, and its profile."""
    blocks = len(world.bundle.blocks)
    names = [f"b{index}" for index in range(draw(st.integers(0, 5)))]
    branches = tuple(
        Branch(
            name=name,
            exit_index=draw(st.integers(0, blocks - 2)),
            convolution="none",
            fc="small",
            units=(Unit(sha256="0" * 64, size_bytes=1),),
            parameters=1,
            accuracy=draw(ACCURACY),
        )
        for name in names
    )
    [profile] = world.bundle.profiles.values()
    profile = replace(
        profile,
        block_ms=tuple(draw(MS) for _ in range(blocks)),
        branch_ms={name: draw(MS) for name in names},
        branch_std_ms=dict.fromkeys(names, 0.0),
    )
    return replace(world.bundle, branches=branches, final_accuracy=draw(ACCURACY)), profile


def in_order(branches):
    return sorted(branches, key=lambda branch: (branch.exit_index, branch.accuracy))


def value(bundle, profile, plan, deadline_ms):
    """What is expected of the best result at the deadline, one result after the other."""
    best = expected = spent_ms = 0.0
    for branch, runs in zip([*in_order(bundle.branches), None], plan, strict=True):
        if not runs:
            continue
        last = len(bundle.blocks) - 1 if branch is None else branch.exit_index
        spent_ms += 0.0 if branch is None else profile.branch_ms[branch.name]
        accuracy = bundle.final_accuracy if branch is None else branch.accuracy
        if accuracy > best:
            at_ms = sum(profile.block_ms[: last + 1]) + spent_ms
            expected += (accuracy - best) * FACTOR.cdf(deadline_ms / at_ms)
            best = accuracy
    return expected


def planner(bundle, profile, *, otherwise=None, monitor=None):
    return FiniteTimePlanner(bundle, profile, bundle.branches, otherwise=otherwise, monitor=monitor or LatencyMonitor())


@given(data=st.data())
def test_no_other_choice_of_exits_is_expected_to_be_better_at_the_deadline(world, data):
    bundle, profile = data.draw(models(world))
    deadline_ms = float(f"{data.draw(st.floats(0.05, 25)):.2g}")
    plan = tuple(planner(bundle, profile).begin(deadline_ms).wanted)
    best = max(value(bundle, profile, other, deadline_ms) for other in product((False, True), repeat=len(plan)))
    assert value(bundle, profile, plan, deadline_ms) == pytest.approx(best, abs=1e-9)
    assert any(plan)


def test_the_final_exit_is_gone_for_where_it_comes_in_time_and_else_the_best_before_it(world):
    [profile] = world.bundle.profiles.values()
    finite = planner(world.bundle, profile)
    assert finite.begin(60.0).wanted[-1]  # it comes after 4 ms
    assert finite.begin(3.5).wanted[-2]  # the one before takes 3.2


@pytest.mark.parametrize("deadline_ms", [0.0, 1e-6, 0.5])
def test_where_nothing_would_come_in_time_an_inference_goes_for_what_comes_first(world, deadline_ms):
    [profile] = world.bundle.profiles.values()
    assert planner(world.bundle, profile).begin(deadline_ms).wanted[0]


def test_without_a_deadline_the_plan_is_the_anytime_one(world):
    [profile] = world.bundle.profiles.values()
    static = StaticPlanner([True, False, True, False, True, False, True])
    assert planner(world.bundle, profile, otherwise=static).begin() is static
    assert list(planner(world.bundle, profile).begin(None).wanted) == [True] * 7


def test_a_device_twice_as_slow_as_profiled_plans_for_half_the_time(world):
    [profile] = world.bundle.profiles.values()
    monitor = LatencyMonitor()
    slow = planner(world.bundle, profile, monitor=monitor)
    fresh = planner(world.bundle, profile)
    assert slow.begin(4.8).wanted == fresh.begin(4.8).wanted
    for _ in range(WINDOW):
        monitor.observe(2.0, 1.0)
    assert slow.begin(4.8).wanted == fresh.begin(2.4).wanted != fresh.begin(4.8).wanted


def device_of(client, store, service):
    device = Device(Cache(client, store), "tiny", mode="finiteTime")
    device.set_memory(10**9)
    return device


def test_an_inference_with_a_deadline_runs_what_is_planned_for_it(client, store, service, samples, world):
    device = device_of(client, store, service)
    assert device.status().planner == "finiteTime"
    assert len(device.infer(samples[0]).outputs) == len(device.status().branches) + 1
    [profile] = world.bundle.profiles.values()
    resident = replace(world.bundle, branches=tuple(map(world.branch, device.status().branches)))
    plan = planner(resident, profile).begin(60_000.0).wanted
    answer = device.infer(samples[0], deadline_ms=60_000.0)
    named = zip([*(branch.name for branch in in_order(resident.branches)), None], plan, strict=True)
    assert [output.branch for output in answer.outputs] == [name for name, runs in named if runs]
    assert answer.planner == "finiteTime"


def test_a_device_whose_plans_are_too_long_for_any_result_gives_them_up(client, store, service, samples, worlds):
    # By this profile the final exit comes just in time if nothing else is run; it really takes longer, and branches
    # take far less.
    world = worlds(blocks=12)
    [profile] = world.bundle.profiles.values()
    engine = world.engine()
    final_ms = min(engine.infer(samples[0]).outputs[-1].at_ms for _ in range(500))
    profile = replace(
        profile,
        block_ms=(0.55 * final_ms / len(profile.block_ms),) * len(profile.block_ms),
        branch_ms=dict.fromkeys(profile.branch_ms, 0.2 * final_ms),
    )
    service.world = replace(world, bundle=replace(world.bundle, profiles={"board-1t": profile}))
    device = device_of(client, store, service)
    labels = [device.infer(samples[0], deadline_ms=0.6 * final_ms).label for _ in range(300)]
    assert any(label is not None for label in labels)


def test_a_deadline_that_nothing_can_meet_teaches_nothing(client, store, service, samples):
    device = device_of(client, store, service)
    for _ in range(3 * WINDOW):
        assert device.infer(samples[0], deadline_ms=0.0).label is None
        assert device.infer(samples[0], deadline_ms=1e-4).label is None
    assert device.infer(samples[0], deadline_ms=60_000.0).outputs[-1].branch is None
