from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meedge_ray.api.elastic_model import ElasticModel
from meedge_ray.api.stages import STAGES
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.operator.controllers.model_plan import (
    Build,
    Decision,
    Declared,
    Stage,
    decide,
    error_line,
    retry_at,
    unfinished_forerunner,
)
from meedge_ray.operator.jobs_client import Job
from meedge_ray.train.manifest import Manifest
from meedge_ray.train.stages import StageFolders

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = {name: f"key-of-{name}" for name in STAGES}


def declared(**changes: object) -> Declared:
    return replace(Declared(job_prefix="ns-m-0123abcd-", generation=1, keys=KEYS), **changes)


def job(stage: Stage, state: str = "RUNNING", exit_code: int | None = None, message: str = "") -> dict[str, Job]:
    """The jobs of a cluster that knows only this stage's."""
    name = stage.job_id or ""
    return {name: Job(id=name, state=state, exit_code=exit_code, message=message, started_at=NOW)}


def step(
    build: Build,
    jobs: Mapping[str, Job] | None = None,
    spec: Declared | None = None,
    *,
    after_s: float = 0,
    bundle: bool = False,
) -> Decision:
    now = NOW + timedelta(seconds=after_s)
    return decide(spec or declared(), build, jobs or {}, bundle_is_there=bundle, now=now)


def states(build: Build) -> dict[str, str]:
    return {stage.name: stage.state for stage in build.stages}


def reasons(decision: Decision) -> list[str]:
    return [note.reason for note in decision.notes]


def test_the_first_stage_is_submitted_under_a_name_that_tells_all() -> None:
    decision = step(Build())
    assert decision.submit is not None
    assert decision.submit.job_id == "ns-m-0123abcd-g1-pretrain-a1"
    assert states(decision.build) == dict.fromkeys(STAGES, "Waiting") | {"pretrain": "Running"}
    assert decision.build.started_at == NOW


def test_stages_that_the_spec_has_not_are_skipped() -> None:
    decision = step(Build(), spec=declared(keys={"assemble": "k"}))
    assert decision.submit is not None
    assert decision.submit.name == "assemble"
    assert states(decision.build) == dict.fromkeys(STAGES, "Skipped") | {"assemble": "Running"}


def test_what_was_decided_and_not_submitted_is_submitted_under_the_same_name() -> None:
    first = step(Build())
    again = step(first.build)
    assert again.submit == first.submit
    assert again.build == first.build


def test_what_is_submitted_already_is_not_submitted_again() -> None:
    first = step(Build())
    assert first.submit is not None
    again = step(first.build, job(first.submit, "PENDING"))
    assert again.submit is None
    assert again.build.running is not None
    assert again.build.running.started_at == NOW


def test_a_failure_is_tried_again_after_a_pause_that_doubles_up_to_six_minutes() -> None:
    build, pauses = step(Build()).build, []
    spec = declared(backoff_limit=9)
    clock = 0.0
    for _ in range(8):
        running = build.running
        assert running is not None
        failed = {running.job_id or "": replace(job(running, "FAILED", 1)[running.job_id or ""], finished_at=None)}
        build = step(build, failed, spec, after_s=clock).build
        due = retry_at(build.stages[0])
        assert due is not None
        pause = (due - NOW).total_seconds() - clock
        pauses.append(pause)
        assert step(build, spec=spec, after_s=clock + pause - 1).submit is None
        clock += pause
        build = step(build, spec=spec, after_s=clock).build
    assert pauses == [10, 20, 40, 80, 160, 320, 360, 360]


def test_after_the_last_allowed_failure_nothing_more_is_tried() -> None:
    spec = declared(backoff_limit=0)
    decision = step(Build(), spec=spec)
    assert decision.submit is not None
    failed = job(decision.submit, "FAILED", 1, "some log\nerror: the disk is full\nmore log")
    decision = step(decision.build, failed, spec)
    assert decision.build.failed is not None
    assert decision.build.failed.message == "failed 1 times, last with: the disk is full"
    assert step(decision.build, spec=spec, after_s=1e6).submit is None


def test_a_users_mistake_fails_at_once() -> None:
    first = step(Build())
    assert first.submit is not None
    decision = step(first.build, job(first.submit, "FAILED", 2, "error: spec.zoo: is wrong"))
    assert decision.build.failed is not None
    assert (decision.build.failed.message, decision.build.failed.attempt) == ("spec.zoo: is wrong", 1)


