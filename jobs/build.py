"""Build a bundle: all stages, one after another."""

import sys

from meedge_ray.jobs.command import run_job

if __name__ == "__main__":
    sys.exit(run_job("build", __doc__))
