import gc
import threading

import numpy as np
import pytest
from supernets import make_supernet
from worlds import block_bytes, head_bytes

from meedge_ray.domain.elastic import Block, Unit, bytes_of
from meedge_ray.domain.errors import InvalidInputError, NotFoundError
from meedge_ray.runtime.engine import Body, Engine
from meedge_ray.runtime.memory import release_to_os, rss_bytes
from meedge_ray.runtime.subnets import subnet_bundle

SUBNETS = ((0, 1, 2, 3), (4, 1, 6, 3), (0, 8, 3), (9, 3))


@pytest.fixture(scope="module")
def supernet():
    return make_supernet()


@pytest.fixture(scope="module")
def sample(supernet):
    return np.random.default_rng(5).integers(0, 256, supernet.bundle.input.shape)


def absent(unit):
    raise NotFoundError("gone")


def test_an_engine_says_what_the_placed_body_says(supernet, sample):
    engine = supernet.engine(*SUBNETS[0])
    for subnet in SUBNETS[1:]:
        engine.place((), supernet.read, body=supernet.body(*subnet))
        expected = supernet.engine(*subnet).infer(sample)
        answer = engine.infer(sample)
        assert answer.confidences == expected.confidences
        assert (answer.exit_index, answer.ending) == (len(subnet) - 1, "completed")
        assert len(engine.unit_times(sample)[0]) == len(subnet)
        batch = engine.infer_batch(sample[None])[None]
        np.testing.assert_array_equal(batch, supernet.engine(*subnet).infer_batch(sample[None])[None])


def test_a_switch_loads_and_holds_only_what_the_new_body_needs(supernet):
    engine, asked = supernet.engine(0, 1, 2, 3), []

    def read(unit):
        asked.append(unit)
        return supernet.read(unit)

    engine.place((), read, body=supernet.body(0, 8, 3))
    assert asked == [supernet.bundle.links[8].unit]
    assert engine.resident_bytes == supernet.size_bytes(0, 8, 3)
    engine.place((), read, body=supernet.body(4, 1, 2, 3))
    assert asked[1:] == [supernet.bundle.links[link].unit for link in (4, 1, 2)]
    assert engine.resident_bytes == supernet.size_bytes(4, 1, 2, 3)


def test_a_body_stays_until_another_is_placed(supernet, sample):
    engine = supernet.engine(0, 1, 2, 3)
    engine.place((), supernet.read, body=supernet.body(9, 3))
    engine.place((), absent)
    assert engine.infer(sample).confidences == supernet.engine(9, 3).infer(sample).confidences


def test_kept_units_are_held_and_need_no_loading(supernet, sample):
    engine = supernet.engine(0, 1, 2, 3)
    kept = [supernet.bundle.links[link].unit for link in (4, 9, 3)]
    engine.place((), supernet.read, body=supernet.body(0, 8, 3), keep=kept)
    assert engine.resident_bytes == supernet.size_bytes(0, 8, 3, 4, 9)
    engine.place((), absent, body=supernet.body(9, 3), keep=[supernet.bundle.links[0].unit])
    assert engine.resident_bytes == supernet.size_bytes(9, 3, 0)
    assert engine.infer(sample).confidences == supernet.engine(9, 3).infer(sample).confidences
    engine.place((), absent)
    assert engine.resident_bytes == supernet.size_bytes(9, 3)


def test_branches_belong_to_the_body_placed_with_them(supernet, sample):
    engine = supernet.engine(0, 1, 2, 3)
    bundle = subnet_bundle(supernet.bundle, (0, 8, 3), final_accuracy=0.8)
    body = Body(bundle.blocks, bundle.final_accuracy)
    engine.place(bundle.branches, supernet.read, body=body)
    answer = engine.infer(sample)
    names = ["exit0-small", "exit0-large", "exit2-small", "exit2-large", None]
    assert [output.branch for output in answer.outputs] == names
    assert [output.exit_index for output in answer.outputs] == [0, 0, 1, 1, 2]
    assert engine.resident_bytes == bundle.backbone_bytes + bytes_of(bundle.branches)
    engine.place((), absent)
    assert engine.infer(sample).confidences == supernet.engine(0, 8, 3).infer(sample).confidences


def test_the_accuracy_of_the_body_decides_about_its_result(supernet, sample):
    engine = supernet.engine(0, 1, 2, 3)
    branch = supernet.world.branch("exit0-small")
    for accuracy, best in ((0.1, branch.name), (0.9, None)):
        engine.place([branch], supernet.read, body=supernet.body(0, 8, 3, accuracy=accuracy))
        assert engine.infer(sample).branch == best


def made(index, data, units):
    """A block of these bytes."""
    unit = Unit(sha256=f"{index}" * 64, size_bytes=len(data))
    units[unit.sha256] = data
    return Block(name=f"made{index}", unit=unit, input_shape=(), output_shape=(), parameters=1, flops=1)


