"""Files that are there whole or not at all, whatever is killed meanwhile."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from meedge_ray.domain.errors import UnavailableError

TEMPORARY_PREFIX = ".tmp-"


def write_atomically(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace `path` by `data` so that a reader, a crash or a power cut sees the old file or the new one whole.

    Args:
        path: its folder is made where it is not.
        data: all of it.
        private: only this user may read it, and a folder made for it.

    Raises:
        UnavailableError: the file system refused; the old file is untouched.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
        mode = 0o600 if private else 0o666
        try:
            # Not by the umask, which all threads share.
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise UnavailableError(
            f"cannot write the file ({error.strerror})",
            where=str(path),
            do="Free space or fix the permissions",
        ) from error


def move_atomically(source: Path, target: Path) -> None:
    """Move a file of the same file system so that a reader, a crash or a power cut sees it whole or not at all.

    Raises:
        UnavailableError: the file system refused; the file is at one of both places.
    """
    try:
        with source.open("rb") as file:
            os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise UnavailableError(
            f"cannot move the file ({error.strerror})",
            where=str(target),
            do="Free space or fix the permissions",
        ) from error


def _sync_folder(folder: Path) -> None:
    # Without it a power cut can lose the rename although the file's bytes are safe.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
