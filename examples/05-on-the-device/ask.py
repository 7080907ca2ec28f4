"""Asks a device's agent all the time, as an application would, and says every second what came."""

import argparse
import random
import time
from collections import Counter

import numpy as np

from meedge_ray.agent.client import AgentClient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", help="needed where several agents run")
    parser.add_argument("--seconds", type=float, default=3600.0)
    arguments = parser.parse_args()
    sample = np.random.default_rng(0).integers(0, 256, (1, 16, 16), dtype=np.uint8)
    end = time.monotonic() + arguments.seconds
    with AgentClient(arguments.device) as agent:
        while time.monotonic() < end:
            came, until = Counter[str](), time.monotonic() + 1
            while time.monotonic() < until:
                answer = agent.infer(sample, deadline_ms=random.uniform(0.5, 5))
                came[answer.branch or ("the final exit" if answer.label is not None else "nothing yet")] += 1
            running, memory = agent.status().running, agent.status().memory
            assert running is not None
            said = ", ".join(f"{count} x {name}" for name, count in came.most_common(4))
            print(
                f"{len(running.branches)} branches in {running.resident_bytes} of {memory.allowed_bytes} bytes: {said}"
            )


if __name__ == "__main__":
    main()
