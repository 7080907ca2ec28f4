"""What to do next for one ElasticModel: a pure function of what is declared, what was decided, and what runs.

A job is named before it is submitted, in a status that is written first. So whatever dies in between, the next decision
finds the job or submits it under the same name, and no second one runs beside it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from meedge_ray.api.elastic_model_status import State
from meedge_ray.api.stages import STAGES
from meedge_ray.operator.jobs_client import Job

_FIRST_PAUSE_S = 10
_LONGEST_PAUSE_S = 360
_USERS_MISTAKE = 2  # the exit code of a job that no further attempt will help
_ATTEMPT = re.compile(r".*-a([0-9]+)(?:-r([0-9]+))?")
_NEEDS = re.compile(r"needs ([a-z]+), which is not finished")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the spec asks for. `job_prefix` begins the names of all of this object's jobs, and of no other's."""

    job_prefix: str
    generation: int
    keys: Mapping[str, str]  # of the stages the spec has
    suspend: bool = False
    backoff_limit: int = 3
    deadline_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage as it stands. Running begins with the decision to submit; `started_at` says that the job was seen.

    `attempt` counts the attempts of this generation but for those whose job was lost; these are made again.
    """

    name: str
    key: str | None = None
    state: State = "Waiting"
    job_id: str | None = None
    attempt: int = 0
    progress: str | None = None
    message: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What has been decided so far: the stages, and since when this generation is built."""

    generation: int = 0
    started_at: datetime | None = None
    stages: tuple[Stage, ...] = ()

    @property
    def running(self) -> Stage | None:
        """The one stage that may have a job."""
        return next((stage for stage in self.stages if stage.state == "Running"), None)

    @property
    def failed(self) -> Stage | None:
        """The stage that no further attempt is made at."""
        return next((stage for stage in self.stages if stage.state == "Failed"), None)

    @property
    def next(self) -> Stage | None:
        """The first stage that is not done."""
        return next((stage for stage in self.stages if stage.state not in ("Succeeded", "Skipped")), None)

    def with_stage(self, stage: Stage) -> "Build":
        """Return the build with one stage replaced."""
        return replace(self, stages=tuple(stage if each.name == stage.name else each for each in self.stages))


class Note(NamedTuple):
    """What people should hear of beside how the stages stand."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The build as it now stands, to be written down before the job `stop` is stopped or the stage `submit` begun."""

    build: Build
    stop: str | None = None
    submit: Stage | None = None
    notes: tuple[Note, ...] = ()


def decide(
    declared: Declared, build: Build, jobs: Mapping[str, Job], *, bundle_is_there: bool, now: datetime
) -> Decision:
    """Return what to do next.

    Args:
        declared: the spec.
        build: what was decided before.
        jobs: what the cluster says of the running stage's job, if it knows it.
        bundle_is_there: whether a bundle can be read where the last stage leaves it.
        now: the time, with its zone.
    """
    notes: list[Note] = []
    if (before := build.running) is not None:
        job = jobs.get(before.job_id or "")
        build = _settled(before, job, build, declared, bundle_is_there=bundle_is_there, now=now, notes=notes)
    if build.generation != declared.generation:
        build = _renewed(build, declared.generation, now)
    build = _as_declared(build, declared)
    if build.next is None and not bundle_is_there:
        notes.append(Note("Warning", "BundleLost", "The bundle cannot be read any more; it is built again"))
        build = replace(build, started_at=None, stages=tuple(_again(stage) for stage in build.stages))
    if (running := build.running) is None:
        return _begun(build, declared, now, notes)
    is_sent = running.job_id in jobs
    if (why := _unwanted(running, build, declared, now)) is None:
        return Decision(build=build, submit=None if is_sent else running, notes=tuple(notes))
    if not is_sent:
        return _begun(_as_declared(build.with_stage(_uncounted(running)), declared), declared, now, notes)
    message = f"stopping, for {why}"
    if running.message != message:
        notes.append(Note("Normal", "Stopping", f"{running.name}: {why}"))
    return Decision(build=build.with_stage(replace(running, message=message)), stop=running.job_id, notes=tuple(notes))


def retry_at(stage: Stage) -> datetime | None:
    """Return when a waiting stage is tried again; None: nothing holds it back."""
    if stage.state != "Waiting" or stage.finished_at is None:
        return None
    return stage.finished_at + timedelta(seconds=_pause_s(stage))


def error_line(log: str) -> str | None:
    """Return what a job's log says last in a line that begins with `error:`."""
    marked = [line for line in log.splitlines() if line.startswith("error: ")]
    return marked[-1].removeprefix("error: ").strip() if marked else None


def unfinished_forerunner(error: str) -> str | None:
    """Return which stage is to be run first, where a job's error says so."""
    found = _NEEDS.search(error)
    return found[1] if found and found[1] in STAGES else None


def _pause_s(stage: Stage) -> int:
    found = _ATTEMPT.fullmatch(stage.job_id or "")
    tries = int(found[1]) + int(found[2] or 0) if found else 1
    return int(min(_FIRST_PAUSE_S * 2 ** min(tries - 1, 30), _LONGEST_PAUSE_S))


