import dataclasses
import gc

import numpy as np
import psutil
import pytest
from supernets import make_supernet
from worlds import CHANNELS, CLASSES, SHAPE, block_bytes

from meedge_ray.bundle.store import sha256_of
from meedge_ray.domain.elastic import Unit
from meedge_ray.domain.errors import InvalidInputError, MeedgeError, NotFoundError
from meedge_ray.runtime import resident
from meedge_ray.runtime.subnet_evaluation import SubnetEvaluator

SAMPLES = 50
LINK_MS = [1.0] * 10
ORIGINAL = (0, 1, 2, 3)
EVERY = [
    (first, *rest)
    for first, place in ((0, 1), (4, 1), (7, 2), (9, 3))
    for rest in {1: [(1, 2, 3), (5, 6, 3), (8, 3), (1, 6, 3)], 2: [(2, 3), (6, 3)], 3: [(3,)]}[place]
]
FEATURE_BYTES = CHANNELS * 4 * 4 * 4


@pytest.fixture(scope="module")
def supernet():
    return make_supernet(3)


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (SAMPLES, *SHAPE), dtype=np.uint8), random.integers(0, CLASSES, SAMPLES)


@pytest.fixture
def evaluator(supernet, data):
    """Makes one; options replace the usual arguments."""

    def make(**options):
        arguments = {
            "links": supernet.bundle.links,
            "read": supernet.read,
            "input_spec": supernet.bundle.input,
            "samples": data[0],
            "labels": data[1],
            "link_ms": LINK_MS,
            "cache_bytes": 10**6,
            "batch": 16,
        }
        return SubnetEvaluator(**arguments | options)

    return make


def classes_of(supernet, subnet, samples):
    return supernet.engine(*subnet).infer_batch(samples)[None].argmax(axis=1)


@pytest.mark.parametrize("cache_bytes", [0, 16 * FEATURE_BYTES, 10**6])
@pytest.mark.parametrize("batch", [7, 64])
def test_every_subnet_is_as_accurate_as_it_is_alone(supernet, evaluator, data, cache_bytes, batch):
    samples, labels = data
    accuracies = evaluator(cache_bytes=cache_bytes, batch=batch)(EVERY)
    expected = [float(np.mean(classes_of(supernet, subnet, samples) == labels)) for subnet in EVERY]
    assert accuracies == expected
    assert len(set(accuracies)) > 3


def test_a_subnet_s_classes_can_be_had(supernet, evaluator, data):
    made = evaluator()
    assert np.array_equal(made.predicted((7, 6, 3)), classes_of(supernet, (7, 6, 3), data[0]))


def test_without_labels_the_original_judges(supernet, evaluator, data):
    made = evaluator(labels=None)
    assert made.evaluated == 1
    original = classes_of(supernet, ORIGINAL, data[0])
    agreed = float(np.mean(classes_of(supernet, (9, 3), data[0]) == original))
    assert made([ORIGINAL, (9, 3)]) == [1.0, agreed]


