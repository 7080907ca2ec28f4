import os
import random
import threading
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.bundle.store import UnitStore, sha256_of
from meedge_ray.domain.errors import IntegrityError
from meedge_ray.runtime.downloads import Download, LinkRate, RateLimit, giving_way

DATA = random.Random(0).randbytes(200_000)
SHA256 = sha256_of(DATA)


@given(st.lists(st.integers(0, 1000), max_size=8), st.booleans())
def test_what_comes_in_any_pieces_and_any_number_of_lives_is_the_unit(cuts, on_disk):
    data = DATA[:1000]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "partial" / "unit"
        download = Download(sha256_of(data), len(data), path if on_disk else None)
        start = 0
        for end in (*sorted(cuts), len(data)):
            download.append(data[start:end])
            start = end
            if on_disk:
                download.close()
                download = Download(sha256_of(data), len(data), path)
            assert download.size_bytes == end
            assert download.is_complete == download.is_intact == (end == len(data))
        store = UnitStore(Path(folder) / "units")
        assert download.data() == data
        download.keep(store)
        download.close()
        assert store.read(sha256_of(data)) == data
        assert not path.exists()


def test_other_bytes_are_complete_and_not_intact(tmp_path):
    with closing(Download(SHA256, 4, tmp_path / "unit")) as download:
        download.append(b"evil")
        assert download.is_complete
        assert not download.is_intact
        with pytest.raises(IntegrityError, match=SHA256):
            download.data()
        download.clear()
        assert download.size_bytes == 0
        assert (tmp_path / "unit").stat().st_size == 0


def test_of_what_did_not_begin_to_come_no_file_is_left(tmp_path):
    path = tmp_path / "unit"
    with closing(Download(SHA256, len(DATA), path)):
        assert path.exists()
    assert not path.exists()


def test_a_file_longer_than_the_unit_is_begun_anew(tmp_path):
    (tmp_path / "unit").write_bytes(DATA + b"x")
    with closing(Download(SHA256, len(DATA), tmp_path / "unit")) as download:
        assert download.size_bytes == 0


def test_two_at_one_unit_do_not_meet(tmp_path):
    path = tmp_path / "unit"
    store = UnitStore(tmp_path / "units")
    with closing(Download(SHA256, len(DATA), path)) as first, closing(Download(SHA256, len(DATA), path)) as second:
        for start in range(0, len(DATA), 50_000):
            first.append(DATA[start : start + 50_000])
            second.append(DATA[start : start + 50_000])
        second.keep(store)
        assert path.stat().st_size == len(DATA)
        first.keep(store)
    assert store.read(SHA256) == DATA
    assert not path.exists()


def test_an_old_descriptor_never_reaches_the_stores_file(tmp_path):
    path = tmp_path / "unit"
    store = UnitStore(tmp_path / "units")
    with closing(Download(SHA256, len(DATA), path)) as first:
        first.append(DATA)
        first.keep(store)
    with closing(Download(SHA256, len(DATA), path)) as second:
        second.append(b"other")
        second.clear()
    assert store.read(SHA256) == DATA


def test_where_no_file_can_be_the_unit_comes_in_memory(tmp_path):
    (tmp_path / "partial").write_bytes(b"a file where a folder should be")
    with closing(Download(SHA256, len(DATA), tmp_path / "partial" / "unit")) as download:
        download.append(DATA)
        assert download.is_intact
        assert download.data() == DATA


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds


@given(
    st.floats(1e3, 1e9),
    st.lists(st.tuples(st.integers(1, 65536), st.floats(0, 2)), min_size=1, max_size=30),
)
def test_a_limit_holds_over_every_span_of_time(rate_bps, chunks):
    clock = Clock()
    limit = RateLimit(rate_bps, clock=clock, sleep=clock.sleep)
    came = []  # (time, bytes)
    for size_bytes, idle_s in chunks:
        clock.sleep(idle_s)
        came.append((clock.now_s, size_bytes))
        limit.take(size_bytes)
    for first, (start_s, _) in enumerate(came):
        total = 0
        for now_s, size_bytes in came[first:]:
            # What comes is paid for afterwards, and a tenth of a second's bytes are given in advance.
            assert total * 8 <= rate_bps * (now_s - start_s + 0.1) * (1 + 1e-6) + 1e-3
            total += size_bytes


def test_a_limit_lets_through_what_it_allows():
    clock = Clock()
    limit = RateLimit(8e6, clock=clock, sleep=clock.sleep)
    for _ in range(100):
        limit.take(10_000)
    assert clock.now_s == pytest.approx(101.0, abs=0.11)


@pytest.mark.parametrize(("rate_bps", "in_flight"), [(1e3, 2**14), (8e6, 200_000), (1e12, 2**22)])
def test_a_socket_takes_in_little_more_than_the_limit_allows(rate_bps, in_flight):
    assert RateLimit(rate_bps).in_flight_bytes == in_flight


def test_the_rate_is_that_of_the_last_transmission_long_enough_to_tell():
    rate = LinkRate()
    assert rate.bps is None
    rate.add(0, 1.0)
    assert rate.bps is None
    rate.add(1_000, 0.1)  # nothing better yet
    assert rate.bps == pytest.approx(80_000)
    rate.add(1_000_000, 1.0)
    assert rate.bps == pytest.approx(8e6)
    rate.add(1_000, 0.1)
    assert rate.bps == pytest.approx(8e6)
    rate.add(500_000, 1.0)
    assert rate.bps == pytest.approx(4e6)


def test_many_short_transmissions_count_as_one():
    rate = LinkRate()
    rate.add(1_000_000, 1.0)
    for _ in range(10):
        rate.add(30_000, 0.12)
    assert rate.bps == pytest.approx(2e6)


def test_work_gives_way_and_the_caller_does_not():
    def priority():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = priority()
    assert giving_way(priority) == min(19, before + 10)
    assert priority() == before


def test_what_the_work_raises_arrives():
    with pytest.raises(ZeroDivisionError):
        giving_way(lambda: 1 // 0)
