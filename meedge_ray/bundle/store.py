"""Units as files named by the hash of their bytes; nothing is read without checking it."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from meedge_ray.bundle.files import TEMPORARY_PREFIX, move_atomically, write_atomically
from meedge_ray.domain.elastic import Unit
from meedge_ray.domain.errors import IntegrityError, InvalidInputError, NotFoundError, UnavailableError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIX = ".onnx"
# Far longer than any write takes: a younger temporary file may belong to a writer at work.
_STRAY_AGE_S = 3600


def sha256_of(data: bytes) -> str:
    """Return the name a unit of these bytes has."""
    return hashlib.sha256(data).hexdigest()


def is_sha256(text: str) -> bool:
    """Return whether `text` has the form of a unit's name: 64 lower-case hexadecimal digits."""
    return _SHA256.fullmatch(text) is not None


class UnitStore:
    """Units as files named by the SHA-256 of their bytes: `<root>/ab/ab...onnx`.

    Serves bundles and a device's cache. Any number of processes may read and write one store at a time.
    """

    def __init__(self, root: Path) -> None:
        """Open the store, made at the first `put`; files left by writers that were killed are removed."""
        self.root = root
        for stray in root.glob(f"[0-9a-f][0-9a-f]/{TEMPORARY_PREFIX}*"):
            with suppress(OSError):
                if time.time() - stray.stat().st_mtime > _STRAY_AGE_S:
                    stray.unlink()

    def path(self, sha256: str) -> Path:
        """Return where the unit is, or would be.

        Raises:
            InvalidInputError: `sha256` is not 64 lower-case hexadecimal digits.
        """
        if not is_sha256(sha256):
            raise InvalidInputError(
                f"{sha256!r} is not a unit's name", do="Give a SHA-256 as 64 lower-case hexadecimal digits"
            )
        return self.root / sha256[:2] / f"{sha256}{_SUFFIX}"

    def put(self, data: bytes) -> Unit:
        """Keep `data`; a damaged file of the same unit is healed.

        Raises:
            UnavailableError: the file system refused.
        """
        unit = Unit(sha256=sha256_of(data), size_bytes=len(data))
        try:
            self.read(unit.sha256)
        except (NotFoundError, IntegrityError):
            write_atomically(self.path(unit.sha256), data)
        return unit

    def adopt(self, source: Path, sha256: str) -> None:
        """Take over a file that the caller has verified to be this unit, in place of a damaged one if there is one.

        Raises:
            UnavailableError: the file system refused, or the file is not of the store's own.
        """
        move_atomically(source, self.path(sha256))

    def read(self, sha256: str) -> bytes:
        """Return the unit's bytes, verified.

        Raises:
            NotFoundError: the store does not hold it.
            IntegrityError: the file is damaged or cut short.
            UnavailableError: the file system refused.
        """
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise _not_held(sha256, path) from error
        except OSError as error:
            raise UnavailableError(
                f"cannot read unit {sha256} ({error.strerror})",
                where=str(path),
                do="Check disk and permissions",
            ) from error
        if sha256_of(data) != sha256:
            raise IntegrityError(
                f"unit {sha256} is damaged: its bytes do not have that SHA-256",
                where=str(path),
                do="Remove the file, then fetch the unit again or build the bundle again",
            )
        return data

    def size_bytes(self, sha256: str) -> int:
        """Return the size of the unit's file, unverified.

        Raises:
            NotFoundError: the store does not hold it.
        """
        path = self.path(sha256)
        try:
            return path.stat().st_size
        except FileNotFoundError as error:
            raise _not_held(sha256, path) from error

    def holds(self, sha256: str) -> bool:
        """Return whether the unit is in the store, unverified; for a few units much cheaper than `held`."""
        return is_sha256(sha256) and os.path.exists(f"{self.root}/{sha256[:2]}/{sha256}{_SUFFIX}")  # noqa: PTH110 - 3 times faster

    def held(self) -> frozenset[str]:
        """Return the names of all units in the store, unverified."""
        return frozenset(self._names())

    def discard(self, sha256: str) -> None:
        """Remove the unit if it is there.

        Raises:
            UnavailableError: the file system refused.
        """
        path = self.path(sha256)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _refused("remove", path, error) from error

    def _names(self) -> Iterator[str]:
        for path in self.root.glob(f"[0-9a-f][0-9a-f]/*{_SUFFIX}"):
            if is_sha256(path.stem):
                yield path.stem


def _not_held(sha256: str, path: Path) -> NotFoundError:
    return NotFoundError(
        f"unit {sha256} is not in the store", where=str(path), do="Fetch the unit or build the bundle again"
    )


def _refused(verb: str, path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"cannot {verb} the unit ({error.strerror})", where=str(path), do="Check disk and permissions"
    )
