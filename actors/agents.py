"""The agent's process on a device's node: started, adopted, started again, and ended."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from meedge_ray.actors.waiting import eventually
from meedge_ray.agent.client import AgentClient
from meedge_ray.agent.launching import agent_command
from meedge_ray.agent.places import AgentPlace, place_of, run_folder
from meedge_ray.api.agent import AgentSettings
from meedge_ray.domain.errors import MeedgeError, UnavailableError

_START_TIMEOUT_S = 30.0  # a Raspberry Pi takes five seconds to import what an agent is made of
_STOP_TIMEOUT_S = 5.0
_LOG_BYTES = 2000

# A shell that ends at once: a Ray worker takes its children with it, and the agent is to outlive it.
_LET_GO = '"$@" >"$0" 2>&1 </dev/null & echo $!'


def running_agent(settings: AgentSettings) -> AgentClient:
    """Return the device's agent, running by these settings: the one that runs, or another in its place.

    Raises:
        UnavailableError: it does not start; the message ends with what its log says.
    """
    place = place_of(settings.device)
    client = AgentClient(settings.device, timeout_s=_START_TIMEOUT_S)
    if place.is_listened_to() and _is_adopted(client, settings):
        return client
    client.close()
    stop_agent(place)
    log = place.path / "log"
    pid = _spawn(place, settings, log)
    eventually(lambda: place.is_listened_to() or not psutil.pid_exists(pid), timeout_s=_START_TIMEOUT_S)
    if not place.is_listened_to():
        raise UnavailableError(
            "the device's agent did not start", where=str(log), do=f"Its log says:\n{_end_of(log) or '(nothing)'}"
        )
    return client


def _is_adopted(client: AgentClient, settings: AgentSettings) -> bool:
    with suppress(UnavailableError):
        if client.status().settings_sha256 == settings.sha256:
            client.renew_token(settings.token)
            return True
    return False


def stop_agent(place: AgentPlace) -> None:
    """End the agent of a place, by force where it does not end by itself."""
    record = place.record()
    if record is None:
        return
    with suppress(MeedgeError), AgentClient(record.device, run_dir=place.path.parent, timeout_s=1.0) as client:
        client.stop()
    if not eventually(lambda: not place.is_claimed(), timeout_s=_STOP_TIMEOUT_S):
        with suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGKILL)
        eventually(lambda: not place.is_claimed(), timeout_s=_STOP_TIMEOUT_S)


def stop_agents(run_dir: Path | None = None) -> None:
    """End all agents that have their folders there."""
    for record in (run_folder() if run_dir is None else run_dir).glob("*/agent.json"):
        stop_agent(AgentPlace(record.parent.name, record.parent.parent))


def _spawn(place: AgentPlace, settings: AgentSettings, log: Path) -> int:
    command = ["/bin/sh", "-c", _LET_GO, str(log), *agent_command(place, settings)]
    return int(subprocess.check_output(command, start_new_session=True))


def _end_of(log: Path) -> str:
    with suppress(OSError):
        return log.read_text(errors="replace")[-_LOG_BYTES:].strip()
    return ""
