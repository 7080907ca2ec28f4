"""Train the backbone that comes without weights, and its exits with it: a stage of the build."""

import sys

from meedge_ray.jobs.command import run_job

if __name__ == "__main__":
    sys.exit(run_job("pretrain", __doc__))
