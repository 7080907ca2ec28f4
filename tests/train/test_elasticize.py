"""A build's supernet: trained as a task, in the bundle with its losses and times, exits working on its subnets."""

from pathlib import Path

import numpy as np
import pytest

from meedge_ray.api.elastic_model import ElasticModel
from meedge_ray.bundle.manifest import unit_store, verify_units
from meedge_ray.cli.output import Bars
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import InvalidInputError, MeedgeError
from meedge_ray.runtime.adaptation import Adapter
from meedge_ray.runtime.loading import load_engine, unit_reader
from meedge_ray.runtime.placing import Placer
from meedge_ray.runtime.subnets import subnet_space
from meedge_ray.train.build import build
from meedge_ray.train.data import load_data
from meedge_ray.train.manifest import Manifest
from meedge_ray.train.tasks import run_in_turn

SUPERNET = {
    "mergedBlocks": 2,
    "shrunk": ["0.5"],
    "distillation": {"epochs": 2, "learningRate": "0.003"},
    "tuning": {"epochs": 1, "learningRate": "0.001"},
    "granularityPercent": 100,  # two thirds of so small a network are its last block
    "batchSize": 64,
}


def manifest(base: Path, **spec: object) -> Manifest:
    content = {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "ElasticModel",
        "metadata": {"name": "grown"},
        "spec": {
            "model": {"architecture": "resnet8", "pretrain": {"epochs": 2, "learningRate": "0.005"}},
            "data": {"trainSamples": 400},
            "zoo": {"convolutions": [{"kind": "none"}], "fullyConnected": [{"pooledSize": 2}]},
            "cultivation": {"epochs": 2, "learningRate": "0.01"},
            "sharing": None,
            "supernet": SUPERNET,
        }
        | spec,
    }
    return Manifest(ElasticModel.model_validate(content), base)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    folder = tmp_path_factory.mktemp("grown")
    return folder / "bundle", build(manifest(folder), folder / "bundle")


def samples(base: Path) -> tuple[np.ndarray, np.ndarray]:
    dataset = load_data(manifest(base).model.spec.data, base)
    batch = dataset.test[np.arange(100)]
    return batch.x, batch.y


def test_every_variant_has_its_unit_time_and_loss(grown: tuple[Path, Bundle]) -> None:
    directory, bundle = grown
    verify_units(directory, bundle)
    # Three basic blocks: one shrunk block for each, and two merged pairs.
    assert sorted(variant.kind for variant in bundle.variants) == ["merged"] * 2 + ["shrunk"] * 3
    assert subnet_space(bundle).count == 2**3 + 2 * 2
    [profile] = bundle.profiles.values()
    assert set(profile.variant_ms) == {variant.name for variant in bundle.variants}
    assert all(-1 <= variant.accuracy_loss <= 1 for variant in bundle.variants)


def test_the_original_path_is_the_backbone_bit_for_bit(grown: tuple[Path, Bundle], tmp_path: Path) -> None:
    alone = build(manifest(tmp_path, supernet=None), tmp_path / "alone")
    assert [block.unit for block in grown[1].blocks] == [block.unit for block in alone.blocks]
    assert grown[1].final_accuracy == alone.final_accuracy


def test_a_killed_build_finds_the_supernet_again(tmp_path: Path, grown: tuple[Path, Bundle]) -> None:
    class KilledError(Exception):
        pass

    def killed_in_tuning(stage: str, done: float, total: float, detail: str = "") -> None:
        if stage == "elasticize" and done > 2 / 3:
            raise KilledError

    with pytest.raises(KilledError):
        build(manifest(tmp_path), tmp_path / "bundle", report=killed_in_tuning)
    again = build(manifest(tmp_path), tmp_path / "bundle", run=run_in_turn)
    assert [variant.unit for variant in again.variants] == [variant.unit for variant in grown[1].variants]


def test_a_subnet_is_a_bundle_that_is_placed_and_run_like_any_other(grown: tuple[Path, Bundle], tmp_path: Path) -> None:
    directory, bundle = grown
    x, y = samples(tmp_path)
    store = unit_store(directory)
    adapter = Adapter(bundle, store, x, y, link_ms=np.ones(len(bundle.links)))
    # 4 of 5 links: one merged block stands for two.
    chosen = adapter.adapt(4.0)
    assert len(chosen.subnet) == 4
    assert chosen.accuracy == pytest.approx(adapter.evaluator([chosen.subnet])[0])
    adapted = adapter.adapted(chosen.subnet)
    assert adapted.final_accuracy == chosen.accuracy
    placement = Placer(adapted).points()[-1]
    engine = load_engine(store, adapted.input, adapted.blocks, adapted.final_accuracy)
    engine.place(adapted.branches, unit_reader(store))
    logits = engine.infer_batch(x)
    for branch in adapted.branches:
        assert branch.accuracy == pytest.approx((logits[branch.name].argmax(1) == y).mean())
    assert set(placement.branches) <= {branch.name for branch in adapted.branches}
    assert engine.infer(x[0]).outputs[-1].branch is None


def test_without_a_zoo_a_supernet_is_all_there_is(tmp_path: Path) -> None:
    with Bars() as bars:  # as a user builds
        bundle = build(manifest(tmp_path, zoo=None), tmp_path / "bundle", report=bars)
    assert bundle.branches == ()
    assert len(bundle.variants) == 5


def test_a_model_with_nothing_to_replace_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    def trained(stage: str, done: float, total: float, detail: str = "") -> None:
        raise AssertionError(f"{stage} was begun")

    few = {**SUPERNET, "granularityPercent": 1}
    with pytest.raises(MeedgeError) as error:
        build(manifest(tmp_path, supernet=few), tmp_path / "bundle", report=trained)
    assert error.value.where.startswith("spec.supernet")


def test_a_bundle_without_variants_cannot_be_adapted(tiny: tuple[Path, Bundle]) -> None:
    directory, bundle = tiny
    with pytest.raises(InvalidInputError, match="no lighter blocks"):
        Adapter(bundle, unit_store(directory), np.zeros((1, *bundle.input.shape)))
