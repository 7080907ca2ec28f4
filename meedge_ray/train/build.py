"""From a manifest to a bundle: one stage after another, each of which a killed build finds again.

model + data -> pretrain -> cultivate -> share -> elasticize -> assemble -> bundle
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from meedge_ray.domain.elastic import Bundle
from meedge_ray.train.manifest import Manifest
from meedge_ray.train.progress import Report, silent
from meedge_ray.train.stages import StageFolders
from meedge_ray.train.tasks import RunTasks, run_in_turn

if TYPE_CHECKING:
    from meedge_ray.train.stage_work import StageWork


class Build:
    """One build of one manifest in one folder, stage by stage."""

    def __init__(self, manifest: Manifest, output: Path, *, run: RunTasks = run_in_turn) -> None:
        """Take what is built, the bundle's folder, and who works on the stages' tasks; nothing is done yet."""
        self._manifest, self._run_tasks = manifest, run
        self._folders = StageFolders(manifest, output)
        self.stages = self._folders.stages

    @property
    def bundle(self) -> Bundle | None:
        """What is built, once all stages are finished."""
        return self._folders.bundle()

    def run(self, stage: str, report: Report = silent) -> bool:
        """Run a stage, going on where it was killed; return whether there was anything to do. Errors: `run_stage`."""
        self._folders.check_turn(stage)
        worked = not self._folders.finished(stage) and self._worked(stage, report)
        if stage == "assemble":
            self._folders.sweep()
        return worked

    def _worked(self, stage: str, report: Report) -> bool:
        with self._folders.alone(stage, report):
            if self._folders.finished(stage):
                return False  # another process was at it
            self._work.stages[stage](report)
            self._folders.finish(stage)
            return True

    @cached_property
    def _work(self) -> "StageWork":
        # torch takes seconds to import, and a build that is finished needs none.
        from meedge_ray.train.blueprint import Blueprint  # noqa: PLC0415
        from meedge_ray.train.stage_work import StageWork  # noqa: PLC0415

        return StageWork(Blueprint(self._manifest, self._folders), self._run_tasks)


def build(manifest: Manifest, output: Path, *, run: RunTasks = run_in_turn, report: Report = silent) -> Bundle:
    """Build the manifest's bundle in the folder `output`, going on where an earlier build was killed.

    A stage that is finished, and depends on nothing that changed since, is not done again.

    Args:
        manifest: what to build.
        output: the bundle's folder; an earlier bundle in it stays whole until the new one replaces it.
        run: works on the exits still missing, here in turn or on a cluster.
        report: told every stage's progress.

    Raises:
        MeedgeError: the manifest, its data or its model cannot be used; the message says which and why.
    """
    whole = Build(manifest, output, run=run)
    for stage in whole.stages:
        whole.run(stage, report)
    bundle = whole.bundle
    assert bundle is not None
    return bundle


def run_stage(
    stage: str, manifest: Manifest, output: Path, *, run: RunTasks = run_in_turn, report: Report = silent
) -> bool:
    """Run one stage of the build, see `api.stages`; return whether there was anything to do.

    Args:
        stage: its name.
        manifest: what is built.
        output: the bundle's folder.
        run: works on the stage's tasks, here in turn or on a cluster.
        report: told the progress.

    Raises:
        InvalidInputError: the build has no such stage, or one that it needs is not finished; the message says which.
        MeedgeError: the manifest, its data or its model cannot be used.
    """
    return Build(manifest, output, run=run).run(stage, report)
