"""An ElasticModel's status: the build that was decided as JSON and back, and its conditions."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_camel

from meedge_ray.bundle.manifest import bundle_sha256, bundle_units
from meedge_ray.domain.elastic import Bundle
from meedge_ray.operator.controllers.model_plan import Build, Stage, retry_at
from meedge_ray.operator.publishing import Condition

_CONDITIONS = {
    "pretrain": "Pretrained",
    "cultivate": "Cultivated",
    "share": "Shared",
    "elasticize": "Elasticized",
    "assemble": "Assembled",
}
_PROGRESS = re.compile(r"progress ([a-z]+) ([0-9]{1,9}(?:\.[0-9]{1,3})?/[0-9]{1,9}(?:\.[0-9]{1,3})?)(?: (.*))?")
_LONGEST_TEXT = 1000
_TIMES = ("started_at", "finished_at")


def built_generation(status: Mapping[str, Any]) -> int:
    """Return the generation that the stages of a status are of, 0 if there are none.

    Not `observedGeneration`: that may have been seen when the cluster was away, and nothing was decided for it.
    """
    written: Iterable[Mapping[str, Any]] = status.get("conditions", ())
    return next((int(each["observedGeneration"]) for each in written if each["type"] == _CONDITIONS["assemble"]), 0)


def read_build(status: Mapping[str, Any], started_at: datetime | None) -> Build:
    """Return the build that a status tells of.

    Args:
        status: as it was written with `build_status` and `build_conditions`, or empty.
        started_at: since when the generation is built that the stages are of.
    """
    stages = tuple(_stage(content) for content in status.get("stages", ()))
    return Build(generation=built_generation(status), started_at=started_at, stages=stages)


def build_status(build: Build, bundle: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the status that tells of the build, and of the bundle there is."""
    status: dict[str, Any] = {"stages": [_content(stage) for stage in build.stages]}
    return status | ({"bundle": dict(bundle)} if bundle is not None else {})


def bundle_status(folder: Path, bundle: Bundle) -> dict[str, Any]:
    """Return what a status says of a bundle."""
    return {
        "path": str(folder),
        "sha256": bundle_sha256(bundle),
        "branches": len(bundle.branches),
        "variants": len(bundle.variants),
        "sizeBytes": sum(unit.size_bytes for unit in bundle_units(bundle)),
        "finalAccuracy": f"{bundle.final_accuracy:.4f}",
    }


def with_progress(build: Build, lines: Iterable[str]) -> Build:
    """Return the build with what the running job's log says last of its progress."""
    running = build.running
    if running is None:
        return build
    said = [found for line in lines if (found := _PROGRESS.fullmatch(line)) and found[1] == running.name]
    if not said:
        return build
    message = running.message if (running.message or "").startswith("stopping") else said[-1][3]
    return build.with_stage(replace(running, progress=said[-1][2], message=message))


def build_conditions(build: Build, now: datetime) -> Sequence[Condition]:
    """Return Ready, and a condition a stage."""
    return (_ready(build, now), *(_of_stage(stage, now) for stage in build.stages))


def _ready(build: Build, now: datetime) -> Condition:
    stage = build.failed or build.next
    if stage is None:
        done = sum(each.state == "Succeeded" for each in build.stages)
        return Condition(type="Ready", status="True", reason="Succeeded", message=f"{done} stages are done")
    told = _told(stage, now)
    return Condition(
        type="Ready",
        status="False",
        reason=stage.state,
        message=f"{stage.name}: {told}" if told else stage.name,
        warning=stage.state == "Failed",
    )


def _of_stage(stage: Stage, now: datetime) -> Condition:
    return Condition(
        type=_CONDITIONS[stage.name],
        status="True" if stage.state == "Succeeded" else "False",
        reason=stage.state,
        message=_told(stage, now),
        warning=stage.state == "Failed",
    )


def _told(stage: Stage, now: datetime) -> str:
    if stage.state == "Skipped":
        return "the spec asks for none"
    if stage.state == "Running":
        return " ".join(part for part in (stage.progress, stage.message or f"job {stage.job_id}") if part)
    held_until = retry_at(stage)
    if held_until is None or held_until <= now:
        return stage.message or ""
    return f"{stage.message or 'its job is lost'}; tried again at {_text(held_until)}"


def _stage(content: Mapping[str, Any]) -> Stage:
    times = {name: _time(content.get(to_camel(name))) for name in _TIMES}
    return Stage(
        name=content["name"],
        key=content.get("key"),
        state=content["state"],
        job_id=content.get("jobId"),
        attempt=content.get("attempt") or 0,
        progress=content.get("progress"),
        message=content.get("message"),
        **times,
    )


def _content(stage: Stage) -> dict[str, Any]:
    said = {name: value for name, value in asdict(stage).items() if value not in (None, 0)}
    said |= {name: _text(said[name]) for name in _TIMES if name in said}
    if "message" in said:
        said["message"] = said["message"][:_LONGEST_TEXT]
    return {to_camel(name): value for name, value in said.items()}


def _text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
