"""Arrays larger than memory, in files that are read and written by system calls.

They are not mapped: whatever is touched of a map counts as this process's memory, on some systems two MiB around a
single byte, and a disk that fills up or a file that is cut off meanwhile ends the process.
"""

import io
import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from meedge_ray.domain.errors import UnavailableError

_BLOCK_BYTES = 2**20
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class FileArray:
    """An array in a file, C-ordered. Indexed by places of rows, it reads these into a new array."""

    __slots__ = ("__weakref__", "_descriptor", "_name", "_offset", "dtype", "shape")

    def __init__(self, file: IO[bytes], dtype: DTypeLike, shape: tuple[int, ...], offset: int = 0) -> None:
        """Take the array of so many rows that begins at an offset in bytes; the file itself may be closed then."""
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.shape = shape
        self._name = file.name if isinstance(file.name, str) else "a temporary file"
        self._offset = offset
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read rows [n, ...], those that follow one another at once.

        Raises:
            UnavailableError: the file cannot be read, or was cut off.
        """
        result = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if not len(rows):
            return result
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        data = _bytes(result)
        first = 0
        for end in [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]:
            self._read(data[first * row_bytes : end * row_bytes], self._offset + int(rows[first]) * row_bytes)
            first = end
        return result

    def _read(self, data: memoryview, offset: int) -> None:
        while data:
            try:
                count = os.preadv(self._descriptor, [data], offset)
            except OSError as error:
                raise UnavailableError(f"cannot be read ({error.strerror})", where=self._name) from error
            if not count:
                raise UnavailableError("was cut off while it was read", where=self._name)
            data, offset = data[count:], offset + count


class ArrayFile:
    """A .npy file of known shape that takes its rows in order, going on where a killed process was."""

    def __init__(self, path: Path, dtype: DTypeLike, shape: tuple[int, ...], done: int = 0) -> None:
        """Open the file after its first `done` rows; with 0 an earlier file is replaced.

        Raises:
            UnavailableError: the file system refuses.
        """
        self._path, self._dtype = path, np.dtype(dtype)
        header = io.BytesIO()
        np.lib.format.write_array_header_2_0(header, {"descr": self._dtype.str, "fortran_order": False, "shape": shape})
        try:
            # Unbuffered, so that a full disk is told by append() and not again by close().
            self._file = path.open("r+b" if done else "wb", buffering=0)
        except OSError as error:
            raise _refused(error, path) from error
        try:
            _write(self._file, np.frombuffer(header.getvalue(), np.uint8), path)
            self._file.seek(done * self._dtype.itemsize * int(np.prod(shape[1:])), os.SEEK_CUR)
        except BaseException:
            self._file.close()
            raise

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows.

        Raises:
            UnavailableError: the disk is full, or the file system refuses.
        """
        _write(self._file, np.ascontiguousarray(rows, self._dtype), self._path)

    def sync(self) -> None:
        """Return once what was appended outlives a power cut.

        Raises:
            UnavailableError: the disk is full, or the file system refuses.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _refused(error, self._path) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def npy_array(file: IO[bytes]) -> FileArray | NDArray[Any]:
    """Return the .npy array that begins at the file's position, to be read where it lies.

    Of one in Fortran order no row lies in one piece: it is read whole.

    Raises:
        ValueError: there is no .npy array of plain numbers.
        OSError: the file cannot be read.
    """
    start = file.tell()
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"unknown .npy version {version}")
    shape, is_fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("Python objects are not read")
    if is_fortran or not shape:
        file.seek(start)
        whole: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return whole
    return FileArray(file, dtype, shape, file.tell())


def unpacked(source: IO[bytes], folder: Path | None) -> FileArray | NDArray[Any]:
    """Copy the .npy array a stream holds to a temporary file, which vanishes with the array.

    Args:
        source: read to its end.
        folder: where the copy lies; None: the system's folder for temporary files.

    Raises:
        ValueError: there is no .npy array of plain numbers.
        OSError: the stream cannot be read.
        UnavailableError: the disk is full.
    """
    with _temporary(folder) as copy:
        while block := source.read(_BLOCK_BYTES):
            _write(copy, np.frombuffer(block, np.uint8), _place(folder))
        copy.seek(0)
        return npy_array(copy)


def written(parts: Iterable[NDArray[Any]], dtype: DTypeLike, shape: tuple[int, ...], folder: Path | None) -> FileArray:
    """Write an array given part by part to a temporary file, which vanishes with the array.

    Args:
        parts: its rows in order.
        dtype: of the array.
        shape: of the array.
        folder: where the file lies; None: the system's folder for temporary files.

    Raises:
        UnavailableError: the disk is full.
    """
    with _temporary(folder) as file:
        for part in parts:
            _write(file, np.ascontiguousarray(part, dtype), _place(folder))
        return FileArray(file, dtype, shape)


def _temporary(folder: Path | None) -> IO[bytes]:
    place = _place(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=place, buffering=0)
    except OSError as error:
        raise _refused(error, place) from error


def _place(folder: Path | None) -> Path:
    return folder or Path(tempfile.gettempdir())


def _write(file: IO[bytes], rows: NDArray[Any], path: Path) -> None:
    data = _bytes(rows)
    try:
        while data:  # a system call may write a part
            data = data[file.write(data) :]
    except OSError as error:
        raise _refused(error, path) from error


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _refused(error: OSError, path: Path) -> UnavailableError:
    return UnavailableError(
        f"cannot be written ({error.strerror})", where=str(path), do="Free space or fix the permissions"
    )
