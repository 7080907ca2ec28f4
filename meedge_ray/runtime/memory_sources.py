"""The memory that a process's control groups and its machine leave it, as the kernel tells it."""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_UNLIMITED = 2**60  # version 1 writes the largest multiple of a page instead
_LOOK_AGAIN_S = 5.0  # a limit set for the first time brings files that were not there before
_MOST_BYTES = 65_536  # longer than any of these files

_OUTER_LIMIT = re.compile(rb"^hierarchical_memory_limit (\d+)$", re.MULTILINE)
_AVAILABLE = re.compile(rb"^MemTotal: +(\d+) kB\n(?:.*\n)*?MemAvailable: +(\d+) kB$", re.MULTILINE)
_STALLED = re.compile(rb"^some .*total=(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """What may be used by whom `source`, a file of the kernel, bounds, and what is.

    `used_bytes` are without those that the kernel gives up by itself when memory grows short.
    """

    source: str
    limit_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        """What is left; 0 where more is used than may be."""
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True, slots=True)
class _Version:
    """How a version of control groups names its files; limits come from a group itself, or from one around it."""

    own_limits: tuple[str, ...]
    outer_limits: tuple[str, ...]
    used: str
    inactive_files: re.Pattern[bytes]
    active_files: re.Pattern[bytes]
    mapped_files: re.Pattern[bytes]

    def given_up_bytes(self, statistics: bytes) -> int:
        """Return what the kernel takes back before it kills: files' pages in its cache.

        Not those that processes map and use: without them they would crawl.
        """
        active_bytes = _counted(self.active_files, statistics) - _counted(self.mapped_files, statistics)
        return _counted(self.inactive_files, statistics) + max(0, active_bytes)


def _named(name: str) -> re.Pattern[bytes]:
    return re.compile(rf"^{name} (\d+)$".encode(), re.MULTILINE)


def _counted(name: re.Pattern[bytes], statistics: bytes) -> int:
    found = name.search(statistics)
    return int(found[1]) if found else 0


# The soft limit binds nobody: it announces what the limit is about to be.
_V1 = _Version(
    ("memory.limit_in_bytes", "memory.soft_limit_in_bytes"),
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    _named("total_inactive_file"),
    _named("total_active_file"),
    _named("total_mapped_file"),
)
_V2 = _Version(
    ("memory.max", "memory.high"),
    ("memory.max", "memory.high"),
    "memory.current",
    _named("inactive_file"),
    _named("active_file"),
    _named("file_mapped"),
)


class _File:
    """A file of the kernel, kept open: opening takes several times as long as reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        return os.pread(self._descriptor, _MOST_BYTES, 0)

    def close(self) -> None:
        os.close(self._descriptor)


class _Group:
    """One control group that bounds the process."""

    def __init__(self, folder: Path, version: _Version, *, own: bool) -> None:
        self._version = version
        self._limits = _opened(folder, version.own_limits if own else version.outer_limits)
        self._usage = _opened(folder, (version.used, "memory.stat"))
        # Version 1 tells a group's own statistics about limits around it, even where those are out of sight.
        self._tells_outer = own and version is _V1

    def reading(self) -> MemoryReading | None:
        """Return None where nothing bounds the group.

        Raises:
            OSError, ValueError: the group has changed.
        """
        if len(self._usage) < 2:
            return None
        used, statistics = self._usage
        bounds = [(_limit_bytes(file.read()), file.path) for file in self._limits]
        told = b""
        if self._tells_outer:
            told = statistics.read()
            if outer := _OUTER_LIMIT.search(told):
                bounds.append((int(outer[1]), statistics.path))
        limit_bytes, source = min(bounds, default=(_UNLIMITED, Path()))
        if limit_bytes >= _UNLIMITED:
            return None
        used_bytes = int(used.read()) - self._version.given_up_bytes(told or statistics.read())
        return MemoryReading(str(source), limit_bytes, max(0, used_bytes))

    def close(self) -> None:
        for file in (*self._limits, *self._usage):
            file.close()


class MemorySources:
    """All that bounds a process's memory: its control groups of either version, those around them, the machine.

    What changes under way, the process's group too, is found again. Not for several threads at a time.
    """

    def __init__(
        self, *, root: Path = Path("/"), pid: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Find what there is.

        Args:
            root: where `/proc` and the mounts lie.
            pid: whose memory; None: this process's.
            clock: seconds, which shares of time are taken of.
        """
        self._root, self._clock = root, clock
        self._process = root / "proc" / ("self" if pid is None else str(pid))
        self._files: list[_File] = []
        self._groups: list[_Group] = []
        self._pressures: list[_File] = []
        self._membership: _File | None = None
        self._meminfo: _File | None = None
        self._stalled: tuple[Path, int, float] | None = None
        self._find()

    def read(self) -> MemoryReading | None:
        """Return the bound that leaves least free, None where nothing tells of any."""
        if self._changed():
            self._find()
        readings = [self._machine()]
        for group in self._groups:
            try:
                readings.append(group.reading())
            except (OSError, ValueError):
                self._look_at_s = self._clock()
        return min(filter(None, readings), key=lambda reading: reading.free_bytes, default=None)

    def pressure(self) -> float | None:
        """Return the share of time since the last call in which a task stalled for memory, 0 to 1.

        Of the process's group where it is counted, else of the machine. None: not counted, or no time has passed.
        """
        for file in self._pressures:
            with suppress(OSError):
                if stalled := _STALLED.search(file.read()):
                    return self._share(file.path, int(stalled[1]))
        return None

    def close(self) -> None:
        """Close the files."""
        for file in (*self._files, *self._pressures):
            file.close()
        for group in self._groups:
            group.close()
        self._files, self._groups, self._pressures = [], [], []
        self._membership, self._meminfo = None, None

    def _find(self) -> None:
        self.close()
        self._look_at_s = self._clock() + _LOOK_AGAIN_S
        self._membership = self._open(self._process, "cgroup")
        self._meminfo = self._open(self._root / "proc", "meminfo")
        self._member = _told(self._membership)
        for version, mount, folder in _folders(self._root, self._process, os.fsdecode(self._member)):
            for level in (folder, *folder.parents):
                self._groups.append(_Group(level, version, own=level == folder))
                if level == mount:
                    break
            if version is _V2:
                self._pressures += _opened(folder, ["memory.pressure"])
        self._pressures += _opened(self._root / "proc/pressure", ["memory"])

    def _open(self, folder: Path, name: str) -> _File | None:
        files = _opened(folder, [name])
        self._files += files
        return files[0] if files else None

    def _changed(self) -> bool:
        return self._clock() >= self._look_at_s or _told(self._membership) != self._member

    def _machine(self) -> MemoryReading | None:
        told = _AVAILABLE.search(_told(self._meminfo))
        if self._meminfo is None or told is None:
            return None
        total, available = int(told[1]) * 1024, int(told[2]) * 1024
        return MemoryReading(str(self._meminfo.path), total, max(0, total - available))

    def _share(self, path: Path, stalled_us: int) -> float | None:
        now_s, before = self._clock(), self._stalled
        self._stalled = (path, stalled_us, now_s)
        if before is None or before[0] != path or now_s <= before[2]:
            return None
        return min(1.0, max(0.0, (stalled_us - before[1]) / 1e6 / (now_s - before[2])))


def _opened(folder: Path, names: Iterable[str]) -> list[_File]:
    files = []
    for name in names:
        with suppress(OSError):
            files.append(_File(folder / name))
    return files


def _told(file: _File | None) -> bytes:
    with suppress(OSError):
        return file.read() if file else b""
    return b""


def _limit_bytes(text: bytes) -> int:
    return _UNLIMITED if text.startswith(b"max") else int(text)


def _folders(root: Path, process: Path, member: str) -> Iterator[tuple[_Version, Path, Path]]:
    """Yield each hierarchy that may bound memory: its version, where it is mounted, and the process's folder in it."""
    groups: dict[_Version, str] = {}
    for line in member.splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            groups[_V2] = group
        elif "memory" in controllers.split(","):
            groups[_V1] = group
    for version, inner, mounted in _mounts(root, process):
        if version in groups and (folder := _folder(mounted, inner, groups.pop(version))):
            yield version, mounted, folder


def _mounts(root: Path, process: Path) -> Iterator[tuple[_Version, str, Path]]:
    """Yield the mounts of control groups: version, the group that is mounted, and where."""
    try:
        lines = (process / "mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        inner, point = (_unescaped(field) for field in before.split()[3:5])
        kind, _, options = after.split(maxsplit=2)
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            yield _V2 if kind == "cgroup2" else _V1, inner, root / point.lstrip("/")


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)


def _folder(mounted: Path, inner: str, group: str) -> Path | None:
    """Return a group's folder, or the nearest around it that can be seen from here; None: the group is elsewhere."""
    outer = inner.rstrip("/")
    if group == inner or group.startswith(outer + "/"):
        group = group.removeprefix(outer)
    elif ".." not in PurePosixPath(group).parts:
        group = ""  # named from another namespace than the mount: it lies somewhere in there
    if ".." in PurePosixPath(group).parts:
        return None
    folder = mounted / group.lstrip("/")
    while folder != mounted and not folder.is_dir():
        folder = folder.parent
    return folder
