"""What an agent is compared with: a process that serves one engine over the same socket, and never changes it.

Run: python benchmarks/_edge_fixed.py BUNDLE_FOLDER METHOD RUN_FOLDER; METHOD names branches of the bundle's baselines,
or single_exit for none.
"""

import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from meedge_ray.agent.listening import Server
from meedge_ray.agent.metrics import Histogram
from meedge_ray.agent.places import place_of
from meedge_ray.agent.status import AgentStatus, Counts, MemoryState
from meedge_ray.bundle.manifest import read_bundle, unit_store
from meedge_ray.domain.answer import Answer
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.memory import release_to_os, rss_bytes

SINGLE_EXIT = "single_exit"


class FixedAgent:
    """Answers with what it was given."""

    def __init__(self, engine: Engine, sample_bytes: int, device: str) -> None:
        self.engine, self.sample_bytes, self._device = engine, sample_bytes, device
        self.latencies = Histogram()
        self._started_at = time.time()

    def infer(self, sample: Any, *, deadline_ms: float | None = None) -> Answer:  # noqa: ANN401 - as the engine's
        """Answer for one raw sample."""
        return self.engine.infer(sample, deadline_ms=deadline_ms)

    def status(self) -> AgentStatus:
        """Return that it runs."""
        return AgentStatus(
            device=self._device,
            pid=os.getpid(),
            version=version("meedge-ray"),
            started_at=self._started_at,
            settings_sha256="",
            busy=False,
            problem=None,
            running=None,
            mode="anytime",
            latency_ms=None,
            memory=MemoryState(
                source="",
                limit_bytes=None,
                used_bytes=None,
                pressure=None,
                allowed_bytes=self.engine.resident_bytes,
                rss_bytes=rss_bytes(),
            ),
            counts=Counts(),
        )

    def set_memory(self, memory_bytes: int, *, in_ms: float = 0.0) -> AgentStatus:  # noqa: ARG002
        """Do nothing: it holds what it holds."""
        return self.status()

    def set_latency(self, latency_ms: float | None) -> AgentStatus:  # noqa: ARG002
        """Do nothing."""
        return self.status()

    def renew_token(self, token: str) -> None:
        """Do nothing: it asks no service."""

    def preempt(self) -> int:
        """End nothing."""
        return 0


def main() -> None:
    folder, method, run_dir = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    bundle, store = read_bundle(folder), unit_store(folder)
    branches = () if method == SINGLE_EXIT else bundle.baselines[method]
    # One unit at a time, as the agent loads them: what is read ahead would count against it.
    engine = Engine(
        bundle.input, (store.read(block.unit.sha256) for block in bundle.blocks), final_accuracy=bundle.final_accuracy
    )
    engine.place(branches, lambda unit: store.read(unit.sha256))
    sample_bytes = engine.random_sample().nbytes * 2
    del bundle, branches
    release_to_os()
    place = place_of(method.replace("_", "-"), run_dir)
    with place.claimed():
        Server(FixedAgent(engine, sample_bytes, place.device), place).serve_place()


if __name__ == "__main__":
    main()
