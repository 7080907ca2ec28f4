"""Branches whose first unit is one and the same."""

from collections import ChainMap, Counter
from dataclasses import replace
from time import sleep

import numpy as np
import pytest
from worlds import branch_bytes

from meedge_ray.bundle.store import sha256_of
from meedge_ray.domain.elastic import Unit, bytes_of
from meedge_ray.domain.errors import InvalidInputError

ALL = ("exit0-small", "exit0-large", "exit1-small", "exit1-large", "exit2-small", "exit2-large")


@pytest.fixture(scope="module")
def world(worlds):
    return worlds(shared=True)


def self_contained(world, name):
    """A branch of one unit that says what `name` says in two."""
    branch = world.branch(name)
    data = branch_bytes(world.convolution_weights[branch.exit_index], world.head_weights[name])
    unit = Unit(sha256=sha256_of(data), size_bytes=len(data))
    return replace(branch, units=(unit,)), {unit: data}


def runs(engine, sample):
    """How often an inference runs each resident unit of the branches, by SHA-256."""
    counts, placed = Counter(), engine._placed
    units = {placed.units[unit].run: unit.sha256 for branch in placed.branches for unit in branch.units}

    def counted(run):
        def count(*arguments):
            counts.update([units[run]] if run in units else [])
            return run(*arguments)

        return count

    engine._placed = replace(placed, steps=tuple(step._replace(run=counted(step.run)) for step in placed.steps))
    engine.infer(sample)
    engine._placed = placed
    return counts


def test_branches_that_share_a_unit_say_what_self_contained_ones_say(world, samples):
    whole = world.engine()
    branches, units = zip(*(self_contained(world, name) for name in ALL), strict=True)
    whole.place(branches, ChainMap(*units).__getitem__)
    shared = world.engine(*ALL)
    expected, reference = whole.infer_batch(samples), world.logits(samples)
    for name, logits in shared.infer_batch(samples).items():
        np.testing.assert_allclose(logits, expected[name], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(logits, reference[name], atol=1e-4)
    ours, theirs = shared.infer(samples[0]), whole.infer(samples[0])
    assert [output.branch for output in ours.outputs] == [output.branch for output in theirs.outputs] == [*ALL, None]
    for our, their in zip(ours.outputs, theirs.outputs, strict=True):
        assert our.label == their.label
        assert our.confidence == pytest.approx(their.confidence, abs=1e-6)


def test_a_shared_unit_is_loaded_once_and_run_once(world, samples):
    engine, asked = world.engine(), []
    branches = [world.branch(name) for name in ALL]
    engine.place(branches, lambda unit: asked.append(unit) or world.read(unit))
    assert len(asked) == len(set(asked)) == 9  # 3 exits: a convolution and two heads each
    assert engine.resident_bytes == world.bundle.backbone_bytes + bytes_of(branches)
    assert runs(engine, samples[0]) == {unit.sha256: 1 for unit in asked}


def test_a_shared_unit_stays_as_long_as_a_branch_needs_it(world, samples):
    small, large = world.branch("exit1-small"), world.branch("exit1-large")
    engine, asked = world.engine("exit1-small", "exit1-large"), []
    for wanted, loads in (
        ([large], []),  # dropped with the other, kept with this one
        ([small, large], [small.units[1]]),
        ([], []),
        ([small], [*small.units]),
    ):
        engine.place(wanted, lambda unit: asked.append(unit) or world.read(unit))
        assert asked == loads
        assert engine.resident_bytes == world.bundle.backbone_bytes + bytes_of(wanted)
        assert len(engine.infer(samples[0]).outputs) == len(wanted) + 1
        asked.clear()


def test_one_unit_at_two_exits_is_loaded_once_and_run_at_both(world, samples):
    first, second = world.branch("exit0-small"), world.branch("exit1-small")
    moved = replace(second, units=(first.units[0], second.units[1]))
    engine = world.engine()
    engine.place([first, moved], world.read)
    assert runs(engine, samples[0]) == {first.units[0].sha256: 2, first.units[1].sha256: 1, second.units[1].sha256: 1}
    assert engine.resident_bytes == world.bundle.backbone_bytes + bytes_of([first, moved])


def test_a_shared_unit_counts_in_the_time_of_every_branch(world, samples):
    engine = world.engine(*ALL)

    placed = engine._placed
    convolution = placed.units[world.branch("exit1-small").units[0]].run

    def slow(*arguments):
        sleep(0.02)
        return convolution(*arguments)

    steps = tuple(step._replace(run=slow) if step.run == convolution else step for step in placed.steps)
    engine._placed = replace(placed, steps=steps)
    block_ms, branch_ms = engine.unit_times(samples[0])
    assert block_ms.shape == (4,)
    assert list(branch_ms) == list(ALL)
    assert branch_ms["exit1-small"] > 20
    assert branch_ms["exit1-large"] > 20


def test_units_that_do_not_follow_each_other_are_refused_by_name(world):
    engine, branch = world.engine("exit0-small"), world.branch("exit1-large")
    convolution, head = branch.units
    for units, said in (
        ((head, convolution), "cannot run on an input of shape"),
        ((convolution,), "it returns shape"),
        ((convolution, convolution), "it returns shape"),
    ):
        with pytest.raises(InvalidInputError, match=said) as error:
            engine.place([replace(branch, units=units)], world.read)
        assert error.value.where == "branch exit1-large"
    assert engine.branches == ("exit0-small",)
