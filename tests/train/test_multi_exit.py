import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from meedge_ray.bundle.manifest import read_bundle, unit_store, verify_units
from meedge_ray.cli.main import main
from meedge_ray.domain.elastic import Branch, Bundle
from meedge_ray.nn.multi_exit import MultiExit, own_heads
from meedge_ray.nn.partition import partition
from meedge_ray.nn.source import load_model, save_weights
from meedge_ray.runtime.loading import load_engine, unit_reader
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.train.build import build
from meedge_ray.train.data import load_data
from meedge_ray.train.manifest import Manifest, read_manifest
from meedge_ray.train.progress import Report
from meedge_ray.train.tasks import Task

PRETRAIN = {"epochs": 2, "batchSize": 64, "learningRate": "0.01"}
MSDNET = {"architecture": "msdnet", "arguments": {"blocks": 4, "step": 1, "base": 1, "channels": 4}}
EXITS = {"fullyConnected": {"pooledSize": 4, "hidden": [8]}}
ZOO = {"convolutions": [{"kind": "none"}], "fullyConnected": [{"pooledSize": 1}, {"pooledSize": 1, "hidden": [12]}]}


class KilledError(Exception):
    pass


def never(tasks: Sequence[Task], report: Report) -> None:
    raise AssertionError("nothing is cultivated")


def written(folder: Path, model: dict[str, object], **spec: object) -> Path:
    document = {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "ElasticModel",
        "metadata": {"name": "tiny"},
        "spec": {"model": model, "data": {"source": "digits"}, **spec},
    }
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def declared(folder: Path, model: dict[str, object], **spec: object) -> Manifest:
    return read_manifest(written(folder, model, **spec))


def validation_logits(folder: Path, bundle: Bundle, branches: Sequence[Branch]) -> dict[str | None, np.ndarray]:
    store = unit_store(folder)
    engine = load_engine(store, bundle.input, bundle.blocks, bundle.final_accuracy)
    engine.place(branches, unit_reader(store))
    return engine.infer_batch(validation(folder).x)


def validation(folder: Path):
    return load_data(declared(folder.parent, {**MSDNET, "pretrain": PRETRAIN}).model.spec.data, folder).validation


@pytest.fixture(scope="module")
def msdnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    folder = tmp_path_factory.mktemp("msdnet") / "bundle"
    manifest = declared(folder.parent, {**MSDNET, "pretrain": PRETRAIN}, zoo=None)
    return folder, build(manifest, folder, run=never)


def test_a_multi_exit_module_becomes_a_bundle_of_its_own_exits(msdnet: tuple[Path, Bundle]) -> None:
    folder, bundle = msdnet
    verify_units(folder, bundle)
    assert read_bundle(folder) == bundle
    assert len(bundle.blocks) == 4
    together = bundle.baselines["trained_together"]
    assert set(bundle.baselines) == {"trained_together"}
    assert [(branch.name, branch.convolution, branch.fc) for branch in together] == [
        (f"e0{index}.own", "own", "own") for index in range(3)
    ]
    assert {branch.name for branch in bundle.branches} | {gone.name for gone in bundle.eliminated} == {
        branch.name for branch in together
    }
    assert set(bundle.profiles[next(iter(bundle.profiles))].branch_ms) == {branch.name for branch in together}
    assert min(branch.accuracy for branch in together) > 0.5


def test_its_exits_are_as_accurate_as_the_bundle_says(msdnet: tuple[Path, Bundle]) -> None:
    folder, bundle = msdnet
    together = bundle.baselines["trained_together"]
    known = {None: bundle.final_accuracy, **{branch.name: branch.accuracy for branch in together}}
    labels = validation(folder).y
    for name, logits in validation_logits(folder, bundle, together).items():
        assert (logits.argmax(1) == labels).mean() == pytest.approx(known[name], abs=0.005)


