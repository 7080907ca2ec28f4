"""Samples as .npy bytes, there and back. Headers are few and come again and again: each is understood once."""

import io
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from meedge_ray.domain.errors import InvalidInputError

MOST_HEADER_BYTES = 4096

_HEADERS = 32  # kept, each way
_PREFIX_BYTES = {1: 10, 2: 12}  # magic, version, and the header's length; by version
_READERS = {1: npy.read_array_header_1_0, 2: npy.read_array_header_2_0}


class _Header(NamedTuple):
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]


def encoded(sample: Any) -> tuple[bytes, bytes]:  # noqa: ANN401 - whatever a user hands over
    """Return header and numbers of a sample; one after the other they are a .npy file.

    Raises:
        InvalidInputError: it is no array of numbers.
    """
    try:
        array = np.asarray(sample)
    except (ValueError, TypeError) as error:
        raise _refused(f"the sample is not an array ({error})") from error
    if array.dtype.kind not in "fiub":
        raise _refused(f"the sample holds {array.dtype}, expected are numbers")
    return _written(array.shape, array.dtype.str), array.tobytes()


def decoded(data: bytes) -> NDArray[Any]:
    """Return the array of a .npy file, read-only: its numbers stay where they are in `data`.

    Raises:
        InvalidInputError: the bytes are no .npy file, more or fewer than it says, or hold no numbers.
    """
    if len(data) < 12 or not data.startswith(npy.MAGIC_PREFIX):
        raise _refused("the body is no .npy file")
    version = data[6]
    if version not in _PREFIX_BYTES:
        raise _refused(f"the body is a .npy file of version {version}, understood are 1 and 2")
    prefix_bytes = _PREFIX_BYTES[version]
    start = prefix_bytes + int.from_bytes(data[8:prefix_bytes], "little")
    if start > min(len(data), MOST_HEADER_BYTES):
        raise _refused("the header of the .npy file is cut off or too long")
    header = _understood(version, data[8:start])
    count = prod(header.shape)
    expected = count * header.dtype.itemsize
    if len(data) - start != expected:
        raise _refused(f"the .npy file has {len(data) - start} bytes of numbers, its header says {expected}")
    flat = np.frombuffer(data, header.dtype, count, start)
    return flat.reshape(header.shape[::-1]).T if header.is_fortran else flat.reshape(header.shape)


@lru_cache(_HEADERS)
def _written(shape: tuple[int, ...], descriptor: str) -> bytes:
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descriptor})
    return file.getvalue()


@lru_cache(_HEADERS)
def _understood(version: int, data: bytes) -> _Header:
    try:
        header = _Header(*_READERS[version](io.BytesIO(data), max_header_size=MOST_HEADER_BYTES))
    except Exception as error:  # whatever NumPy's parser makes of bytes that somebody made up
        raise _refused("the header of the .npy file cannot be understood") from error
    if header.dtype.kind not in "fiub" or header.dtype.itemsize == 0:
        raise _refused(f"the sample holds {header.dtype}, expected are numbers")
    if not all(type(size) is int and size >= 0 for size in header.shape):
        raise _refused(f"the sample has shape {header.shape}")
    return header


def _refused(what: str) -> InvalidInputError:
    return InvalidInputError(what, where="sample", do="Send one raw sample as numpy.save writes it, without objects")
