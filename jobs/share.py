"""Make smaller copies of the zoo's surviving branches: a stage of the build."""

import sys

from meedge_ray.jobs.command import run_job

if __name__ == "__main__":
    sys.exit(run_job("share", __doc__))