def _settled(
    stage: Stage,
    job: Job | None,
    build: Build,
    declared: Declared,
    *,
    bundle_is_there: bool,
    now: datetime,
    notes: list[Note],
) -> Build:
    """Say of the running stage what its job says."""
    if job is None and stage.started_at is None:
        return build  # not submitted yet
    if job is None:
        return build.with_stage(_lost(replace(stage, finished_at=now), "the cluster knows its job no more", notes))
    stage = replace(stage, started_at=job.started_at or stage.started_at or now)
    if not job.is_over:
        return build.with_stage(stage)
    stage = replace(stage, finished_at=min(job.finished_at or now, now))
    if job.state == "STOPPED":
        return build.with_stage(replace(_uncounted(stage), message="its job was stopped"))
    if job.state == "SUCCEEDED" and (stage.name != STAGES[-1] or bundle_is_there):
        return build.with_stage(replace(stage, state="Succeeded", message=None))
    if job.state == "SUCCEEDED":
        return build.with_stage(_failed(stage, "its job left no bundle that can be read", declared, notes))
    if job.exit_code is None:
        return build.with_stage(_lost(stage, _last_line(job.message), notes))
    why = error_line(job.message)
    if job.exit_code != _USERS_MISTAKE:
        why = why or f"exit code {job.exit_code}: {_last_line(job.message)}"
        return build.with_stage(_failed(stage, why, declared, notes))
    if (missing := unfinished_forerunner(why or "")) is not None:
        # And those before it: what is finished is done in seconds.
        build = replace(build, stages=tuple(_again(each) for each in build.stages))
        return build.with_stage(_failed(stage, f"the result of {missing} is gone", declared, notes))
    return build.with_stage(replace(stage, state="Failed", message=why or _last_line(job.message)))


def _failed(stage: Stage, why: str, declared: Declared, notes: list[Note]) -> Stage:
    if stage.attempt > declared.backoff_limit:
        return replace(stage, state="Failed", message=f"failed {stage.attempt} times, last with: {why}")
    notes.append(Note("Warning", "AttemptFailed", f"{stage.name}: {why}; tried again in {_pause_s(stage)} s"))
    return replace(stage, state="Waiting", progress=None, message=why)


def _lost(stage: Stage, why: str, notes: list[Note]) -> Stage:
    notes.append(Note("Warning", "JobLost", f"{stage.name}: {why}; tried again in {_pause_s(stage)} s"))
    return replace(_uncounted(stage), message=why)


def _uncounted(stage: Stage) -> Stage:
    """The attempt is made again: its job did nothing wrong."""
    return replace(stage, state="Waiting", attempt=max(stage.attempt - 1, 0), progress=None, message=None)


def _again(stage: Stage) -> Stage:
    """A finished stage begins anew, under a new name, for its result is gone."""
    if stage.state != "Succeeded":
        return stage
    return replace(_uncounted(stage), started_at=None, finished_at=None)


def _renewed(build: Build, generation: int, now: datetime) -> Build:
    """A changed spec is a new chance for what failed or waits; what runs goes on, and its clock starts again."""
    stages = []
    for stage in build.stages:
        if stage.state == "Running":
            stages.append(replace(stage, attempt=1))
        else:
            stages.append(stage if stage.state == "Succeeded" else Stage(name=stage.name, key=stage.key))
    started_at = None if build.running is None else now
    return Build(generation=generation, started_at=started_at, stages=tuple(stages))


def _as_declared(build: Build, declared: Declared) -> Build:
    stages = []
    for name in STAGES:
        stage = next((each for each in build.stages if each.name == name), Stage(name=name))
        key = declared.keys.get(name)
        if stage.state == "Running":  # even of another key, until its job is over
            stages.append(stage)
        elif key is None:
            stages.append(Stage(name=name, state="Skipped"))
        else:
            stages.append(stage if stage.key == key else Stage(name=name, key=key))
    return replace(build, stages=tuple(stages))


def _unwanted(running: Stage, build: Build, declared: Declared, now: datetime) -> str | None:
    if declared.keys.get(running.name) != running.key:
        return "the spec changed"
    if declared.suspend:
        return "the model is suspended"
    return _overdue(build, declared, now)


def _overdue(build: Build, declared: Declared, now: datetime) -> str | None:
    if declared.deadline_s is None or build.started_at is None:
        return None
    is_overdue = (now - build.started_at).total_seconds() >= declared.deadline_s
    return f"the build took longer than activeDeadlineSeconds, {declared.deadline_s} s" if is_overdue else None


def _begun(build: Build, declared: Declared, now: datetime, notes: list[Note]) -> Decision:
    """Nothing runs: begin what comes next, if it may."""
    stage = build.next
    if stage is None or build.failed is not None:
        return Decision(build=build, notes=tuple(notes))
    if declared.suspend:
        suspended = (
            Stage(name=each.name, key=each.key, state="Suspended") if each.state == "Waiting" else each
            for each in build.stages
        )
        return Decision(build=replace(build, started_at=None, stages=tuple(suspended)), notes=tuple(notes))
    if (why := _overdue(build, declared, now)) is not None:
        stage = replace(stage, state="Failed", message=why, finished_at=now)
        return Decision(build=build.with_stage(stage), notes=tuple(notes))
    if (held_until := retry_at(stage)) is not None and held_until > now:
        return Decision(build=build, notes=tuple(notes))
    begun = Stage(
        name=stage.name,
        key=stage.key,
        state="Running",
        job_id=_new_job_id(stage, declared),
        attempt=stage.attempt + 1,
    )
    build = replace(build.with_stage(begun), started_at=build.started_at or now)
    return Decision(build=build, submit=begun, notes=tuple(notes))


def _new_job_id(stage: Stage, declared: Declared) -> str:
    """A name that no job of this object had before."""
    name = f"{declared.job_prefix}g{declared.generation}-{stage.name}-a{stage.attempt + 1}"
    if (before := stage.job_id) is None or not before.startswith(name):
        return name
    found = _ATTEMPT.fullmatch(before)
    return f"{name}-r{int(found[2] or 0) + 1}" if found else name


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "nobody knows why"
