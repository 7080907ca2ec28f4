"""Builds a bundle on the cluster it is submitted to.

    ray job submit --working-dir . -- python -m meedge_ray.jobs.build --manifest model.yaml --output /shared/bundle

The output folder (and data and weights the manifest names) must be on a file system that all workers share.
"""

import argparse
import os
import sys
from pathlib import Path

import ray

from meedge_ray.domain.errors import InvalidInputError, MeedgeError
from meedge_ray.jobs.tasks import run_on_ray
from meedge_ray.train.build import build
from meedge_ray.train.manifest import read_manifest


def main() -> int:
    """Run the job; return its exit code."""
    parser = argparse.ArgumentParser(prog="meedge_ray.jobs.build", description="Build a bundle as a Ray job.")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest of kind ElasticModel")
    parser.add_argument("--output", type=Path, required=True, help="the bundle's folder, shared by all workers")
    arguments = parser.parse_args()
    try:
        if "RAY_ADDRESS" not in os.environ:
            raise InvalidInputError(
                "no cluster", where="RAY_ADDRESS", do="Submit this with `ray job submit`, or run `meedge build`"
            )
        manifest = read_manifest(arguments.manifest)
        ray.init(log_to_driver=False)
        bundle = build(manifest, arguments.output, run=run_on_ray, report=_print)
    except MeedgeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{bundle.model}: {len(bundle.branches)} branches in {arguments.output}\n")
    return 0


def _print(stage: str, done: float, total: float, detail: str = "") -> None:
    sys.stdout.write(f"{stage} {done:.1f}/{total:.0f} {detail}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