def test_a_killed_process_is_a_failure_and_a_job_that_vanished_is_none() -> None:
    first = step(Build())
    assert first.submit is not None
    killed = step(first.build, job(first.submit, "FAILED", 137, "log\nKilled"))
    assert reasons(killed) == ["AttemptFailed"]
    assert (killed.build.stages[0].state, killed.build.stages[0].attempt) == ("Waiting", 1)
    build = step(first.build, job(first.submit)).build
    for rerun in range(1, 4):
        running = build.running
        assert running is not None
        jobs = {} if rerun == 2 else job(running, "FAILED", None, "the supervisor died")
        vanished = step(step(build, job(running)).build, jobs)
        assert reasons(vanished) == ["JobLost"]
        assert (vanished.build.stages[0].state, vanished.build.stages[0].attempt) == ("Waiting", 0)
        again = step(vanished.build, after_s=1000)
        assert again.submit is not None
        assert (again.submit.job_id, again.submit.attempt) == (f"ns-m-0123abcd-g1-pretrain-a1-r{rerun}", 1)
        build = again.build


def test_a_stage_whose_forerunner_lost_its_result_has_it_made_again() -> None:
    build = finished(declared())
    running = replace(build.stages[-1], state="Running", job_id="ns-m-0123abcd-g1-assemble-a1", key=KEYS["assemble"])
    said = "error: /x: assemble needs cultivate, which is not finished. Run cultivate first"
    decision = step(build.with_stage(running), job(running, "FAILED", 2, said))
    assert reasons(decision) == ["AttemptFailed"]
    assert decision.submit is not None
    assert decision.submit.name == "pretrain"
    assert set(states(decision.build).values()) == {"Running", "Waiting"}


def test_what_a_job_says_of_a_missing_forerunner_is_understood(tmp_path: Path) -> None:
    content = {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "ElasticModel",
        "metadata": {"name": "tiny"},
        "spec": {"model": {"architecture": "resnet8", "pretrain": {"epochs": 1}}},
    }
    folders = StageFolders(Manifest(ElasticModel.model_validate(content), tmp_path), tmp_path / "bundle")
    with pytest.raises(InvalidInputError) as caught:
        folders.check_turn("assemble")
    assert unfinished_forerunner(str(caught.value)) == "pretrain"


def test_a_changed_spec_stops_the_job_of_a_stage_it_touches() -> None:
    first = step(Build())
    assert first.submit is not None
    changed = declared(generation=2, keys=KEYS | {"pretrain": "other"})
    decision = step(first.build, job(first.submit), changed)
    assert decision.stop == first.submit.job_id
    assert decision.submit is None
    assert reasons(decision) == ["Stopping"]
    waiting = step(decision.build, job(first.submit), changed)
    assert waiting.stop == first.submit.job_id
    assert reasons(waiting) == []
    after = step(waiting.build, job(first.submit, "STOPPED"), changed)
    assert after.submit is not None
    assert (after.submit.job_id, after.submit.key) == ("ns-m-0123abcd-g2-pretrain-a1", "other")


def test_a_changed_spec_leaves_the_job_of_a_stage_it_does_not_touch() -> None:
    first = step(Build())
    assert first.submit is not None
    decision = step(first.build, job(first.submit), declared(generation=2, keys=KEYS | {"share": "other"}))
    assert decision.stop is None
    assert decision.build.running is not None
    assert decision.build.running.job_id == first.submit.job_id


def test_a_job_that_goes_on_under_a_changed_spec_has_all_its_attempts_again() -> None:
    first = step(Build(), spec=declared(backoff_limit=0))
    assert first.submit is not None
    spec = declared(backoff_limit=1, generation=2)
    running = replace(first.submit, attempt=2)
    decision = step(first.build.with_stage(running), job(running, "FAILED", 1), replace(spec, generation=1))
    assert decision.build.failed is not None
    carried = step(first.build.with_stage(running), job(running), spec).build
    decision = step(carried, job(running, "FAILED", 1), spec)
    assert decision.build.failed is None


def test_suspending_a_finished_build_changes_nothing() -> None:
    decision = step(finished(declared()), spec=declared(generation=2, suspend=True), bundle=True)
    assert set(states(decision.build).values()) == {"Succeeded"}


