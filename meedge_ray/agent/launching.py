"""How an agent's process is started, by those who are not to load what it is made of."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from meedge_ray.agent.places import RUN_DIR, AgentPlace, place_of
from meedge_ray.api.agent import AgentSettings
from meedge_ray.bundle.files import write_atomically


def agent_command(place: AgentPlace, settings: AgentSettings) -> list[str]:
    """Return the command that runs an agent by these settings, which are written beside its socket.

    Raises:
        UnavailableError: the file system refuses.
    """
    file = place.path / "settings.json"
    write_atomically(file, settings.model_dump_json().encode(), private=True)
    return [sys.executable, "-m", "meedge_ray.agent", str(file)]


def become(settings: AgentSettings, run_dir: Path | None = None) -> NoReturn:
    """Let this process become the agent, and leave behind what it has loaded so far.

    Raises:
        InvalidInputError: the device's name, or the path, cannot be used.
        UnavailableError: the file system refuses.
    """
    place = place_of(settings.device, run_dir)
    command = agent_command(place, settings)
    os.execve(command[0], command, {**os.environ, RUN_DIR: str(place.path.parent)})  # noqa: S606 - no shell is needed