def test_a_body_that_cannot_be_used_leaves_the_old_one(supernet, sample):
    units = dict(supernet.units)
    blocks = supernet.bundle.blocks
    other_classes = made(1, head_bytes(np.ones((64, 7), np.float32)), units)
    narrow = made(2, block_bytes(np.ones((2, 2), np.float32)), units)
    broken = made(3, b"no model", units)
    engine = supernet.engine(*SUBNETS[0])
    expected = engine.infer(sample).confidences
    for chain, where, said in (
        ((), "blocks", "at least one block"),
        ((*blocks[:3], other_classes), "block made1", "returns shape"),
        ((narrow, *blocks[1:]), "block block1", "cannot run on"),
        (blocks[:3], "block block2", "expected are logits"),
        ((*blocks[:3], broken), "block made3", "cannot load"),
    ):
        with pytest.raises(InvalidInputError, match=said) as error:
            engine.place((), lambda unit: units[unit.sha256], body=Body(chain, 0.5))
        assert error.value.where == where
    with pytest.raises(InvalidInputError, match="no exit point 2") as error:
        engine.place([supernet.world.branch("exit2-small")], supernet.read, body=supernet.body(0, 8, 3))
    with pytest.raises(NotFoundError):
        engine.place((), absent, body=supernet.body(9, 3))
    with pytest.raises(NotFoundError):
        engine.place((), absent, keep=[supernet.bundle.links[9].unit])
    assert engine.infer(sample).confidences == expected
    assert engine.resident_bytes == supernet.size_bytes(*SUBNETS[0])


def test_a_resident_branch_is_checked_at_its_place_in_another_body(supernet):
    wide = block_bytes(np.ones((5, 2), np.float32))
    units = dict(supernet.units)
    body = Body((made(1, wide, units), made(2, head_bytes(np.ones((80, 3), np.float32)), units)), 0.5)
    branch = supernet.world.branch("exit0-small")  # takes 4 channels, not 5
    engine = supernet.world.engine(branch.name)
    with pytest.raises(InvalidInputError, match="cannot run on") as error:
        engine.place([branch], lambda unit: units[unit.sha256], body=body)
    assert error.value.where == "branch exit0-small"
    assert engine.branches == (branch.name,)


def test_a_unit_that_comes_twice_is_loaded_once(supernet, sample):
    first, second, _, head = supernet.world.blocks
    engine = Engine(supernet.bundle.input, iter([first, second, second, head]), final_accuracy=0.5)
    assert engine.resident_bytes == len(first) + len(second) + len(head)
    assert len(engine.unit_times(sample)[0]) == 4


def test_every_inference_sees_one_body_while_bodies_are_exchanged(supernet, sample):
    bundles = [subnet_bundle(supernet.bundle, subnet, final_accuracy=0.99) for subnet in SUBNETS]
    engine = supernet.engine(*SUBNETS[0])
    expected = set()
    for bundle in bundles:
        engine.place(bundle.branches, supernet.read, body=Body(bundle.blocks, bundle.final_accuracy))
        answer = engine.infer(sample)
        labels = tuple((output.branch, output.exit_index, output.label) for output in answer.outputs)
        expected.add((answer.confidences, labels))
    assert len(expected) == len(SUBNETS)
    done, seen, failures = threading.Event(), [], []

    def infer():
        try:
            while not done.is_set():
                answer = engine.infer(sample)
                assert answer.ending == "completed"
                labels = tuple((output.branch, output.exit_index, output.label) for output in answer.outputs)
                seen.append((answer.confidences, labels))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=infer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        bundle = bundles[turn % len(bundles)]
        body = Body(bundle.blocks, bundle.final_accuracy)
        keep = [link.unit for link in supernet.bundle.links] if turn % 3 == 0 else ()
        engine.place(bundle.branches, supernet.read, body=body, keep=keep)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert set(seen) <= expected
    assert engine.resident_bytes == bundle.backbone_bytes + bytes_of(bundle.branches)


def test_a_body_that_was_replaced_gives_its_memory_back():
    supernet = make_supernet()
    units = dict(supernet.units)
    heavy = made(1, head_bytes(np.ones((64, 3), np.float32), ballast=80_000), units)  # 20 MB
    engine = supernet.engine(*SUBNETS[0])
    light = supernet.body(*SUBNETS[0])
    gc.collect()
    release_to_os()
    before = rss_bytes()
    engine.place((), lambda unit: units[unit.sha256], body=Body((*light.blocks[:3], heavy), 0.5))
    assert engine.resident_bytes > 20_000_000
    assert rss_bytes() - before > 15_000_000
    engine.place((), supernet.read, body=light)
    assert rss_bytes() - before < 8_000_000
