"""Keeps ElasticModels true: each is built by Ray jobs, a job a stage, and leaves a bundle in the operator's home."""

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import kopf
import ray
from pydantic import ValidationError

from meedge_ray.api.elastic_model import ElasticModelSpec
from meedge_ray.api.kinds import KINDS
from meedge_ray.api.stages import stage_key, stages_of
from meedge_ray.domain.errors import MeedgeError, UnavailableError
from meedge_ray.operator.client.api_client import ConflictError, Object
from meedge_ray.operator.controllers.model_files import ModelFiles
from meedge_ray.operator.controllers.model_plan import Declared, Stage, decide
from meedge_ray.operator.controllers.model_status import (
    build_conditions,
    build_status,
    built_generation,
    read_build,
    with_progress,
)
from meedge_ray.operator.jobs_client import Job
from meedge_ray.operator.publishing import MANAGER, Condition
from meedge_ray.operator.view import Name, name_of
from meedge_ray.operator.world import World

_PERIOD_S = 1.0
_LOG_LINES = 20  # looked through for the job's progress
_FINALIZER = "meedge.dev/bundle"
_KIND = next(kind for kind in KINDS if kind.name == "ElasticModel")

_log = logging.getLogger(__name__)


def register(_registry: kopf.OperatorRegistry, world: World) -> None:
    """Add the controller to those of the operator."""
    world.sweeps.every(_PERIOD_S, ModelController(world).sweep)


