"""Real memory control groups, of the version this kernel has, for children to live in."""

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_MOUNT = Path("/sys/fs/cgroup")
_GONE_S = 10


@dataclass(frozen=True)
class MemoryGroup:
    """One group. `version` is 1 or 2."""

    folder: Path
    version: int

    def add(self, pid: int) -> None:
        """Move a process in; what it holds already stays counted where it was taken."""
        self._write("cgroup.procs", pid)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return a command that runs another within the group from its first byte on, under the same process id."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *arguments]

    def set_limit(self, limit_bytes: int) -> bool:
        """Set the limit; return whether the kernel took it.

        Version 1 refuses one below what is in use; version 2 takes any, and kills whoever is above it.
        """
        try:
            self._write("memory.limit_in_bytes" if self.version == 1 else "memory.max", limit_bytes)
        except OSError:
            return False
        return True

    def announce(self, limit_bytes: int) -> None:
        """Set what no one is killed for: version 1's soft limit, or version 2's memory.high, which slows down."""
        self._write("memory.soft_limit_in_bytes" if self.version == 1 else "memory.high", limit_bytes)

    def limit_bytes(self) -> int:
        """Return the limit."""
        return int(self._read("memory.limit_in_bytes" if self.version == 1 else "memory.max"))

    def used_bytes(self) -> int:
        """Return what counts against the limit, files of the page cache too."""
        return int(self._read("memory.usage_in_bytes" if self.version == 1 else "memory.current"))

    def oom_kills(self) -> int:
        """Return how many processes the kernel has killed for the limit."""
        counts = dict(
            line.split()
            for line in self._read("memory.oom_control" if self.version == 1 else "memory.events").splitlines()
        )
        return int(counts["oom_kill"])

    def pids(self) -> list[int]:
        """Return who is in it."""
        return [int(pid) for pid in self._read("cgroup.procs").split()]

    def _read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def _write(self, name: str, value: object) -> None:
        (self.folder / name).write_text(str(value))


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """Make a group within this process's own; at the end kill who is left in it, and remove it.

    Skips the test where the kernel or the rights forbid it.
    """
    group = _made()
    try:
        # Swapped out is not given back.
        with contextlib.suppress(OSError):
            group._write("memory.swappiness" if group.version == 1 else "memory.swap.max", 0)
        if not group.set_limit(limit_bytes):
            pytest.skip(f"the kernel refuses a limit of {limit_bytes} bytes for a memory group")
        yield group
    finally:
        _remove(group)


def _made() -> MemoryGroup:
    name = f"meedge-test-{os.getpid()}-{secrets.token_hex(4)}"
    refusals = []
    for parent, version in _parents():
        folder = parent / name
        try:
            if version == 2 and "memory" not in (parent / "cgroup.subtree_control").read_text().split():
                (parent / "cgroup.subtree_control").write_text("+memory")
            folder.mkdir()
        except OSError as error:
            refusals.append(str(error))
            continue
        if (folder / ("memory.limit_in_bytes" if version == 1 else "memory.max")).exists():
            return MemoryGroup(folder, version)
        folder.rmdir()
        refusals.append(f"{folder} bounds no memory")
    pytest.skip(f"no memory group can be made here: {'; '.join(refusals) or 'the kernel has no memory controller'}")


def _parents() -> Iterator[tuple[Path, int]]:
    """Yield where a group may be made. Version 2 allows none below a group with processes, so also beside its own."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if (_MOUNT / "memory/memory.limit_in_bytes").exists():
        mount, version = _MOUNT / "memory", 1
        group = next(path for names, path in own.items() if "memory" in names.split(","))
    elif (_MOUNT / "cgroup.controllers").exists():
        mount, version, group = _MOUNT, 2, own.get("", "/")
    else:
        return
    folder = mount / group.lstrip("/")
    parents = [folder, folder.parent] if version == 2 and folder != mount else [folder]
    for parent in parents if folder.is_dir() and ".." not in folder.parts else [mount]:
        yield parent, version


def _remove(group: MemoryGroup) -> None:
    deadline = time.monotonic() + _GONE_S
    while True:
        for pid in group.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            group.folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
