from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load
from worlds import SHAPE, World

from meedge_ray.bundle.manifest import read_bundle, unit_store, verify_units, write_bundle
from meedge_ray.domain.elastic import Bundle
from meedge_ray.search.predictor import ConfidencePredictor
from meedge_ray.train import predictor
from meedge_ray.train.confidences import Confidences
from meedge_ray.train.predictor import TrainedPredictor, slots_of, train_predictor, with_predictor
from meedge_ray.train.progress import silent
from meedge_ray.train.samples import Rows, Samples


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "_STEPS", 200)
    monkeypatch.setattr(predictor, "_DRAWS", 1000)


def confidences(slots: list[Any], samples: int = 200, noise: float = 0.05) -> Confidences:
    """Of samples that are easy or hard everywhere; later exits and later branches of an exit are surer."""
    random = np.random.default_rng(0)
    easy = random.random(samples) * 0.4
    exits = sum(len(rows) for rows in slots)
    confidence = np.zeros((exits, samples))
    for slot, rows in enumerate(slots):
        for place, row in enumerate(rows):
            confidence[row] = easy + 0.3 * slot / len(slots) + 0.2 * place
    confidence += random.normal(0, noise, confidence.shape) * (noise > 0)
    return Confidences(
        tuple(f"exit{row}" for row in range(exits - 1)) + ("",),
        np.clip(confidence, 0, 1).astype(np.float16),
        np.ones(confidence.shape, np.bool_),
    )


def trained_on(measured: Confidences, slots: list[Any], **settings: Any) -> TrainedPredictor:
    """Train on confidences as they are."""
    sure = measured.confidence.astype(np.float32)
    return train_predictor(sure, sure, np.zeros(len(sure), np.float32), slots, **settings)


def rows_of(*counts: int) -> list[Any]:
    ends = np.cumsum(counts)
    return [np.arange(end - count, end) for count, end in zip(counts, ends, strict=True)]


def test_what_is_seen_of_a_sample_foretells_the_rest() -> None:
    slots = rows_of(2, 1, 2, 1)
    trained = trained_on(confidences(slots), slots)
    assert trained.error < 0.9 * trained.trivial_error
    ready = ConfidencePredictor.from_tensors(trained.tensors)
    means = ready.predict(np.zeros(4, np.float32), 0)
    surer = ready.predict(np.array([means[0] + 0.2, 0, 0, 0], np.float32), 1)
    assert (surer[1:] > means[1:] + 0.05).all()


def test_the_same_seed_gives_the_same_bits() -> None:
    slots = rows_of(1, 2, 1)
    one, again, other = (trained_on(confidences(slots), slots, hidden=(8, 4), seed=seed) for seed in (3, 3, 4))
    assert (one.error, one.trivial_error) == (again.error, again.trivial_error)
    assert all((one.tensors[name] == again.tensors[name]).all() for name in one.tensors)
    assert one.error != other.error


@pytest.mark.parametrize("counts", [(1,), (1, 1), (0, 1), (0, 2, 0, 1)])
@pytest.mark.parametrize("samples", [1, 2, 40])
def test_any_model_has_a_predictor(counts: tuple[int, ...], samples: int) -> None:
    slots = rows_of(*counts)
    trained = trained_on(confidences(slots, samples), slots, hidden=(6, 5))
    ready = ConfidencePredictor.from_tensors(trained.tensors)
    assert (ready.slots, ready.hidden) == (len(counts), (6, 5))
    assert 0 <= trained.error < 1


def test_constant_confidences_are_foretold_exactly() -> None:
    slots = rows_of(1, 1, 1)
    constant = Confidences(("a", "b", ""), np.full((3, 30), 0.5, np.float16), np.ones((3, 30), np.bool_))
    trained = trained_on(constant, slots)
    assert trained.trivial_error == 0
    assert trained.error < 0.02


def test_situations_are_those_an_inference_may_be_in() -> None:
    slots = rows_of(2, 0, 1, 3, 1)
    measured = confidences(slots, samples=30).confidence.astype(np.float32)
    offsets = np.linspace(-0.1, 0.1, len(measured), dtype=np.float32)
    told = measured - offsets[:, None]
    situations = predictor._Situations(told, told + 1, offsets, slots, np.arange(30))
    batch = situations.draw(np.resize(np.arange(30), 600), np.random.default_rng(0))
    has = np.array([True, False, True, True, True])
    ends = set()
    skipped = 0
    for place, (seen, label, mask, offset) in enumerate(zip(*(part.numpy() for part in batch), strict=True)):
        known = 0 if not seen.any() else max(slot for slot in range(5) if seen[slot] != 0) + 1
        ends.add(known)
        assert (mask[known:] == has[known:]).all()
        assert not seen[known:].any()
        before = 0.0
        for slot in range(known):
            # What was run is asked for too, what was skipped is not.
            assert seen[slot] == (pytest.approx(label[slot] - 1, abs=1e-6) if mask[slot] else before)
            skipped += has[slot] and not mask[slot]
            before = seen[slot]
        if known:
            assert mask[known - 1]
        for slot in np.flatnonzero(has):
            of_slot = measured[slots[slot], place % 30]
            assert np.abs(of_slot - (label - 1 + offset)[slot]).min() < 1e-6
    assert ends == {0, 1, 3, 4}  # after nothing, and after every exit that has a branch
    assert 0 < skipped < 600


def test_a_bundle_gets_both_units_and_a_build_that_goes_on_finds_them(world: World, tmp_path: Path) -> None:
    store = unit_store(tmp_path)
    for data in world.units.values():
        store.put(data)
    random = np.random.default_rng(0)
    samples = Samples(Rows(random.integers(0, 256, (40, *SHAPE), dtype=np.uint8)), random.integers(0, 3, 40))
    work = tmp_path / "work"
    bundle = with_predictor(world.bundle, store, samples, work, seed=0, report=silent)
    write_bundle(tmp_path, bundle)
    verify_units(tmp_path, bundle)
    assert read_bundle(tmp_path) == bundle
    assert bundle.predictor is not None
    ready = ConfidencePredictor.from_tensors(load(store.read(bundle.predictor.unit.sha256)))
    assert (ready.slots, ready.hidden) == (4, bundle.predictor.hidden)
    again = with_predictor(world.bundle, store, samples[:0], work, seed=0, report=silent)
    assert without_gain(again) == without_gain(bundle)


def without_gain(bundle: Bundle) -> Bundle:
    """What a decision takes is measured, and the gain depends on it."""
    assert bundle.predictor is not None
    return replace(bundle, predictor=replace(bundle.predictor, gain=0.0, gain_error=0.0))


def test_a_built_bundle_has_a_predictor(tiny: tuple[Path, Bundle]) -> None:
    directory, bundle = tiny
    assert bundle.predictor is not None
    ready = ConfidencePredictor.from_tensors(load(unit_store(directory).read(bundle.predictor.unit.sha256)))
    assert ready.slots == len(bundle.blocks)
    assert 0 < bundle.predictor.error < 0.5


def test_slots_are_exit_points_then_the_final_exit(world: World) -> None:
    names = (*(branch.name for branch in world.bundle.branches), "")
    assert [rows.tolist() for rows in slots_of(world.bundle, names)] == [[0, 1], [2, 3], [4, 5], [6]]
