from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load
from worlds import SHAPE, World

from meedge_ray.bundle.manifest import unit_store
from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import Bundle
from meedge_ray.train import confidences
from meedge_ray.train.confidences import measure_confidences, read_confidences, write_confidences
from meedge_ray.train.progress import silent
from meedge_ray.train.samples import Rows, Samples


@pytest.fixture(scope="module")
def samples() -> Samples:
    random = np.random.default_rng(2)
    return Samples(Rows(random.integers(0, 256, (11, *SHAPE), dtype=np.uint8)), random.integers(0, 3, 11))


@pytest.fixture
def store(world: World, tmp_path: Path) -> UnitStore:
    store = unit_store(tmp_path)
    for data in world.units.values():
        store.put(data)
    return store


def expected(world: World, samples: Samples, names: Any) -> tuple[Any, Any]:
    logits = world.logits(samples.x[:])
    exponentials = np.exp(np.stack([logits[name or None] for name in names]))
    shares = exponentials / exponentials.sum(axis=2, keepdims=True)
    return shares.max(axis=2), shares.argmax(axis=2) == samples.y


@pytest.mark.parametrize("group_bytes", [1, 2**30])
def test_every_exit_says_how_sure_and_how_right_it_is(
    group_bytes: int, world: World, store: UnitStore, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confidences, "_GROUP_BYTES", group_bytes)
    ours, theirs = world.bundle.branches[:4], world.bundle.branches[3:]
    bundle = replace(world.bundle, branches=ours, baselines={"fixed": theirs})
    said: list[tuple[float, float]] = []
    measured = measure_confidences(bundle, store, samples, lambda stage, done, total: said.append((done, total)))
    assert measured.names == (*(branch.name for branch in world.bundle.branches), "")
    confidence, right = expected(world, samples, measured.names)
    np.testing.assert_allclose(measured.confidence, confidence, atol=1e-3)
    assert (measured.right == right).all()
    assert said[-1] == (6, 6)


def test_of_many_samples_some_are_taken_all_over(
    world: World, store: UnitStore, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confidences, "_SAMPLES", 3)
    measured = measure_confidences(world.bundle, store, samples, silent)
    few = measure_confidences(world.bundle, store, samples[np.array([0, 5, 10])], silent)
    assert (measured.confidence == few.confidence).all()
    assert measured.confidence.shape == (7, 3)


def test_a_model_without_branches_has_its_final_exit(world: World, store: UnitStore, samples: Samples) -> None:
    measured = measure_confidences(replace(world.bundle, branches=()), store, samples, silent)
    assert measured.names == ("",)
    np.testing.assert_allclose(measured.confidence, expected(world, samples, [""])[0], atol=1e-3)


def test_the_unit_is_what_the_bundle_says(world: World, store: UnitStore, samples: Samples, tmp_path: Path) -> None:
    measured = measure_confidences(world.bundle, store, samples, silent)
    data = write_confidences(measured)
    tensors = load(data)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {"confidence": np.float16, "right": np.uint8}
    path = tmp_path / "unit"
    path.write_bytes(data)
    again = read_confidences(path)
    assert again.names == measured.names
    assert (again.confidence == measured.confidence).all()
    assert (again.right == measured.right).all()


def test_an_exit_gone_astray_is_sure_of_nothing() -> None:
    logits = np.array([[np.nan, 0.0], [np.inf, 0.0], [-1e4, 1e4]], np.float32)
    assert confidences._confidence(logits).tolist() == [0.0, 0.0, 1.0]


def test_a_built_bundle_has_confidences_of_all_exits(tiny: tuple[Path, Bundle]) -> None:
    directory, bundle = tiny
    assert bundle.confidences is not None
    known = {"": bundle.final_accuracy, **{branch.name: branch.accuracy for branch in bundle.branches}}
    known |= {branch.name: branch.accuracy for method in bundle.baselines.values() for branch in method}
    measured = read_confidences(unit_store(directory).path(bundle.confidences.sha256))
    assert set(measured.names) == set(known)
    for name, right in zip(measured.names, measured.right, strict=True):
        # Training saw features rounded to fp16: a sample or two may tip.
        assert right.mean() == pytest.approx(known[name], abs=0.01)
