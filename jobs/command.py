"""The command line of every job: a manifest, the bundle's folder, progress on stdout, one clear line on errors."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from meedge_ray.domain.errors import InvalidInputError, MeedgeError, UnavailableError
from meedge_ray.train.build import Build
from meedge_ray.train.manifest import Manifest, read_manifest
from meedge_ray.train.progress import Report
from meedge_ray.train.tasks import Task

_EXAMPLE = """example:
  ray job submit --working-dir . -- python -m meedge_ray.jobs.{job} --manifest model.yaml --output /shared/bundle

The output folder, and data and weights that the manifest names, must be on a file system that all workers share. A job
that was killed goes on where it was when it is submitted again; what is finished is not done again.
"""


def run_job(job: str, does: str | None) -> int:
    """Run one stage of the build that this process's arguments name, or all; return the exit code.

    Args:
        job: the stage's name, or `build`.
        does: what it does, for its help.
    """
    try:
        manifest, output = _arguments(job, does)
        build = Build(manifest, output, run=_on_cluster)
        stages = build.stages if job == "build" else (job,)
        worked = [build.run(stage, _progress(stage)) for stage in stages]
    except MeedgeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    bundle = build.bundle
    done = f"{job} is finished" if bundle is None else f"{len(bundle.branches)} branches"
    sys.stdout.write(f"{manifest.model.metadata.name}: {done} in {output}{'' if any(worked) else ', as before'}\n")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInputError(message, do=f"See {self.prog} --help")


def _arguments(job: str, does: str | None) -> tuple[Manifest, Path]:
    parser = _Parser(
        prog=f"python -m meedge_ray.jobs.{job}",
        description=does,
        epilog=_EXAMPLE.format(job=job),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--manifest", type=Path, required=True, metavar="FILE", help="a manifest of kind ElasticModel")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    parser.add_argument(
        "--base-dir", type=Path, metavar="DIR", help="where relative paths start from [default: the manifest's folder]"
    )
    given = parser.parse_args()
    if "RAY_ADDRESS" not in os.environ:
        raise InvalidInputError(
            "no cluster", where="RAY_ADDRESS", do="Submit this with `ray job submit`, or run `meedge build`"
        )
    manifest = read_manifest(given.manifest)
    if given.base_dir is None:
        return manifest, given.output
    if not given.base_dir.is_dir():
        raise InvalidInputError(
            "no such folder", where="--base-dir", do="Name the folder that relative paths start from"
        )
    return replace(manifest, base_dir=given.base_dir.resolve()), given.output


def _on_cluster(tasks: Sequence[Task], report: Report) -> None:
    # Ray and torch take seconds to import and to connect, and many a stage has nothing for workers.
    import ray  # noqa: PLC0415

    from meedge_ray.jobs.tasks import run_on_ray  # noqa: PLC0415

    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise UnavailableError(
                f"cannot connect to the cluster ({error})",
                where="RAY_ADDRESS",
                do="Check that it runs, and that this node reaches it",
            ) from error
    run_on_ray(tasks, report)


def _progress(running: str) -> Report:
    def write(stage: str, done: float, total: float, detail: str = "") -> None:
        said = detail if stage == running else f"{stage} {detail}"
        sys.stdout.write(f"progress {running} {done:.1f}/{total:.0f} {said}".rstrip() + "\n")
        sys.stdout.flush()

    return write
