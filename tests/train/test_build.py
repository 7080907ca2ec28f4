from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from meedge_ray.api.elastic_model import Model
from meedge_ray.bundle.manifest import read_bundle, unit_store, verify_units
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import MeedgeError
from meedge_ray.nn.partition import partition
from meedge_ray.nn.source import load_model
from meedge_ray.runtime.loading import load_engine, unit_reader
from meedge_ray.train.baselines import SPINN_EXITS, baseline_choices, equal_flops_exits
from meedge_ray.train.build import build
from meedge_ray.train.cultivate import ExitTask
from meedge_ray.train.data import load_data
from meedge_ray.train.manifest import read_manifest
from meedge_ray.train.progress import Report
from meedge_ray.train.tasks import Task, run_in_turn


class KilledError(Exception):
    pass


def killed_after_first(tasks: Sequence[Task], report: Report) -> None:
    run_in_turn(tasks[:1], report)
    raise KilledError


def never(tasks: Sequence[Task], report: Report) -> None:
    raise AssertionError(f"{len(tasks)} exits were trained again")


def test_a_bundle_is_whole(tiny: tuple[Path, Bundle]) -> None:
    directory, bundle = tiny
    verify_units(directory, bundle)
    assert read_bundle(directory) == bundle
    assert bundle.blocks[0].name == "stem"
    assert bundle.exit_count == 4
    assert set(bundle.baselines) == {"multi_exit_fc", "einet", "spinn", "branchynet"}
    assert not list(directory.glob(".build/*/*features*"))
    # 3 exits x 4 branches and 2 on the last map, too small for a kernel of 3: each survived, or it is said why not.
    merged = [branch for branch in bundle.branches if branch.merged_neurons]
    lost = [gone for gone in bundle.eliminated if gone.name.endswith(".merged")]
    assert len(bundle.branches) + len(bundle.eliminated) == 14 + len(merged) + len(lost)
    assert max(branch.accuracy for branch in bundle.branches) > 0.5
    assert bundle.final_accuracy > 0.5


def test_every_surviving_hidden_layer_is_offered_merged_as_well(tiny: tuple[Path, Bundle]) -> None:
    bundle = tiny[1]
    known = {branch.name: branch for branch in bundle.branches}
    gone = {branch.name for branch in bundle.eliminated}
    originals = [branch for branch in bundle.branches if "fc24" in branch.fc and not branch.merged_neurons]
    assert originals
    for original in originals:
        name = f"{original.name}.merged"
        if name in gone:
            continue
        merged = known[name]
        # 12 pairs of 24 neurons: between the first third of them and half.
        assert 4 <= merged.merged_neurons[0] <= 6
        claimed = 4 * (original.parameters - merged.parameters)
        assert original.size_bytes - merged.size_bytes == pytest.approx(claimed, abs=64)
        assert merged.name in bundle.profiles[next(iter(bundle.profiles))].branch_ms


def test_shared_convolutions_are_one_unit_under_several_heads(tiny_manifest: Path, tmp_path: Path) -> None:
    tiny_manifest.write_text(tiny_manifest.read_text().replace("  zoo:\n", "  zoo:\n    sharedConvolutions: true\n"))
    bundle = build(read_manifest(tiny_manifest), tmp_path / "bundle")
    over_one = [b for b in bundle.branches if b.exit_index == 0 and b.convolution == "depthwise3"]
    assert len(over_one) > 1
    assert len({branch.units[0] for branch in over_one}) == 1
    assert all(len(branch.units) == 2 for branch in over_one)
    assert all(len(branch.units) == 1 for branch in bundle.branches if branch.convolution == "none")
    verify_units(tmp_path / "bundle", bundle)


def test_units_are_as_accurate_as_the_manifest_says(tiny: tuple[Path, Bundle], tmp_path: Path) -> None:
    directory, bundle = tiny
    validation = load_data(read_manifest(directory.parent / "model.yaml").model.spec.data, tmp_path).validation
    store = unit_store(directory)
    engine = load_engine(store, bundle.input, bundle.blocks, bundle.final_accuracy)
    engine.place(bundle.branches, unit_reader(store))
    known = {None: bundle.final_accuracy, **{branch.name: branch.accuracy for branch in bundle.branches}}
    for name, logits in engine.infer_batch(validation.x).items():
        # Training saw features rounded to fp16: a sample or two may tip.
        assert (logits.argmax(1) == validation.y).mean() == pytest.approx(known[name], abs=0.01)


