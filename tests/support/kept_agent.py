"""An agent kept running as the device's actor keeps it: what is killed is started again, from a thread."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from meedge_ray.actors.agents import running_agent, stop_agent
from meedge_ray.agent.client import AgentClient
from meedge_ray.agent.places import place_of
from meedge_ray.agent.status import AgentStatus
from meedge_ray.api.agent import AgentSettings
from meedge_ray.domain.errors import MeedgeError

_LOOK_S = 0.1
_POLL_S = 0.01


class KeptAgent:
    """The agent of a device, whichever process it is now. MEEDGE_RUN_DIR says where it has its folder."""

    def __init__(self, settings: AgentSettings) -> None:
        self.place = place_of(settings.device)
        self.client = AgentClient(settings.device, timeout_s=60.0)

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        record = self.place.record()
        assert record is not None
        return record.pid

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send its process a signal; return which that was."""
        pid = self.pid
        os.kill(pid, number)
        return pid

    def until(self, holds: Callable[[AgentStatus], bool], *, timeout_s: float = 60.0) -> AgentStatus:
        """Wait until its status is such, and return that."""
        give_up = time.monotonic() + timeout_s
        status = None
        while time.monotonic() < give_up:
            with suppress(MeedgeError):
                status = self.client.status()
                if holds(status):
                    return status
            time.sleep(_POLL_S)
        raise AssertionError(f"the agent did not come to it: {status}")


def is_placed(status: AgentStatus) -> bool:
    """Whether the service has chosen what is resident, and all of it is there."""
    return status.running is not None and status.running.source == "service" and not status.busy


@contextmanager
def kept(settings: AgentSettings, where: AbstractContextManager[None] | None = None) -> Iterator[KeptAgent]:
    """Keep an agent running while the context lasts, such as `where` the thread that starts it is."""
    agent, over, started = KeptAgent(settings), threading.Event(), threading.Event()

    def keep() -> None:
        with where or nullcontext():
            while not over.is_set():
                if not agent.place.is_listened_to():
                    with suppress(MeedgeError):
                        running_agent(settings).close()
                started.set()
                over.wait(_LOOK_S)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        started.wait()
        yield agent
    finally:
        over.set()
        thread.join()
        agent.client.close()
        with suppress(MeedgeError):
            stop_agent(agent.place)