class ModelController:
    """Looks at one model after another: what each needs is decided by `model_plan` and done here."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._files: dict[Name, ModelFiles] = {}
        self._said: dict[Name, str] = {}

    def sweep(self) -> None:
        """Do what is to be done for every model now.

        Raises:
            UnavailableError: the API server is away.
        """
        models = self._world.models.by_name()
        for known in (self._files, self._said):
            for name in set(known) - set(models):
                del known[name]
        for name, content in models.items():
            try:
                self._keep(content)
                self._said.pop(name, None)
            except UnavailableError as error:
                # If it is the API server that is away, this raises again.
                self._say(content, Condition(type="Ready", status="Unknown", reason="Unavailable", message=str(error)))
            except ConflictError:
                pass  # somebody was quicker: the next look starts from what is there now
            except Exception as error:
                # One model's trouble, be it a defect of ours, keeps no other waiting.
                if self._said.get(name) != str(error):
                    self._said[name] = str(error)
                    _log.warning("%s/%s: %s", *name, error, exc_info=not isinstance(error, MeedgeError))

    def _keep(self, content: Object) -> None:
        metadata = content["metadata"]
        finalizers = metadata.get("finalizers", [])
        if "deletionTimestamp" in metadata:
            if _FINALIZER in finalizers:
                self._end(content)
            return
        if _FINALIZER not in finalizers:
            self._set_finalizers(content, [*finalizers, _FINALIZER])
            return  # the next look is at the object as it is then
        try:
            spec = ElasticModelSpec.model_validate(content["spec"])
        except ValidationError:
            problems = "; ".join(f"{problem.field}: {problem.message}" for problem in _KIND.problems(content))
            invalid = Condition(type="Ready", status="False", reason="InvalidSpec", message=problems, warning=True)
            self._say(content, invalid)
            return
        self._build(content, spec)

    def _build(self, content: Object, spec: ElasticModelSpec) -> None:
        files, jobs, now = self._files_of(content), self._world.jobs, datetime.now(UTC)
        status: Mapping[str, Any] = content.get("status", {})
        build = read_build(status, files.started_at(built_generation(status)))
        running = build.running
        job = self._job(running.job_id) if running and running.job_id else None
        bundle = files.bundle_status()
        known = {job.id: job} if job else {}
        decision = decide(_declared(content, spec), build, known, bundle_is_there=bundle is not None, now=now)
        build = decision.build
        if job is not None and build.running is not None and build.running.job_id == job.id:
            build = with_progress(build, jobs.last_lines(job, _LOG_LINES))
        if build.started_at is not None:
            files.begin(content, build.generation, build.started_at)
        publisher = self._world.publisher
        publisher.publish(self._world.models, content, build_status(build, bundle), build_conditions(build, now), now)
        for note in decision.notes:
            is_warning = note.type == "Warning"
            said = Condition(type="Ready", status="False", reason=note.reason, message=note.message, warning=is_warning)
            publisher.tell(content, said, now)
        if name_of(content) not in self._world.models.by_name():
            return  # gone, as writing its status has told
        if decision.stop is not None:
            jobs.stop(decision.stop)
        if decision.submit is not None:
            self._submit(content, decision.submit, files)

    def _job(self, job_id: str) -> Job | None:
        job = self._world.jobs.job(job_id)
        return None if job is not None and job.is_lost(ray.nodes()) else job

    def _submit(self, content: Object, stage: Stage, files: ModelFiles) -> None:
        name = name_of(content)
        options = {
            "--manifest": files.manifest(content["metadata"]["generation"]),
            "--output": files.bundle,
            "--base-dir": self._world.settings.base_dir.absolute(),
        }
        arguments = [str(each) for option in options.items() for each in option]
        command = [sys.executable, "-m", f"meedge_ray.jobs.{stage.name}", *arguments]
        labels = {"meedge.dev/model": f"{name.namespace}/{name.name}", "meedge.dev/stage": stage.name}
        self._world.jobs.submit(stage.job_id or "", command, labels)

    def _end(self, content: Object) -> None:
        """Stop its jobs and remove its bundle, as soon as nobody needs it."""
        jobs = self._world.jobs
        of_model = jobs.jobs(_job_prefix(content))
        alive = [job.id for job in of_model if not job.is_over]
        for job_id in alive:
            jobs.stop(job_id)
        if alive:
            self._say(content, _ending(f"its job {alive[0]} is being stopped"))
            return
        if services := self._services_with(content):
            listed = ", ".join(services)
            self._say(content, _ending(f"it stays until no ElasticService refers to it: {listed}", warning=True))
            return
        for job in of_model:
            jobs.delete(job.id)
        self._files_of(content).remove()
        kept = [each for each in content["metadata"]["finalizers"] if each != _FINALIZER]
        self._set_finalizers(content, kept)

    def _services_with(self, content: Object) -> list[str]:
        model = name_of(content)
        return [
            service["metadata"]["name"]
            for service in self._world.services.objects()
            if service["metadata"]["namespace"] == model.namespace
            and any(reference["name"] == model.name for reference in service["spec"]["modelRefs"])
        ]

    def _set_finalizers(self, content: Object, finalizers: list[str]) -> None:
        name = name_of(content)
        # Only if the object is still as it was seen: another's finalizer is not to be lost.
        metadata = {"finalizers": finalizers, "resourceVersion": content["metadata"]["resourceVersion"]}
        view = self._world.models
        after = self._world.api.patch(view.resource, *name, {"metadata": metadata}, manager=MANAGER)
        if "deletionTimestamp" not in after["metadata"] or finalizers:
            view.see(after)

    def _say(self, content: Object, condition: Condition) -> None:
        """Publish one condition; all else stays as it was said."""
        status = {
            field: value
            for field, value in content.get("status", {}).items()
            if field not in ("conditions", "observedGeneration")
        }
        self._world.publisher.publish(self._world.models, content, status, [condition], datetime.now(UTC))

    def _files_of(self, content: Object) -> ModelFiles:
        name = name_of(content)
        if name not in self._files:
            settings = self._world.settings
            manifests = settings.home / "manifests" / name.namespace / name.name
            # Jobs start in another folder.
            self._files[name] = ModelFiles(settings.bundle_folder(*name).absolute(), manifests.absolute())
        return self._files[name]


def _declared(content: Object, spec: ElasticModelSpec) -> Declared:
    return Declared(
        job_prefix=_job_prefix(content),
        generation=content["metadata"]["generation"],
        keys={stage: stage_key(spec, stage) for stage in stages_of(spec)},
        suspend=spec.suspend,
        backoff_limit=spec.backoff_limit,
        deadline_s=spec.active_deadline_seconds,
    )


def _job_prefix(content: Object) -> str:
    metadata = content["metadata"]
    return f"{metadata['namespace']}-{metadata['name']}-{metadata['uid'][:8]}-"


def _ending(message: str, *, warning: bool = False) -> Condition:
    return Condition(type="Ready", status="False", reason="Deleting", message=message, warning=warning)
