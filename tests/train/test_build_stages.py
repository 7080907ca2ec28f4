"""A build stage by stage: what a change redoes, what is kept, and that the bundle does not tell how it was made."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import staging
from staging import SPEC, declared

from meedge_ray.api.stages import STAGES
from meedge_ray.bundle.manifest import bundle_json, bundle_units, read_bundle, unit_store, verify_units
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.train.build import Build, build, run_stage
from meedge_ray.train.progress import Report, silent
from meedge_ray.train.stages import StageFolders
from meedge_ray.train.tasks import Task, run_in_turn

OTHER_SUPERNET = {**SPEC["supernet"], "seed": 1}


@dataclass
class Log:
    """What a build tells, and the stages whose tasks it gives away."""

    told: set[str] = field(default_factory=set)
    worked: set[str] = field(default_factory=set)

    def report(self, stage: str, done: float, total: float, detail: str = "") -> None:
        self.told.add(stage)

    def run(self, tasks: Sequence[Task], report: Report) -> None:
        self.worked |= {task.stage for task in tasks}
        run_in_turn(tasks, report)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "bundle"
    build(declared(folder.parent), folder)
    return folder


@pytest.fixture
def again(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may build in."""
    shutil.copytree(built, tmp_path / "bundle")
    return tmp_path / "bundle"


def marks(folder: Path) -> dict[str, int]:
    return {mark.parent.name: mark.stat().st_mtime_ns for mark in folder.glob(".build/*/finished")}


def stages_kept(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name.partition("-")[0] for name in before.keys() & after.keys() if before[name] == after[name]}


def rebuilt(folder: Path, **changed: Any) -> tuple[Bundle, Log]:
    log = Log()
    return build(declared(folder.parent, **changed), folder, run=log.run, report=log.report), log


@pytest.fixture(scope="module")
def regrown(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Log, list[bool]]:
    """A copy with another supernet; its log, and which stages had something to do."""
    folder = tmp_path_factory.mktemp("regrown") / "bundle"
    shutil.copytree(built, folder)
    log, manifest = Log(), declared(folder.parent, supernet=OTHER_SUPERNET)
    return folder, log, [run_stage(stage, manifest, folder, run=log.run, report=log.report) for stage in STAGES]


def test_another_supernet_redoes_the_supernet_and_the_bundle_alone(
    built: Path, regrown: tuple[Path, Log, list[bool]]
) -> None:
    folder, log, worked = regrown
    assert worked == [False, False, False, True, True]
    assert log.worked == {"elasticize"}
    assert not log.told & {"pretrain", "features", "cultivate", "share"}
    assert stages_kept(marks(built), marks(folder)) == {"pretrain", "cultivate", "share"}
    bundle, earlier = read_bundle(folder), read_bundle(built)
    assert bundle.branches == earlier.branches
    assert {v.name: v.unit for v in bundle.variants} != {v.name: v.unit for v in earlier.variants}
    [times], [earlier_times] = bundle.profiles.values(), earlier.profiles.values()
    assert times.branch_ms == earlier_times.branch_ms, "it was measured again"


def test_only_the_wanted_results_are_kept_and_none_that_are_large(regrown: tuple[Path, Log, list[bool]]) -> None:
    folder = regrown[0]
    folders = sorted(path.name.partition("-")[0] for path in (folder / ".build").glob("*/"))
    assert folders == ["cultivate", "elasticize", "pretrain", "share"]
    assert {path.name for path in folder.glob(".build/*/*")} == {
        "finished",
        "pretrained.safetensors",
        "heads.safetensors",
        "accuracies.json",
        *(f"exit-{index:02d}" for index in range(4)),
        *(path.name for path in folder.glob(".build/share-*/merged-*")),
        "supernet",
        "profile-zoo.json",
        "profile-merged.json",
        "profile-variants.json",
    }


