"""What is submitted to a Ray cluster: `ray job submit -- python -m meedge_ray.jobs.build ...`, or one stage of it."""
