"""A process in a memory group of its own: limits set as a kernel would, and what it holds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

# The real groups of the tests, which are no package.
sys.path.append(str(Path(__file__).parent.parent / "tests" / "support"))
from memory_groups import MemoryGroup, memory_group

from meedge_ray.agent.client import AgentClient
from meedge_ray.domain.errors import UnavailableError

__all__ = ["Enforced", "MemoryGroup", "Resident", "Watch", "held_bytes", "memory_group"]

GRACE_S = 0.1  # from the announcement of a sudden change until who is above it is killed
AMPLE_BYTES = 2**30
READY_S = 60.0
_TRY_S = 0.0005
_WATCH_S = 0.02


@dataclass(frozen=True)
class Enforced:
    """What came of a limit: whether it had to be waited for, how long until the kernel took it, and who was killed."""

    waited: bool
    after_ms: float
    killed: bool


class Resident:
    """One process that serves on a socket, in a group; started again when it is told to."""

    def __init__(
        self, group: MemoryGroup, command: Sequence[str], client: AgentClient, environment: Mapping[str, str] = {}
    ) -> None:
        self.group, self.client = group, client
        self._command, self._environment = group.command(command), {**os.environ, **environment}
        self._lost = 0
        self.start()

    @property
    def kills(self) -> int:
        """How often it was killed for memory: by the kernel, and where a limit could not be had."""
        return self._lost + self.group.oom_kills()

    def start_again(self) -> None:
        """Start it while others are measured: it loads with what processor time they leave."""
        self._command = ["nice", "-n", "19", *self._command]
        try:
            self.start()
        finally:
            self._command = self._command[3:]
        for thread in Path(f"/proc/{self._process.pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), os.getpriority(os.PRIO_PROCESS, 0))

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def start(self) -> None:
        """Start it without a limit, for loading takes more than serving; return when it answers."""
        self.group.set_limit(AMPLE_BYTES)
        self.group.announce(AMPLE_BYTES)
        self._process = subprocess.Popen(self._command, env=self._environment)
        # Where it has a neighbour, the kernel chooses it. Sparing the neighbour instead takes more rights.
        Path(f"/proc/{self._process.pid}/oom_score_adj").write_text("1000")
        until = time.monotonic() + READY_S
        while not self._ready():
            if not self.alive or time.monotonic() > until:
                raise TimeoutError(f"{self.client.device} does not begin to answer")
            time.sleep(0.02)

    def _ready(self) -> bool:
        try:
            status = self.client.status()
        except UnavailableError:
            return False
        return status.settings_sha256 == "" or (status.running is not None and not status.busy)

    def kill(self) -> None:
        """End it by SIGKILL, as the kernel does."""
        if self.alive:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def enforce(self, limit_bytes: int) -> Enforced:
        """Announce a limit and have it at once, or after the grace by killing."""
        start = time.perf_counter()
        self.group.announce(limit_bytes)
        waited = killed = False
        while not _taken(self.group, limit_bytes):
            waited = True
            if time.perf_counter() - start > GRACE_S:
                killed, self._lost = self.alive, self._lost + self.alive
                self.kill()
            time.sleep(_TRY_S)
        return Enforced(waited, (time.perf_counter() - start) * 1e3, killed or not self.alive)


def held_bytes(group: MemoryGroup) -> int:
    """Return what counts against the limit less what the kernel gives up by itself."""
    total, mapped = ("total_", "total_mapped_file") if group.version == 1 else ("", "file_mapped")
    lines = (group.folder / "memory.stat").read_text().splitlines()
    counted = {name: int(value) for name, value in (line.split() for line in lines)}
    active = max(0, counted[f"{total}active_file"] - counted[mapped])
    return group.used_bytes() - counted[f"{total}inactive_file"] - active


def _taken(group: MemoryGroup, limit_bytes: int) -> bool:
    # Version 2 takes any limit, and kills: it has the same grace as version 1 gives by refusing.
    return (group.version == 1 or group.used_bytes() <= limit_bytes) and group.set_limit(limit_bytes)


class Watch(Thread):
    """Notes every 20 ms what a group may hold and holds, and whether its process lives."""

    def __init__(self, resident: Resident, start_s: float) -> None:
        super().__init__(daemon=True)
        self.rows: list[tuple[float, int, int, bool]] = []  # seconds, limit, held, alive
        self._resident, self._start_s, self._over = resident, start_s, Event()

    def run(self) -> None:
        """Note on and on."""
        group = self._resident.group
        while not self._over.wait(_WATCH_S):
            at_s = time.perf_counter() - self._start_s
            self.rows.append((at_s, group.limit_bytes(), held_bytes(group), self._resident.alive))

    def end(self) -> list[tuple[float, int, int, bool]]:
        """Stop; return what was noted."""
        self._over.set()
        self.join()
        return self.rows
