"""Agents in processes of their own, with a client each."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from meedge_ray.agent.client import AgentClient
from meedge_ray.agent.status import AgentStatus
from meedge_ray.api.agent import AgentSettings
from meedge_ray.domain.errors import MeedgeError

_PATIENCE_S = 120.0


@contextmanager
def agent_process(
    folder: Path, *, prefix: Sequence[str] = (), python: str = sys.executable, **settings: object
) -> Iterator[tuple[AgentClient, int]]:
    """Run an agent that has its files in a folder; give a client and its process's id, once its units are there.

    `prefix` is a command that becomes the one that follows it.
    """
    said = AgentSettings.model_validate({"cache_dir": str(folder / "cache"), **settings})
    path = folder / f"{said.device}.json"
    path.write_text(said.model_dump_json())
    command = [*prefix, python, "-m", "meedge_ray.agent", str(path)]
    process = subprocess.Popen(command, env=os.environ | {"MEEDGE_RUN_DIR": str(folder / "run")})
    try:
        with AgentClient(said.device, run_dir=folder / "run", timeout_s=60) as client:
            placed(client)
            yield client, process.pid
    finally:
        process.terminate()
        process.wait()


def placed(client: AgentClient) -> AgentStatus:
    """Return how it stands, when what the service chose is in memory."""
    give_up = time.monotonic() + _PATIENCE_S
    while time.monotonic() < give_up:
        with suppress(MeedgeError):
            status = client.status()
            if status.running is not None and status.running.source == "service" and not status.busy:
                return status
        time.sleep(0.01)
    raise TimeoutError("the agent has no units of the service's")
