"""Train the supernet, lighter blocks beside the backbone's: a stage of the build."""

import sys

from meedge_ray.jobs.command import run_job

if __name__ == "__main__":
    sys.exit(run_job("elasticize", __doc__))