def test_other_sharing_redoes_sharing_and_the_bundle_alone(again: Path) -> None:
    earlier, before = read_bundle(again), marks(again)
    bundle, log = rebuilt(again, sharing={"epochs": 2})
    assert log.worked == {"share"}
    assert not log.told & {"pretrain", "cultivate", "elasticize"}
    assert "features" in log.told, "of what else are they retrained?"
    assert stages_kept(before, marks(again)) == {"pretrain", "cultivate", "elasticize"}
    assert bundle.variants == earlier.variants
    assert not list(again.glob(".build/*/*features*"))


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": {"team": "blue"}},
        {"suspend": True, "backoffLimit": 9},
        {"cultivation": {**SPEC["cultivation"], "memory": "8Gi", "disk": "8Gi", "resources": {"cpus": 2}}},
        {"supernet": {**SPEC["supernet"], "resources": {"gpus": "1"}}},
    ],
)
def test_what_no_result_depends_on_redoes_nothing(built: Path, changed: dict[str, Any]) -> None:
    before = (built / "bundle.json").stat().st_mtime_ns, marks(built)
    _, log = rebuilt(built, **changed)
    assert (log.told, log.worked) == (set(), set())
    assert ((built / "bundle.json").stat().st_mtime_ns, marks(built)) == before


def test_units_that_neither_bundle_names_are_removed(again: Path) -> None:
    earlier, store = read_bundle(again), unit_store(again)
    stranger = store.put(b"of none of both")
    bundle, _ = rebuilt(again, sharing=None, supernet=None)
    verify_units(again, bundle)
    verify_units(again, earlier)  # a device may still be fetching them
    assert store.held() == {unit.sha256 for unit in (*bundle_units(bundle), *bundle_units(earlier))}
    assert stranger.sha256 not in store.held()


@pytest.mark.parametrize(
    ("done", "stage", "first"),
    [((), "cultivate", "pretrain"), (("pretrain",), "share", "cultivate"), (("pretrain",), "assemble", "cultivate")],
)
def test_a_stage_before_its_turn_says_which_to_run_first(
    built: Path, tmp_path: Path, done: Sequence[str], stage: str, first: str
) -> None:
    for each in done:
        [folder] = built.glob(f".build/{each}-*")
        shutil.copytree(folder, tmp_path / "bundle" / ".build" / folder.name)
    with pytest.raises(InvalidInputError, match=f"{stage} needs {first}, which is not finished.*Run {first} first"):
        run_stage(stage, declared(tmp_path), tmp_path / "bundle")


def test_a_stage_that_is_not_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no stage share\. It has pretrain, cultivate, elasticize, assemble"):
        run_stage("share", declared(tmp_path, sharing=None), tmp_path / "bundle")


def test_a_finished_bundle_needs_none_of_what_it_was_made_of(again: Path) -> None:
    shutil.rmtree(again / ".build")
    _, log = rebuilt(again)
    assert (log.told, log.worked) == (set(), set())


def test_a_bundle_that_was_lost_is_assembled_again_and_nothing_else_is_done(again: Path) -> None:
    earlier = read_bundle(again)
    (again / "bundle.json").unlink()
    shutil.rmtree(again / "units")
    bundle, log = rebuilt(again)
    assert log.worked == set()
    verify_units(again, bundle)
    assert but_for_the_gain(bundle) == but_for_the_gain(earlier)


def test_what_a_killed_build_did_not_remove_is_removed_by_the_next(again: Path) -> None:
    folders = StageFolders(declared(again.parent), again)
    for left in (folders.features, folders.root / "share-0123456789ab", folders.root / "0123456789abcdef"):
        left.mkdir()
    with folders.alone("share", silent):  # another process, at work on something else
        rebuilt(again)
        assert {path.name for path in folders.root.glob("*-0123456789ab")} == {"share-0123456789ab"}
        assert folders.features.exists()
    rebuilt(again)
    assert not folders.features.exists()
    assert not list(folders.root.glob("*0123456789ab*/"))


