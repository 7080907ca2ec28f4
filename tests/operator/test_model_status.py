from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from worlds import World

from meedge_ray.api.kinds import KINDS
from meedge_ray.api.stages import STAGES
from meedge_ray.bundle.manifest import bundle_sha256, unit_store, write_bundle
from meedge_ray.operator.controllers.model_files import ModelFiles
from meedge_ray.operator.controllers.model_plan import Build, Stage
from meedge_ray.operator.controllers.model_status import build_conditions, build_status, read_build, with_progress
from meedge_ray.operator.publishing import Condition, status_with

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
KIND = KINDS[0]
RUNNING = Stage(name="cultivate", key="k2", state="Running", job_id="ns-m-0-g3-cultivate-a2", attempt=2, started_at=NOW)
BUILD = Build(
    generation=3,
    started_at=NOW,
    stages=(
        Stage(name="pretrain", key="k1", state="Succeeded", attempt=1, started_at=NOW, finished_at=NOW),
        RUNNING,
        Stage(name="share", state="Skipped"),
        Stage(name="elasticize", key="k3"),
        Stage(name="assemble", key="k4"),
    ),
)


def written(build: Build) -> dict[str, Any]:
    content = {"metadata": {"generation": build.generation}}
    return status_with(content, build_status(build, None), build_conditions(build, NOW), NOW)


def ready(build: Build) -> Condition:
    return next(each for each in build_conditions(build, NOW) if each.type == "Ready")


def with_all(**fields: object) -> Build:
    return replace(BUILD, stages=tuple(Stage(name=name, key="k", **fields) for name in STAGES))


def test_a_build_is_read_as_it_was_written_and_the_server_takes_it() -> None:
    status = written(BUILD)
    assert KIND.status_problems(status) == []
    assert read_build(status, NOW) == BUILD
    assert read_build({}, None) == Build()


def test_a_generation_that_was_only_seen_is_not_taken_for_the_one_that_is_built() -> None:
    status = status_with(
        {"metadata": {"generation": 4}, "status": written(BUILD)},
        build_status(BUILD, None),
        [Condition(type="Ready", status="Unknown", reason="Unavailable")],
        NOW,
    )
    assert status["observedGeneration"] == 4
    assert read_build(status, NOW).generation == 3


def test_a_long_message_still_fits() -> None:
    build = BUILD.with_stage(replace(RUNNING, state="Failed", message="x" * 30_000, finished_at=NOW))
    assert KIND.status_problems(written(build)) == []


def test_every_stage_has_a_condition_and_ready_tells_of_the_first_that_is_not_done() -> None:
    conditions = {each.type: each for each in build_conditions(BUILD, NOW)}
    assert {type: (each.status, each.reason) for type, each in conditions.items()} == {
        "Ready": ("False", "Running"),
        "Pretrained": ("True", "Succeeded"),
        "Cultivated": ("False", "Running"),
        "Shared": ("False", "Skipped"),
        "Elasticized": ("False", "Waiting"),
        "Assembled": ("False", "Waiting"),
    }
    assert conditions["Ready"].message == "cultivate: job ns-m-0-g3-cultivate-a2"


def test_ready_says_why_it_failed_and_when_it_is_tried_again() -> None:
    failed = with_all(state="Failed", message="the disk is full", finished_at=NOW)
    assert ready(failed).warning
    assert (ready(failed).reason, ready(failed).message) == ("Failed", "pretrain: the disk is full")
    waits = with_all(message="the disk is full", job_id="x-a1", attempt=1, finished_at=NOW)
    assert ready(waits).message == "pretrain: the disk is full; tried again at 2026-01-01T12:00:10Z"
    assert ready(with_all(state="Succeeded")).status == "True"
    assert ready(with_all(state="Suspended")).reason == "Suspended"


@pytest.mark.parametrize(
    ("lines", "progress", "message"),
    [
        ([], "1.0/9", "before"),
        (["progress cultivate 3.0/9 exit-2 epoch 3", "a warning"], "3.0/9", "exit-2 epoch 3"),
        (["progress cultivate 3.0/9", "progress cultivate 4.5/9"], "4.5/9", None),
        (["progress share 3.0/9 another stage", "progress cultivate lots"], "1.0/9", "before"),
    ],
)
def test_progress_is_what_the_log_says_last(lines: list[str], progress: str, message: str | None) -> None:
    before = BUILD.with_stage(replace(RUNNING, progress="1.0/9", message="before"))
    after = with_progress(before, lines).running
    assert after is not None
    assert (after.progress, after.message) == (progress, message)
    assert KIND.status_problems(written(with_progress(before, lines))) == []


def test_a_job_that_is_being_stopped_goes_on_saying_so() -> None:
    stopping = BUILD.with_stage(replace(RUNNING, message="stopping, for the spec changed"))
    after = with_progress(stopping, ["progress cultivate 3.0/9 exit-2"]).running
    assert after is not None
    assert after.message == "stopping, for the spec changed"


def test_a_manifest_is_written_once_and_keeps_since_when_its_generation_is_built(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path / "bundle", tmp_path / "manifests")
    content = {"apiVersion": "v", "kind": "k", "metadata": {"name": "m", "uid": "u"}, "spec": {"a": 1}, "status": {}}
    assert files.started_at(3) is None
    files.begin(content, 3, NOW + timedelta(microseconds=7))
    assert files.started_at(3) == NOW
    before = files.manifest(3).stat().st_ino
    files.begin({**content, "spec": {}}, 3, NOW)
    assert files.manifest(3).stat().st_ino == before
    assert "uid" not in files.manifest(3).read_text()
    files.remove()
    files.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_bundle_is_read_again_only_when_it_changed(tmp_path: Path, world: World) -> None:
    files = ModelFiles(tmp_path / "bundle", tmp_path / "manifests")
    assert files.bundle_status() is None
    store = unit_store(files.bundle)
    for data in world.units.values():
        store.put(data)
    write_bundle(files.bundle, world.bundle)
    said = files.bundle_status()
    assert said is not None
    assert said["sha256"] == bundle_sha256(world.bundle)
    assert said["sizeBytes"] > 0
    assert KIND.status_problems({"bundle": said}) == []
    assert files.bundle_status() is said
    write_bundle(files.bundle, replace(world.bundle, model="another"))
    assert files.bundle_status() != said
    (files.bundle / "bundle.json").write_text("{")
    assert files.bundle_status() is None
