import re

import numpy as np
import pytest

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime import profiler
from meedge_ray.runtime.profiler import device_type, kept_runs, profile


def test_every_unit_has_a_time_and_the_backbone_is_left(worlds):
    world = worlds(blocks=10)  # 20 branches: more than one group
    assert len(world.bundle.branches) > profiler.GROUP
    engine = world.engine("exit0-small")
    read = []
    measured = profile(
        engine,
        world.bundle.branches,
        lambda unit: read.append(unit) or world.read(unit),
        device_type="board",
        runs=3,
    )
    assert len(measured.block_ms) == 11
    assert set(measured.branch_ms) == {branch.name for branch in world.bundle.branches}
    assert all(time_ms > 0 for time_ms in (*measured.block_ms, *measured.branch_ms.values()))
    assert len(measured.block_std_ms) == 11
    assert measured.branch_std_ms.keys() == measured.branch_ms.keys()
    assert (measured.device_type, measured.runs) == ("board", 3)
    assert re.fullmatch(r"onnxruntime [0-9.]+", measured.engine)
    assert engine.branches == ()
    assert len(set(read)) == len(read)


def test_branches_that_share_a_unit_each_have_a_time(worlds):
    world = worlds(shared=True)
    measured = profile(world.engine(), world.bundle.branches, world.read, device_type="board", runs=3)
    assert set(measured.branch_ms) == {branch.name for branch in world.bundle.branches}
    assert len(measured.block_ms) == 4


def test_a_model_without_branches_has_times_too(world):
    measured = profile(world.engine(), [], world.read, device_type="board", runs=1)
    assert len(measured.block_ms) == 4
    assert measured.branch_ms == measured.branch_std_ms == {}
    assert measured.block_std_ms == (0.0,) * 4


def test_no_runs_are_refused(world):
    with pytest.raises(InvalidInputError, match="measure nothing"):
        profile(world.engine(), [], world.read, device_type="board", runs=0)


def test_the_slowest_runs_are_left_out():
    times_ms = [*([1000.0] * 5), *([3.0] * 45), *([1.0] * 50)]
    kept = [*([1.0] * 50), *([3.0] * 45)]
    assert kept_runs(times_ms).tolist() == kept
    assert kept_runs(np.stack([times_ms, times_ms[::-1]], axis=1)).tolist() == [[time] * 2 for time in kept]
    assert kept_runs([7.0]).tolist() == [7.0]
    assert kept_runs([2.0, 1.0]).tolist() == [1.0]


def test_times_have_a_spread(world, monkeypatch):
    engine = world.engine()
    runs = iter([9.0] * profiler.WARM_UP_RUNS + [1.0, 3.0, 500.0])
    monkeypatch.setattr(engine, "unit_times", lambda sample: (np.array([next(runs)] * 4), {"exit0-small": 2.0}))
    monkeypatch.setattr(profiler, "KEPT_SHARE", 0.7)
    measured = profile(engine, [world.branch("exit0-small")], world.read, device_type="board", runs=3)
    assert (measured.block_ms, measured.block_std_ms) == ((2.0,) * 4, (1.0,) * 4)
    assert (measured.branch_ms, measured.branch_std_ms) == ({"exit0-small": 2.0}, {"exit0-small": 0.0})


def test_the_device_type_is_a_label_value_that_says_the_threads():
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", device_type())
    assert device_type(3).endswith("-3t")
    assert device_type(1) != device_type(2)