def test_of_two_processes_at_one_stage_the_second_waits_and_finds_it_finished(again: Path) -> None:
    manifest = declared(again.parent, supernet=OTHER_SUPERNET)
    waits, worked = threading.Event(), []

    def report(stage: str, done: float, total: float, detail: str = "") -> None:
        assert detail.startswith("waits for another process")
        waits.set()

    folders = StageFolders(manifest, again)
    with folders.alone("elasticize", silent):
        second = threading.Thread(target=lambda: worked.append(run_stage("elasticize", manifest, again, report=report)))
        second.start()
        assert waits.wait(30)
        folders.finish("elasticize")
    second.join(30)
    assert worked == [False]


def but_for_the_gain(bundle: Bundle) -> bytes:
    """Return the bundle's bytes but for what planning is measured to gain: decisions are timed whenever one is made."""
    assert bundle.predictor is not None
    return bundle_json(replace(bundle, predictor=replace(bundle.predictor, gain=0.0, gain_error=0.0)))


def test_stages_in_processes_of_their_own_one_killed_give_the_very_bundle_of_one_go(
    built: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    for times in built.glob(".build/*/profile-*.json"):  # no two measurements are equal
        (folder / ".build" / times.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(times, folder / ".build" / times.parent.name)
    killed_at = "cultivate 1.33/4"  # the second exit's first epoch of three
    stages = ["pretrain", f"cultivate:{killed_at}", "cultivate", "share", "elasticize", "assemble"]
    command = [sys.executable, staging.__file__, str(folder), *stages]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=500, check=True).stdout.splitlines()
    assert [line for line in told if "ended" in line] == [
        "pretrain ended with 0",
        "cultivate ended with -9",
        "cultivate ended with 0",
        "share ended with 0",
        "elasticize ended with 0",
        "assemble ended with 0",
    ]
    killed = told.index("cultivate ended with -9")
    assert told[killed - 1] == killed_at
    assert told[killed + 1] == "cultivate 0.67/3", "it did not go on where it was"
    bundle = read_bundle(folder)
    verify_units(folder, bundle)
    assert but_for_the_gain(bundle) == but_for_the_gain(read_bundle(built))


def test_the_contents_of_data_and_weights_count_and_not_their_places(built: Path, tmp_path: Path) -> None:
    [weights] = built.glob(".build/pretrain-*/pretrained.safetensors")
    shutil.copy(weights, tmp_path / "own.safetensors")

    def keys(**model: str) -> dict[str, str]:
        own = {"architecture": "resnet8", "weights": "own.safetensors"} | model
        folders = StageFolders(declared(tmp_path, model=own), tmp_path / "bundle")
        return {stage: folders.key(stage) for stage in folders.stages}

    first = keys()
    shutil.copy(weights, tmp_path / "moved.safetensors")
    assert keys(weights="moved.safetensors") == first
    (tmp_path / "own.safetensors").touch()
    assert keys() == first
    (tmp_path / "own.safetensors").write_bytes(weights.read_bytes()[::-1])
    assert not set(keys().values()) & set(first.values())


def test_bundles_of_two_names_are_two_although_all_before_is_one(tmp_path: Path) -> None:
    ours, theirs = declared(tmp_path), declared(tmp_path)
    metadata = theirs.model.metadata.model_copy(update={"name": "theirs"})
    theirs = replace(theirs, model=theirs.model.model_copy(update={"metadata": metadata}))
    differing = [
        stage
        for stage in STAGES
        if StageFolders(ours, tmp_path).key(stage) != StageFolders(theirs, tmp_path).key(stage)
    ]
    assert differing == ["assemble"]


def test_a_build_knows_its_stages_and_its_bundle(again: Path) -> None:
    whole = Build(declared(again.parent), again)
    assert whole.stages == STAGES
    assert whole.bundle == read_bundle(again)
    assert Build(declared(again.parent, sharing=None), again).bundle is None
