"""Locks between processes that build in one folder; a process that is killed gives its own back."""

import errno
import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from meedge_ray.domain.errors import UnavailableError

# Of some clusters' file systems. Whoever builds there twice at a time in one folder does so unprotected.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


@contextmanager
def locked(path: Path, *, shared: bool = False, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock, alone or `shared` with others that share it; `on_wait` is called if it is not free at once.

    Raises:
        UnavailableError: the file system refused.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with _opened(path) as file:
        if not _taken(file, kind):
            on_wait()
            fcntl.flock(file, kind)
        yield


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold a lock alone if nobody holds it, and say whether that is so.

    Raises:
        UnavailableError: the file system refused.
    """
    with _opened(path) as file:
        yield _taken(file, fcntl.LOCK_EX)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")  # to read as well: where a network's file system locks, sharing asks for that
    except OSError as error:
        raise UnavailableError(
            f"cannot be written ({error.strerror})", where=str(path), do="Build in a folder that you may write"
        ) from error
    with file:
        yield file


def _taken(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
