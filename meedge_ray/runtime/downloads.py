"""Units on their way: what has come of them survives the process; inference and others' use of the link go first."""

import fcntl
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from meedge_ray.bundle.store import UnitStore, sha256_of
from meedge_ray.domain.errors import IntegrityError, UnavailableError

_READ_BYTES = 64 * 2**10
# Enough for the link's rate to show; of less, most of the time is latency.
_TELLING_BYTES = 256 * 2**10
_BURST_S = 0.1
# What may be on its way unasked for: a round trip of 200 ms at full rate, within what systems take.
_IN_FLIGHT_S, _IN_FLIGHT_BYTES = 0.2, (16 * 2**10, 4 * 2**20)
_NICER = 10

_T = TypeVar("_T")


class Download:
    """What has come of one unit so far: in a file, or in memory where there is none or the disk refuses.

    The file is locked: another process that wants the same unit meanwhile has it in memory. Nothing is synced before
    the end: what a power cut spoils has another hash. `close` it; an unfinished file stays for the next time.
    """

    def __init__(self, sha256: str, whole_bytes: int, path: Path | None = None) -> None:
        """Take up what an earlier download left at `path`."""
        self.sha256, self.whole_bytes = sha256, whole_bytes
        self.size_bytes = 0
        self._hash = hashlib.sha256()
        self._memory = bytearray()
        self._path = path
        self._file: int | None = None
        if path is not None:
            with suppress(OSError):
                self._file = _open_locked(path)
        if self._file is not None:
            self._take_up(self._file)

    @property
    def is_complete(self) -> bool:
        """Whether all bytes have come, right or wrong."""
        return self.size_bytes >= self.whole_bytes

    @property
    def is_intact(self) -> bool:
        """Whether all bytes have come and are those the unit is named by."""
        return self.size_bytes == self.whole_bytes and self._hash.hexdigest() == self.sha256

    def append(self, chunk: bytes) -> None:
        """Add what came next.

        Raises:
            UnavailableError: the disk failed and took with it what it had; nothing has come yet.
        """
        if self._file is not None:
            try:
                _write(self._file, chunk)
            except OSError as error:
                self._leave_disk(self._file, error)
        if self._file is None:
            self._memory += chunk
        self._hash.update(chunk)
        self.size_bytes += len(chunk)

    def clear(self) -> None:
        """Throw away what has come."""
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self._memory.clear()
        if self._file is not None:
            try:
                os.ftruncate(self._file, 0)
            except OSError:
                self._remove_file()

    def data(self) -> bytes:
        """Return what has come, all of it and verified.

        Raises:
            IntegrityError: it is not the unit, or not the whole of it.
            UnavailableError: the file system refused.
        """
        data = bytes(self._memory) if self._file is None else self._read_back(self._file)
        if sha256_of(data) != self.sha256:
            raise IntegrityError(f"unit {self.sha256} is damaged", where=str(self._path or ""), do="Fetch it again")
        return data

    def keep(self, store: UnitStore) -> None:
        """Move the unit, which must be intact, into the store.

        Raises:
            UnavailableError: the file system refused; `data` still has the unit.
        """
        if self._file is None or self._path is None:
            store.put(self.data())
        else:
            store.adopt(self._path, self.sha256)

    def close(self) -> None:
        """Let go of the file, which keeps what it holds, and of what is in memory."""
        self._memory.clear()
        if self._file is not None and self.size_bytes == 0:
            self._remove_file()
        self._close_file()

    def _take_up(self, file: int) -> None:
        try:
            while self.size_bytes <= self.whole_bytes and (chunk := os.read(file, _READ_BYTES)):
                self._hash.update(chunk)
                self.size_bytes += len(chunk)
        except OSError:
            self.clear()
        if self.size_bytes > self.whole_bytes:
            self.clear()

    def _leave_disk(self, file: int, error: OSError) -> None:
        try:
            self._memory += self._read_back(file)
        except UnavailableError:
            self.clear()
            raise UnavailableError(
                f"cannot write the file ({error.strerror})", where=str(self._path), do="Free space or check the disk"
            ) from error
        finally:
            self._remove_file()  # it would only keep a full disk full

    def _read_back(self, file: int) -> bytes:
        try:
            data = os.pread(file, self.size_bytes, 0)
        except OSError as error:
            raise _unreadable(self._path, str(error.strerror)) from error
        if len(data) != self.size_bytes:
            raise _unreadable(self._path, "cut short")
        return data

    def _remove_file(self) -> None:
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class LinkRate:
    """The rate at which units came of late, in bits a second; None before the first.

    It stands for R of MEEdge's equation 1, which foretells how long the next units take. So it is what a device really
    got, waits included, of the last transmission that was long enough to tell: 256 KiB, several short ones counting as
    one. A short one alone is mostly latency; it counts, on the safe side, only as long as there is nothing better.
    """

    def __init__(self) -> None:
        self.bps: float | None = None
        self._tells = False
        self._size_bytes, self._seconds = 0, 0.0

    def add(self, size_bytes: int, seconds: float) -> None:
        """Count a transmission."""
        if size_bytes == 0 or seconds <= 0:
            return
        if size_bytes < _TELLING_BYTES:
            size_bytes, seconds = self._size_bytes + size_bytes, self._seconds + seconds
        tells = size_bytes >= _TELLING_BYTES
        self._size_bytes, self._seconds = (0, 0.0) if tells else (size_bytes, seconds)
        if tells or not self._tells:
            self.bps = size_bytes * 8 / seconds
            self._tells = tells


class RateLimit:
    """A token bucket that holds a tenth of a second's bytes. Thread-safe."""

    def __init__(
        self,
        rate_bps: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate_bps, self._clock, self._sleep = rate_bps, clock, sleep
        self._paid_until = clock()
        self._lock = threading.Lock()

    @property
    def in_flight_bytes(self) -> int:
        """What a socket should take in at most before it is asked for, lest the link carries more than the limit."""
        least, most = _IN_FLIGHT_BYTES
        return round(min(max(self._rate_bps / 8 * _IN_FLIGHT_S, least), most))

    def take(self, size_bytes: int) -> None:
        """Wait as long as these bytes, which have come, must not be followed by others."""
        with self._lock:
            now = self._clock()
            self._paid_until = max(self._paid_until, now - _BURST_S) + size_bytes * 8 / self._rate_bps
            wait_s = self._paid_until - now
        if wait_s > 0:
            self._sleep(wait_s)


def giving_way(work: Callable[[], _T]) -> _T:
    """Return what `work` returns, done at a lower priority than the caller has, on Linux.

    In a thread of its own: what a thread gives up of its priority it may not take back without privileges.
    """
    done: Future[_T] = Future()

    def run() -> None:
        if sys.platform == "linux":
            with suppress(OSError):
                thread = threading.get_native_id()
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICER)
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="meedge-download", daemon=True).start()
    return done.result()


def _open_locked(path: Path) -> int | None:
    # None: another process is at it.
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who had the lock may have moved the file into the store.
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(file)
            return None
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _write(file: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(file, rest) :]


def _unreadable(path: Path | None, why: str) -> UnavailableError:
    return UnavailableError(f"cannot read the file ({why})", where=str(path), do="Check the disk")
