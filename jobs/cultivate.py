"""Train the branches of the zoo at every exit: a stage of the build."""

import sys

from meedge_ray.jobs.command import run_job

if __name__ == "__main__":
    sys.exit(run_job("cultivate", __doc__))
