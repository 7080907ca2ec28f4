"""Labelled samples, read a batch at a time: a data set may be larger than memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meedge_ray.train.arrays import FileArray

Raw = NDArray[Any]
Labels = NDArray[np.int64]
Chosen = NDArray[np.int64] | slice

_CHUNK_BYTES = 16 * 2**20


def _as_they_are(batch: Raw) -> Raw:
    return batch


class Rows:
    """Chosen rows of an array in memory or in a file, read when they are indexed."""

    __slots__ = ("_arrange", "_array", "_chosen", "_row")

    def __init__(
        self,
        array: Raw | FileArray,
        chosen: NDArray[np.int64] | None = None,
        arrange: Callable[[Raw], Raw] = _as_they_are,
    ) -> None:
        """Take rows of an array; nothing is read yet.

        Args:
            array: [N, ...]
            chosen: places of the rows, in their order; None: all.
            arrange: done to every batch that is read, such as putting channels first.
        """
        self._array = array
        self._chosen = np.arange(len(array)) if chosen is None else chosen
        self._arrange = arrange
        self._row = arrange(np.empty((0, *array.shape[1:]), array.dtype)).shape[1:]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, the number of rows first."""
        return (len(self), *self._row)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self._array.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * int(np.prod(self._row))

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, key: Chosen | int | np.integer[Any]) -> Raw:
        """Return one row, or several as a contiguous copy."""
        chosen = np.atleast_1d(self._chosen[key])
        batch = np.ascontiguousarray(self._arrange(self._array[chosen]))
        return batch[0] if isinstance(key, int | np.integer) else batch

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Raw:  # noqa: ANN401
        """Read everything: for what is known to be small."""
        return np.asarray(self[:], dtype)

    def take(self, chosen: Chosen) -> "Rows":
        """Return some of these rows, without reading them."""
        return Rows(self._array, self._chosen[chosen], self._arrange)


@dataclass(frozen=True, slots=True)
class Samples:
    """Raw samples `x` [N, C, H, W] (or [N, ...]) as the data set stores them, and labels `y` [N]."""

    x: Rows
    y: Labels

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, chosen: Chosen) -> "Samples":
        return Samples(self.x.take(chosen), self.y[chosen])

    def chunks(self) -> Iterator[Raw]:
        """Yield all of `x` in order, at most 16 MiB (or one sample) at a time, each contiguous."""
        size = max(1, _CHUNK_BYTES // max(1, self.x.row_bytes))
        for start in range(0, len(self), size):
            yield self.x[start : start + size]