def test_common_beginnings_run_once_where_memory_allows(evaluator, monkeypatch):
    runs = []
    load = resident.load_unit

    def counted(data, *, name, threads):
        session = load(data, name=name, threads=threads)

        def run(*arguments):
            runs.append(name)
            return session.run(*arguments)

        return session._replace(run=run)

    monkeypatch.setattr(resident, "load_unit", counted)
    group = [(0, 1, 2, 3), (0, 1, 6, 3), (0, 8, 3)]
    counts = {}
    for cache_bytes in (0, 10**6):
        made = evaluator(cache_bytes=cache_bytes)
        made(group)  # runs every unit once more, to see that it fits
        runs.clear()
        made(group)
        counts[cache_bytes] = len(runs)
    batches = -(-SAMPLES // 16)
    prefixes = {subnet[:length] for subnet in group for length in range(1, len(subnet) + 1)}
    assert counts == {0: sum(map(len, group)) * batches, 10**6: len(prefixes) * batches}


def test_only_the_units_of_the_group_are_loaded_and_those_held_are_not_read_again(supernet, evaluator):
    asked = []

    def read(unit):
        asked.append(unit)
        return supernet.read(unit)

    made = evaluator(read=read)
    units = [link.unit for link in supernet.bundle.links]
    assert asked == units[:4]  # for the shapes
    asked.clear()
    made([(0, 1, 2, 3)])
    assert asked == units[:4]
    asked.clear()
    made([(0, 5, 2, 3), (0, 8, 3)])
    assert asked == [units[5], units[8]]
    asked.clear()
    made([(0, 1, 2, 3)])
    assert asked == [units[1]]


def test_what_a_group_does_not_need_is_freed(supernet, evaluator, monkeypatch):
    alive = set()
    load = resident.load_unit

    class Watched:
        def __init__(self, run, name):
            self.run, self.name = run, name
            alive.add(name)

        def __call__(self, *arguments):
            return self.run(*arguments)

        def __del__(self):
            alive.discard(self.name)

    def watched(data, *, name, threads):
        session = load(data, name=name, threads=threads)
        return session._replace(run=Watched(session.run, name))

    monkeypatch.setattr(resident, "load_unit", watched)
    names = [f"link {link.name}" for link in supernet.bundle.links]
    made = evaluator()
    gc.collect()
    assert alive == set()
    made([(7, 2, 3), (9, 3)])
    gc.collect()
    assert alive == {names[link] for link in (7, 2, 3, 9)}
    made([(9, 3)])
    gc.collect()
    assert alive == {names[9], names[3]}


def test_subnets_and_seconds_are_counted(evaluator):
    made = evaluator()
    assert (made.evaluated, made.seconds) == (0, 0.0)
    made(EVERY)
    before = made.seconds
    assert (made.evaluated, before > 0) == (len(EVERY), True)
    made([ORIGINAL])
    assert (made.evaluated, made.seconds > before) == (len(EVERY) + 1, True)


def test_no_subnets_have_no_accuracies(evaluator):
    assert evaluator()([]) == []


def test_equal_subnets_are_equally_accurate(evaluator):
    first, other, again = evaluator()([(9, 3), ORIGINAL, (9, 3)])
    assert first == again != other


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samples": np.zeros((0, *SHAPE))}, "no samples"),
        ({"samples": []}, "no samples"),
        ({"samples": 3}, "no samples|shape"),
        ({"samples": np.zeros((SAMPLES, 3, 4, 4))}, "shape"),
        ({"samples": np.zeros(SHAPE)}, "shape"),
        ({"samples": np.full((SAMPLES, *SHAPE), np.nan)}, "not finite"),
        ({"samples": np.array(["x"] * SAMPLES)}, "numbers"),
        ({"samples": [[1], [2, 3]]}, "no array"),
        ({"labels": [0] * (SAMPLES - 1)}, f"expected are {SAMPLES} whole numbers"),
        ({"labels": [0.5] * SAMPLES}, "whole numbers"),
        ({"labels": [True] * SAMPLES}, "whole numbers"),
        ({"labels": [[0], [1, 2]]}, "no array"),
        ({"labels": [0] * (SAMPLES - 1) + [CLASSES]}, f"sample {SAMPLES - 1} has label {CLASSES}.*0 to {CLASSES - 1}"),
        ({"labels": [-1] * SAMPLES}, "sample 0 has label -1"),
    ],
)
def test_data_that_cannot_be_used_is_refused_with_what_to_do(evaluator, change, says):
    with pytest.raises(InvalidInputError, match=says) as caught:
        evaluator(**change)
    assert caught.value.where == "data"
    assert caught.value.do


def test_a_value_that_is_not_finite_is_found_in_any_batch(evaluator, data):
    samples = data[0].astype(np.float32)
    samples[-1, 0, 0, 0] = np.inf
    with pytest.raises(InvalidInputError) as caught:
        evaluator(samples=samples)
    assert caught.value.where == "data"


@pytest.mark.parametrize("cache_bytes", [-1, 4 * psutil.virtual_memory().total])
def test_memory_that_is_not_there_is_refused(evaluator, cache_bytes):
    with pytest.raises(InvalidInputError, match="available") as caught:
        evaluator(cache_bytes=cache_bytes)
    assert caught.value.where == "cache_bytes"


def test_a_batch_of_nothing_is_refused(evaluator):
    with pytest.raises(InvalidInputError) as caught:
        evaluator(batch=0)
    assert caught.value.where == "batch"


def test_what_is_no_subnet_is_refused(evaluator):
    with pytest.raises(InvalidInputError) as caught:
        evaluator()([(0, 3)])
    assert caught.value.where == "subnet"


def test_a_variant_that_does_not_fit_its_place_is_refused_by_name_and_the_next_group_runs(supernet, evaluator):
    narrow = block_bytes(np.ones((CHANNELS - 1, CHANNELS), np.float32))
    unit = Unit(sha256=sha256_of(narrow), size_bytes=len(narrow))
    links = [*supernet.bundle.links]
    links[5] = dataclasses.replace(links[5], unit=unit)
    made = evaluator(links=links, read=lambda wanted: narrow if wanted == unit else supernet.read(wanted))
    with pytest.raises(InvalidInputError) as caught:
        made([(0, 5, 2, 3)])
    assert caught.value.where == f"link {links[5].name}"
    assert made([ORIGINAL]) == evaluator()([ORIGINAL])


def test_a_unit_that_cannot_be_had_is_said_and_nothing_is_counted(supernet, evaluator):
    away = supernet.bundle.links[8].unit

    def read(unit):
        if unit == away:
            raise NotFoundError("there is no such unit", where=unit.sha256)
        return supernet.read(unit)

    made = evaluator(read=read)
    with pytest.raises(MeedgeError):
        made([(0, 8, 3)])
    assert made.evaluated == 0
    assert made([ORIGINAL]) == evaluator()([ORIGINAL])