def finished(spec: Declared) -> Build:
    done = tuple(
        Stage(name=name, key=key, state="Succeeded", attempt=1, job_id=f"ns-m-0123abcd-g1-{name}-a1")
        for name, key in spec.keys.items()
    )
    return Build(generation=spec.generation, started_at=NOW, stages=done)


def test_a_changed_spec_redoes_what_it_touches_and_nothing_else() -> None:
    spec = declared(generation=2, keys=KEYS | {"share": "other", "assemble": "other"})
    decision = step(finished(declared()), spec=spec, bundle=True)
    assert decision.submit is not None
    assert decision.submit.name == "share"
    kept = [stage.name for stage in decision.build.stages if stage.state == "Succeeded"]
    assert kept == ["pretrain", "cultivate", "elasticize"]


def test_a_finished_build_is_left_alone_until_its_bundle_is_gone() -> None:
    build = finished(declared())
    assert step(build, bundle=True) == Decision(build=build)
    decision = step(build, bundle=False, spec=declared(deadline_s=5), after_s=1000)
    assert reasons(decision) == ["BundleLost"]
    assert decision.submit is not None
    assert decision.submit.job_id == "ns-m-0123abcd-g1-pretrain-a1-r1"


def test_a_last_stage_that_leaves_no_bundle_has_failed() -> None:
    spec = declared(keys={"assemble": "k"})
    first = step(Build(), spec=spec)
    assert first.submit is not None
    assert reasons(step(first.build, job(first.submit, "SUCCEEDED", 0), spec)) == ["AttemptFailed"]
    done = step(first.build, job(first.submit, "SUCCEEDED", 0), spec, bundle=True)
    assert done.build.next is None


def test_suspending_stops_the_job_and_does_not_count() -> None:
    first = step(Build())
    assert first.submit is not None
    suspended = declared(generation=2, suspend=True)
    decision = step(first.build, job(first.submit), suspended)
    assert decision.stop == first.submit.job_id
    decision = step(decision.build, job(first.submit, "STOPPED"), suspended)
    assert decision.submit is None
    assert states(decision.build) == dict.fromkeys(STAGES, "Suspended")
    resumed = step(decision.build, spec=declared(generation=3), after_s=100)
    assert resumed.submit is not None
    assert resumed.submit.job_id == "ns-m-0123abcd-g3-pretrain-a1"
    assert resumed.build.started_at == NOW + timedelta(seconds=100)


def test_what_is_over_its_deadline_is_stopped_and_has_failed() -> None:
    spec = declared(deadline_s=60)
    first = step(Build(), spec=spec)
    assert first.submit is not None
    assert step(first.build, job(first.submit), spec, after_s=59).stop is None
    late = step(first.build, job(first.submit), spec, after_s=60)
    assert late.stop == first.submit.job_id
    over = step(late.build, job(first.submit, "STOPPED"), spec, after_s=61)
    assert over.build.failed is not None
    assert "activeDeadlineSeconds" in (over.build.failed.message or "")


def test_any_change_of_the_spec_is_a_new_chance_for_what_failed() -> None:
    first = step(Build())
    assert first.submit is not None
    failed = step(first.build, job(first.submit, "FAILED", 2, "error: no")).build
    again = step(failed, spec=declared(generation=2, backoff_limit=4))
    assert again.submit is not None
    assert again.submit.job_id == "ns-m-0123abcd-g2-pretrain-a1"


@pytest.mark.parametrize(
    ("log", "said"),
    [("", None), ("error: a\nerror: b\ntail", "b"), ("an error: in words", None), ("error:", None)],
)
def test_the_last_error_line_of_a_log_is_found(log: str, said: str | None) -> None:
    assert error_line(log) == said


def test_a_job_that_says_it_runs_on_a_node_that_is_gone_is_lost():
    alive, dead = {"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": False}
    running = Job(id="one", state="RUNNING", message="", node_id="b")
    assert running.is_lost([alive, dead])
    assert running.is_lost([alive])
    assert not running.is_lost([alive, {**dead, "Alive": True}])
    assert not Job(id="one", state="PENDING", message="").is_lost([alive])  # on no node yet
    assert not Job(id="one", state="FAILED", message="", node_id="b").is_lost([alive])
