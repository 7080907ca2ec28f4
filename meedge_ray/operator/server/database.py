"""Changes on disk, in one SQLite file: every write is a row, and the newest row of an object is the object.

Beside those, the rows of the last changes stay for watches that resume: all above the horizon. A change that falls
below it takes the row it had replaced along, so the file grows with what there is and not with what there was.
"""

import fcntl
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

from meedge_ray.domain.errors import InvalidInputError, MeedgeError, UnavailableError
from meedge_ray.operator.server.errors import Key
from meedge_ray.operator.server.records import Change

_APPLICATION = 0x4D454447  # "MEDG", in the file's header
_FORMAT = 1
# Versions start above 1, for Kubernetes gives 0 a meaning of its own.
_SCHEMA = """
BEGIN;
CREATE TABLE changes (version INTEGER PRIMARY KEY, type TEXT NOT NULL, resource TEXT NOT NULL,
                      namespace TEXT NOT NULL, name TEXT NOT NULL, object BLOB NOT NULL);
CREATE TABLE horizon (version INTEGER NOT NULL);
INSERT INTO horizon VALUES (1);
PRAGMA application_id = 0x4D454447;
PRAGMA user_version = 1;
COMMIT;
"""


class Row(NamedTuple):
    """A change as it lies on disk."""

    version: int
    type: Literal["ADDED", "MODIFIED", "DELETED"]
    key: Key
    json: bytes


class Database:
    """The file, held by this process alone until it is closed.

    Raises:
        UnavailableError: another process holds it.
        InvalidInputError: the file is none of ours, or of a newer format. It is left as it is.
        MeedgeError: the file is broken or out of reach. It is left as it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._lock = _locked(path)
            try:
                if not path.exists():
                    _create(path)
                _check_header(path)
                self._connection = _opened(path)
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            do = "Make the folder writable for this user, or choose another"
            raise MeedgeError(f"cannot be opened: {error.strerror}", where=str(path), do=do) from None
        except sqlite3.DatabaseError as error:
            raise _broken(path, str(error)) from None

    def horizon(self) -> int:
        """The version that the oldest kept change follows."""
        version: int = self._connection.execute("SELECT version FROM horizon").fetchone()[0]
        return version

    def rows(self) -> Iterator[Row]:
        """All rows, oldest first: up to the horizon those of objects as they stood there, then each change."""
        try:
            for version, type_, resource, namespace, name, json in self._connection.execute(
                "SELECT version, type, resource, namespace, name, object FROM changes ORDER BY version"
            ):
                yield Row(version, type_, Key(resource, namespace, name), json)
        except sqlite3.DatabaseError as error:
            raise _broken(self.path, str(error)) from None

    def commit(self, changes: Sequence[Change], forgotten: Iterable[Change]) -> None:
        """Writes these changes and drops what the forgotten ones kept, all or nothing, on disk on return."""
        forgotten = list(forgotten)
        try:
            self._connection.execute("BEGIN")
            self._connection.executemany(
                "INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?)",
                ((change.version, change.type, *change.key, change.json) for change in changes),
            )
            self._connection.executemany("DELETE FROM changes WHERE version = ?", _no_longer_needed(forgotten))
            if forgotten:
                self._connection.execute("UPDATE horizon SET version = ?", (forgotten[-1].version,))
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def broken(self, why: str) -> MeedgeError:
        """The error for content that SQLite reads and nobody wrote."""
        return _broken(self.path, why)

    def close(self) -> None:
        """Gives the file free for others."""
        self._connection.close()
        os.close(self._lock)


def _no_longer_needed(forgotten: Iterable[Change]) -> Iterator[tuple[int]]:
    for change in forgotten:
        if change.replaced:
            yield (change.replaced.version,)
        if change.type == "DELETED":
            yield (change.version,)


def _locked(path: Path) -> int:
    # A file of its own: closing any descriptor of the database would drop the locks SQLite holds on it.
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 20, 0).decode() or "unknown"
        os.close(lock)
        do = "Stop that process first, or choose another home"
        raise UnavailableError(f"is in use by process {holder}", where=str(path), do=do) from None
    return lock


def _create(path: Path) -> None:
    if path.with_name(path.name + "-wal").exists():
        # SQLite would mix the old log into a new file.
        do = f"Put {path.name} back beside it, or move {path.name}-wal away to start from nothing"
        raise MeedgeError(f"is gone, and its log {path.name}-wal is there", where=str(path), do=do)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(descriptor)
    with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
        connection.executescript(_SCHEMA)
    Path(temporary).rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _check_header(path: Path) -> None:
    # By hand, as SQLite may repair what it opens, and somebody else's file is not ours to touch.
    with path.open("rb") as file:
        header = file.read(100)
    if header[:16] != b"SQLite format 3\0" or int.from_bytes(header[68:72], "big") != _APPLICATION:
        do = "Choose another home, or move the file away to start from nothing"
        raise InvalidInputError("is no state of meedge", where=str(path), do=do)
    if (written := int.from_bytes(header[60:64], "big")) != _FORMAT:
        what = f"has format {written}, and this meedge reads format {_FORMAT}"
        raise InvalidInputError(what, where=str(path), do="Use the version of meedge that wrote it")


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # the objects in memory and on disk stay one
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise _broken(path, found)
    except BaseException:
        connection.close()
        raise
    return connection


def _broken(path: Path, why: str) -> MeedgeError:
    do = f"Restore it from a copy, or move {path.name}* away, start from nothing, and apply the manifests again"
    return MeedgeError(f"is broken: {why}", where=str(path), do=do)