def test_the_same_seed_gives_the_same_units(tiny: tuple[Path, Bundle], tiny_manifest: Path, tmp_path: Path) -> None:
    again = build(read_manifest(tiny_manifest), tmp_path / "again")
    assert [block.unit for block in again.blocks] == [block.unit for block in tiny[1].blocks]
    both = {branch.name: branch.units for branch in again.branches}
    assert all(both.get(branch.name, branch.units) == branch.units for branch in tiny[1].branches)


def test_a_killed_build_keeps_its_finished_exits(tiny_manifest: Path, tmp_path: Path) -> None:
    manifest, output = read_manifest(tiny_manifest), tmp_path / "bundle"
    with pytest.raises(KilledError):
        build(manifest, output, run=killed_after_first)
    [finished] = output.glob(".build/*/exit-*")
    before = (finished / "weights.safetensors").stat().st_ino
    left: list[int] = []

    def rest(tasks: Sequence[Task], report: Report) -> None:
        left.extend(task.exit_index for task in tasks if task.stage == "cultivate")
        assert (finished / "weights.safetensors").stat().st_ino == before
        run_in_turn(tasks, report)

    build(manifest, output, run=rest)
    assert left == [1, 2, 3]


def test_a_finished_build_is_not_done_again(tiny: tuple[Path, Bundle]) -> None:
    directory, bundle = tiny
    manifest = read_manifest(directory.parent / "model.yaml")
    assert build(manifest, directory, run=never) == bundle


def test_a_build_that_fails_leaves_the_earlier_bundle_whole(tiny_manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    earlier = build(read_manifest(tiny_manifest), output)
    changed = tiny_manifest.read_text().replace("epochs: 2", "epochs: 1")
    tiny_manifest.write_text(changed)
    with pytest.raises(KilledError):
        build(read_manifest(tiny_manifest), output, run=killed_after_first)
    assert read_bundle(output) == earlier
    verify_units(output, earlier)


def test_weights_are_needed_where_they_are_named(tiny_manifest: Path, tmp_path: Path) -> None:
    text = tiny_manifest.read_text()
    named = text.replace('pretrain: {epochs: 3, batchSize: 64, learningRate: "0.01"}', "weights: none.safetensors")
    tiny_manifest.write_text(named)
    with pytest.raises(MeedgeError, match=r"none\.safetensors"):
        build(read_manifest(tiny_manifest), tmp_path / "bundle", run=never)


def test_features_that_do_not_fit_the_disk_are_refused_before_work(
    tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meedge_ray.train.features._SPARE_BYTES", 2**60)
    with pytest.raises(MeedgeError, match="larger disk"):
        build(read_manifest(tiny_manifest), tmp_path / "bundle", run=never)


def test_one_by_one_gives_the_same_weights_as_together(tiny_manifest: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_manifest)
    seen: list[ExitTask] = []

    def both_ways(tasks: Sequence[Task], report: Report) -> None:
        alone = replace(tasks[0], choices=tasks[0].choices[:1], output=tmp_path / "alone")
        seen.extend([tasks[0], alone])
        run_in_turn([tasks[0], alone], report)
        raise KilledError

    with pytest.raises(KilledError):
        build(manifest, tmp_path / "bundle", run=both_ways)
    together, alone = (load_file(task.output / "weights.safetensors") for task in seen)
    assert alone
    for key, value in alone.items():
        np.testing.assert_allclose(together[key], value, rtol=1e-4, atol=1e-5)


def test_spinn_has_six_exits_at_equal_flops(tmp_path: Path) -> None:
    declared = Model.model_validate({"architecture": "resnet20", "pretrain": {"epochs": 1}})
    network = load_model(declared, input_shape=(3, 32, 32), classes=10, base_dir=tmp_path)
    chain = partition(network, (3, 32, 32))
    exits = equal_flops_exits(chain)
    assert len(exits) == SPINN_EXITS
    assert sorted(set(exits)) == list(exits)
    choices = baseline_choices(chain, "resnet20")
    assert set(choices["spinn"]) == set(exits)
    assert {convolution.name for convolution, _ in choices["spinn"].values()} == {"standard3"}
    assert len(choices["multi_exit_fc"]) == chain.exit_count