def test_weights_from_a_file_bring_the_classifiers_with_them(msdnet: tuple[Path, Bundle], tmp_path: Path) -> None:
    manifest = declared(tmp_path, {**MSDNET, "pretrain": PRETRAIN})
    network = load_model(manifest.model.spec.model, input_shape=(1, 8, 8), classes=10, base_dir=tmp_path)
    save_weights(network, tmp_path / "own.safetensors")
    bundle = build(declared(tmp_path, {**MSDNET, "weights": "own.safetensors"}, zoo=None), tmp_path / "bundle")
    together = bundle.baselines["trained_together"]
    said = validation_logits(tmp_path / "bundle", bundle, together)
    chain = partition(network, (1, 8, 8))
    whole = MultiExit((piece.module for piece in chain.pieces), (head.module for head in own_heads(network))).eval()
    x = Normalizer(bundle.input).batch(validation(msdnet[0]).x[:])
    with torch.no_grad():
        expected = whole(torch.from_numpy(x))
    for name, logits in zip([*(branch.name for branch in together), None], expected, strict=True):
        np.testing.assert_allclose(said[name], logits.numpy(), rtol=1e-4, atol=1e-4)


def test_heads_trained_together_stand_beside_the_cultivated(tmp_path: Path) -> None:
    model = {"architecture": "resnet8", "pretrain": {**PRETRAIN, "exits": EXITS}}
    manifest = declared(tmp_path, model, zoo=ZOO, cultivation={"epochs": 1}, sharing={"epochs": 0})
    bundle = build(manifest, tmp_path / "bundle")
    together = [branch.name for branch in bundle.baselines["trained_together"]]
    assert together == [
        "e00.standard3.pool4-fc8.together",
        "e01.standard3.pool4-fc8.together",
        "e02.standard3.pool4-fc8.together",
        "e03.standard3.pool2-fc8.together",
    ]
    assert set(bundle.baselines) == {"trained_together", "multi_exit_fc", "einet", "spinn", "branchynet"}
    offered = {branch.name for branch in bundle.branches} | {gone.name for gone in bundle.eliminated}
    assert offered >= {*together, "e00.none.pool1", "e00.none.pool1-fc12"}
    assert not any("together.merged" in name for name in offered)


def test_a_killed_build_finds_its_heads_again(tmp_path: Path) -> None:
    model = {"architecture": "lenet", "pretrain": {**PRETRAIN, "epochs": 1, "exits": EXITS}}
    manifest = declared(tmp_path, model, zoo=None, data={"source": "digits", "imageSize": 16, "trainSamples": 200})

    def killed(stage: str, done: int, total: int, detail: str = "") -> None:
        if stage == "export blocks":
            raise KilledError

    with pytest.raises(KilledError):
        build(manifest, tmp_path / "killed", report=killed)
    [work] = tmp_path.glob("killed/.build/pretrain-*")
    assert {path.name for path in work.iterdir()} == {"pretrained.safetensors", "heads.safetensors", "finished"}
    told: list[str] = []
    resumed = build(manifest, tmp_path / "killed", report=lambda stage, *_: told.append(stage))
    assert "pretrain" not in told
    whole = build(manifest, tmp_path / "whole")
    assert [block.unit for block in resumed.blocks] == [block.unit for block in whole.blocks]
    both = (resumed.baselines["trained_together"], whole.baselines["trained_together"])
    assert [(b.name, b.units, b.accuracy) for b in both[0]] == [(b.name, b.units, b.accuracy) for b in both[1]]


@pytest.mark.parametrize(
    ("model", "zoo", "said"),
    [
        (
            {**MSDNET, "pretrain": {**PRETRAIN, "exits": {}}},
            None,
            "spec.model.pretrain.exits: msdnet has exits of its own, which are always trained together. Leave it out",
        ),
        (
            {**MSDNET, "arguments": {"blocks": 1}, "pretrain": PRETRAIN},
            None,
            "spec.model.arguments.blocks: blocks is 1, and must be a whole number of at least 2",
        ),
        (
            {"architecture": "resnet8", "pretrain": PRETRAIN},
            None,
            "spec.zoo: null leaves no exits to build: resnet8 has none of its own, and none are trained together with "
            "it. Set spec.model.pretrain.exits to {}",
        ),
    ],
)
def test_exits_that_cannot_be_are_refused_at_the_door(
    model: dict[str, object],
    zoo: object,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = written(tmp_path, model, zoo=zoo)
    monkeypatch.setattr(sys, "argv", ["meedge", "build", str(manifest), "-o", str(tmp_path / "bundle")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not list(tmp_path.glob("bundle/.build/*/pretraining"))
