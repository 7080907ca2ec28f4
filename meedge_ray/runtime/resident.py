"""Units in memory."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

import numpy as np

from meedge_ray.bundle.store import sha256_of
from meedge_ray.domain.elastic import Unit
from meedge_ray.runtime.sessions import UnitSession, checked_output, load_unit

Shape = tuple[int, ...]  # with the batch dimension, for a batch of 1


class _Resident(NamedTuple):
    session: UnitSession
    outputs: dict[Shape, Shape]  # what it was seen to make of which input


class ResidentUnits:
    """Loaded units by SHA-256, each once; a unit is run once on every shape it is to take, before anything needs it."""

    def __init__(self, threads: int) -> None:
        """Begin with none; one unit may use so many threads."""
        self._threads = threads
        self._units: dict[str, _Resident] = {}

    def __getitem__(self, unit: Unit) -> UnitSession:
        """Return the loaded unit."""
        return self._units[unit.sha256].session

    @property
    def size_bytes(self) -> int:
        """Bytes of the units."""
        return sum(resident.session.size_bytes for resident in self._units.values())

    def only(self, units: Iterable[Unit]) -> Self:
        """Return these alone, all of which are loaded."""
        kept = type(self)(self._threads)
        kept._units = {unit.sha256: self._units[unit.sha256] for unit in units}
        return kept

    def copy(self) -> Self:
        """Return the same units, to load others besides."""
        same = type(self)(self._threads)
        same._units = dict(self._units)
        return same

    def load(self, units: Iterable[Unit], read: Callable[[Unit], bytes], *, name: str) -> None:
        """Load those that are not loaded yet, one by one.

        Raises:
            InvalidInputError: ONNX Runtime cannot load one; `where` is `name`.
            MeedgeError: whatever getting a unit's bytes raised.
        """
        for unit in units:
            if unit.sha256 not in self._units:
                self._put(unit.sha256, read(unit), name)

    def load_bytes(self, data: bytes, *, name: str) -> Unit:
        """Load the unit whose bytes these are, and return what it is called.

        Raises:
            InvalidInputError: ONNX Runtime cannot load it; `where` is `name`.
        """
        unit = Unit(sha256=sha256_of(data), size_bytes=len(data))
        if unit.sha256 not in self._units:
            self._put(unit.sha256, data, name)
        return unit

    def output_shape(self, unit: Unit, shape: Shape, *, name: str, expected: Shape | None = None) -> Shape:
        """Return the shape that a loaded unit makes of `shape`; it runs where that was not seen yet.

        Raises:
            InvalidInputError: it cannot run on that, or returns another shape than expected; `where` is `name`.
        """
        session, outputs = self._units[unit.sha256]
        output = outputs.get(shape)
        if output is None or expected not in (None, output):
            features = np.zeros(shape, np.float32)
            output = outputs[shape] = checked_output(session, features, name=name, shape=expected).shape
        return output

    def _put(self, sha256: str, data: bytes, name: str) -> None:
        self._units[sha256] = _Resident(load_unit(data, name=name, threads=self._threads), {})
