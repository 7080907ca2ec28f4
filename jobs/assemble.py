"""Export and measure what was trained, and write the bundle: the last stage of the build."""

import sys

from meedge_ray.jobs.command import run_job

if __name__ == "__main__":
    sys.exit(run_job("assemble", __doc__))
