"""Samples as .npy: as NumPy reads and writes them, and nothing that NumPy would refuse."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from meedge_ray.agent.npy import decoded, encoded
from meedge_ray.domain.errors import InvalidInputError

NUMBERS = st.sampled_from(["|u1", "|i1", "|b1", "<i2", ">i4", "<u8", "<f2", "<f4", ">f8"])
SAMPLES = arrays.arrays(NUMBERS, arrays.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=4))


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def same(one, other):
    return (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())


@given(SAMPLES, st.booleans())
def test_what_numpy_writes_is_read(array, is_fortran):
    array = np.asfortranarray(array) if is_fortran else array
    assert same(decoded(saved(array)), array)


@given(SAMPLES)
def test_what_is_written_numpy_reads(array):
    assert same(np.load(io.BytesIO(b"".join(encoded(array))), allow_pickle=False), array)


def test_numbers_in_lists_are_samples_too():
    assert decoded(b"".join(encoded([[1, 2], [3, 4]]))).tolist() == [[1, 2], [3, 4]]


def test_large_headers_of_version_2_are_read():
    file = io.BytesIO()
    np.lib.format.write_array(file, np.arange(3), version=(2, 0))
    assert decoded(file.getvalue()).tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # NumPy's, of headers of Python 2
@given(SAMPLES, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4), st.integers(-9, 9))
def test_damaged_files_are_refused_or_read_as_numpy_reads_them(array, changes, cut):
    data = bytearray(saved(array))
    for place, value in changes:
        if place < len(data):
            data[place] = value
    data = bytes(data[:cut] if cut < 0 else data + b"\0" * cut)
    try:
        read = decoded(data)
    except InvalidInputError:
        return
    assert same(read, np.load(io.BytesIO(data), allow_pickle=False))


@given(st.binary(max_size=300))
def test_headers_that_somebody_made_up_are_refused(header):
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with pytest.raises(InvalidInputError):
        decoded(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04" + b"\0" * 100,
        b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 65_535,
        b"\x93NUMPY\x01\x00\xa0\x0f" + b"-" * 4000,
        b"\x93NUMPY\x01\x00\xa0\x0f" + b"(" * 4000,
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"a" * 100,
        b"\x93NUMPY\x03\x00" + b"\0" * 100,
        saved(np.array(["text"])),
        saved(np.array([(1, 2.0)], dtype=[("a", int), ("b", float)])),
        saved(np.array([1j])),
        saved(np.array(["2026-01-01"], "datetime64[D]")),
        saved(np.zeros(3, "V0")),
    ],
)
def test_what_is_no_sample_is_refused(data):
    with pytest.raises(InvalidInputError) as refused:
        decoded(data)
    assert refused.value.where == "sample"


def test_objects_are_never_unpickled():
    file = io.BytesIO()
    np.save(file, np.array([print], object), allow_pickle=True)
    with pytest.raises(InvalidInputError, match="holds object"):
        decoded(file.getvalue())
