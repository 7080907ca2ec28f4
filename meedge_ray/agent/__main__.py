"""`python -m meedge_ray.agent SETTINGS`: the agent's process."""

import os
import signal
import sys
from pathlib import Path

from pydantic import ValidationError

from meedge_ray.agent.agent import Agent
from meedge_ray.agent.listening import Server
from meedge_ray.agent.places import place_of
from meedge_ray.agent.problems import invalid
from meedge_ray.api.agent import AgentSettings
from meedge_ray.domain.errors import InvalidInputError, MeedgeError
from meedge_ray.runtime.memory import use_one_heap


def run(settings: AgentSettings, run_dir: Path | None = None) -> None:
    """Run a device's agent in this process until it is told to end.

    SIGUSR1 takes the processor away: all inferences under way return the best they have.

    Raises:
        InvalidInputError: the settings cannot be used.
        UnavailableError: an agent of this device runs already, or the port is taken.
    """
    place = place_of(settings.device, run_dir)
    with place.claimed(), Agent(settings) as agent:
        server = Server(agent, place, http_port=settings.http_port)
        signal.signal(signal.SIGUSR1, lambda *_: agent.preempt())
        server.serve_place()


def read_settings(path: Path) -> AgentSettings:
    """Return the settings that a file holds as JSON.

    Raises:
        InvalidInputError: it cannot be read, or says something else.
    """
    try:
        return AgentSettings.model_validate_json(path.read_bytes())
    except OSError as error:
        do = "Name a file of the agent's settings"
        raise InvalidInputError(f"cannot be read ({error.strerror})", where=str(path), do=do) from None
    except ValidationError as error:
        raise invalid(error, where=str(path)) from None


def main() -> None:
    """Run the agent that the file named by the first argument describes; it is read once."""
    use_one_heap()
    try:
        run(read_settings(Path(sys.argv[1])))
    except MeedgeError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
    # All threads have ended that matter; the rest would be waited for.
    sys.stdout.flush()
    os._exit(0)
