"""Processes that are ours: told by pid and time of creation, or by the mark all their descendants inherit."""

import os
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

_HOME, _PART = "MEEDGE_UP_HOME", "MEEDGE_UP_PART"
# Clocks are set now and then, and the time of creation is counted from the boot.
_SAME_S = 2.0


def mark(home: Path, part: str) -> dict[str, str]:
    """Return the environment variables by which a process and all it starts are found again."""
    # Ray's processes write their titles over the environment that others see, unless told not to.
    return {_HOME: str(home), _PART: part, "SPT_NOENV": "1"}


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for good: its number alone is given to another one day. `created` is in seconds since 1970."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the identity of a process, None if there is none of that number."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None

    def process(self) -> psutil.Process | None:
        """Return the process, None if it has ended."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.created) < _SAME_S
            return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def children(parent: ProcessId, names: Collection[str]) -> list[ProcessId]:
    """Return the processes of these names that a process has started itself."""
    process = parent.process()
    found: list[ProcessId | None] = []
    with suppress(psutil.NoSuchProcess):
        started = process.children() if process else []
        found = [ProcessId.of(each.pid) for each in started if each.name() in names]
    return [each for each in found if each is not None]


def marked(home: Path, part: str | None = None) -> list[psutil.Process]:
    """Return all live processes of a home, or of one part of it, but for this one."""
    return [each for each in psutil.process_iter() if each.pid != os.getpid() and _bears(each, home, part)]


def end(processes: Iterable[psutil.Process], *, grace_s: float) -> None:
    """Tell them to end, and kill those that are left after `grace_s` seconds."""
    left = list(processes)
    for process in left:
        with suppress(psutil.Error):
            process.terminate()
    left = _alive_after(left, grace_s)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    _alive_after(left, grace_s)


def end_marked(home: Path, part: str | None = None, *, grace_s: float) -> None:
    """End all of a home or of one part of it, whatever they start meanwhile.

    Raises:
        TimeoutError: some are left: the system does not let them go.
    """
    for _ in range(5):
        found = marked(home, part)
        if not found:
            return
        end(found, grace_s=grace_s)
        grace_s = 1.0
    if found := marked(home, part):
        raise TimeoutError(f"processes {', '.join(str(each.pid) for each in found)} cannot be killed")


def _alive_after(processes: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    deadline = time.monotonic() + timeout_s
    # Not psutil's own wait: somebody else's dead child stays a zombie where nobody asks after it.
    while (left := [each for each in processes if _lives(each)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _bears(process: psutil.Process, home: Path, part: str | None) -> bool:
    try:
        environment: Mapping[str, str] = process.environ()
        mine = environment.get(_HOME) == str(home) and part in (None, environment.get(_PART))
        return mine and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False
