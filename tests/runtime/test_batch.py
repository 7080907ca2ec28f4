from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.bundle.store import sha256_of
from meedge_ray.domain.errors import IntegrityError, UnavailableError
from meedge_ray.runtime.batch import Batch
from meedge_ray.runtime.downloads import Download

FIRST, SECOND = b"first unit", b"the second"


def begun(data, had=b""):
    download = Download(sha256_of(data), len(data))
    download.append(had)
    return download


def in_pieces(stream, sizes):
    for size in sizes:
        piece, stream = stream[:size], stream[size:]
        if piece:
            yield piece
    if stream:
        yield stream


@given(
    units=st.lists(
        st.tuples(st.binary(max_size=40), st.integers(0, 40), st.booleans()), max_size=6, unique_by=lambda unit: unit[0]
    ),
    cuts=st.lists(st.tuples(st.integers(0, 120), st.lists(st.integers(1, 50))), max_size=6),
)
def test_cut_anywhere_in_any_pieces_each_unit_is_handed_over_once_and_no_byte_comes_twice(units, cuts):
    contents, downloads, anew_bytes = {}, [], 0
    for data, had, spoilt in units:
        kept = data[:had]
        if kept and spoilt:
            kept = bytes([kept[0] ^ 1]) + kept[1:]
            anew_bytes += len(data)
        downloads.append(begun(data, kept))
        contents[sha256_of(data)] = data
    lacking_bytes = sum(download.whole_bytes - download.size_bytes for download in downloads)
    whole = []
    batch = Batch(downloads, whole.append, where="here")
    came_bytes, streams = 0, [*cuts, (None, []), (None, [])]  # the last for what was spoilt
    for end, sizes in streams:
        stream = b"".join(contents[download.sha256][download.size_bytes :] for download in batch.lacking())
        with suppress(UnavailableError):
            for size_bytes in batch.take(in_pieces(stream[:end], sizes)):
                came_bytes += size_bytes
    assert batch.lacking() == []
    assert sorted(download.sha256 for download in whole) == sorted(contents)
    assert all(download.data() == contents[download.sha256] for download in downloads)
    assert came_bytes == lacking_bytes + anew_bytes


def test_a_unit_is_handed_over_before_the_next_one_comes():
    first, second = begun(FIRST), begun(SECOND)
    whole = []
    stream = Batch([first, second], whole.append, where="here").take([FIRST + SECOND])
    assert next(stream) == len(FIRST)
    assert whole == []
    assert next(stream) == len(SECOND)
    assert whole == [first]


def test_what_came_before_a_stream_ended_stays():
    first, second = begun(FIRST), begun(SECOND)
    whole = []
    batch = Batch([first, second], whole.append, where="here")
    with pytest.raises(UnavailableError, match=f"after 3 of 10 bytes of unit {second.sha256}"):
        list(batch.take([FIRST, SECOND[:3]]))
    assert whole == [first]
    assert batch.lacking() == [second]
    assert second.size_bytes == 3


@pytest.mark.parametrize("chunks", [[SECOND, FIRST], [FIRST[1:] + SECOND + b"x"]])
def test_bytes_of_other_units_are_refused(chunks):
    whole = []
    with pytest.raises(IntegrityError, match=f"{sha256_of(FIRST)} arrived damaged"):
        list(Batch([begun(FIRST), begun(SECOND)], whole.append, where="here").take(chunks))
    assert whole == []


@pytest.mark.parametrize("chunks", [[FIRST + b"x"], [FIRST, b"x"]])
def test_more_than_was_asked_for_is_refused(chunks):
    with pytest.raises(IntegrityError, match="more came"):
        list(Batch([begun(FIRST)], lambda _: None, where="here").take(chunks))


def test_what_was_left_damaged_is_fetched_anew_once():
    first = begun(FIRST, b"spoilt")
    batch = Batch([first], lambda _: None, where="here")
    list(batch.take([FIRST[6:]]))
    assert batch.lacking() == [first]
    assert first.size_bytes == 0
    with pytest.raises(IntegrityError, match="arrived damaged"):
        list(batch.take([bytes(10)]))
