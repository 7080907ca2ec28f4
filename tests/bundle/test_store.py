import os
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.bundle.store import UnitStore, sha256_of
from meedge_ray.domain.errors import IntegrityError, InvalidInputError, NotFoundError, UnavailableError


@pytest.fixture
def store(tmp_path):
    return UnitStore(tmp_path / "units")


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_what_was_put_is_read_back_and_held_once(contents):
    with TemporaryDirectory() as folder:
        store = UnitStore(Path(folder))
        units = [store.put(data) for data in contents]
        assert [store.read(unit.sha256) for unit in units] == contents
        assert [unit.size_bytes for unit in units] == [len(data) for data in contents]
        assert store.held() == {sha256_of(data) for data in contents}


def test_a_unit_lies_under_its_hash(store):
    unit = store.put(b"weights")
    assert store.path(unit.sha256) == store.root / unit.sha256[:2] / f"{unit.sha256}.onnx"
    assert store.path(unit.sha256).read_bytes() == b"weights"
    assert store.size_bytes(unit.sha256) == 7


@given(st.integers(0, 99), st.integers(1, 255))
def test_a_flipped_byte_is_refused_by_name(position, flip):
    with TemporaryDirectory() as folder:
        store = UnitStore(Path(folder))
        unit = store.put(bytes(100))
        path = store.path(unit.sha256)
        damaged = bytearray(path.read_bytes())
        damaged[position] ^= flip
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError) as error:
            store.read(unit.sha256)
    assert unit.sha256 in error.value.what
    assert error.value.where == str(path)
    assert "Remove the file" in error.value.do


def test_a_truncated_unit_is_refused_and_healed_by_the_next_put(store):
    unit = store.put(bytes(100))
    store.path(unit.sha256).write_bytes(bytes(50))
    with pytest.raises(IntegrityError, match=unit.sha256):
        store.read(unit.sha256)
    store.put(bytes(100))
    assert store.read(unit.sha256) == bytes(100)


def test_an_absent_unit_is_not_found(store):
    absent = "0" * 64
    with pytest.raises(NotFoundError, match=absent):
        store.read(absent)
    with pytest.raises(NotFoundError, match=absent):
        store.size_bytes(absent)
    assert store.held() == frozenset()


def test_a_discarded_unit_is_gone_and_discarding_twice_is_fine(store):
    unit = store.put(b"weights")
    store.discard(unit.sha256)
    store.discard(unit.sha256)
    assert store.held() == frozenset()


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "../" + "a" * 61])
def test_a_name_that_is_no_hash_reaches_no_file(store, name):
    for method in (store.path, store.read, store.discard, store.size_bytes):
        with pytest.raises(InvalidInputError):
            method(name)


def test_many_writers_of_one_unit_leave_it_whole(store):
    data = os.urandom(1_000_000)
    barrier = threading.Barrier(8)

    def write():
        barrier.wait()
        store.put(data)

    writers = [threading.Thread(target=write) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert store.read(sha256_of(data)) == data
    assert [path.name for path in store.root.rglob("*") if path.is_file()] == [f"{sha256_of(data)}.onnx"]


def test_files_of_killed_writers_are_not_held_and_removed_once_old(store):
    unit = store.put(b"weights")
    folder = store.path(unit.sha256).parent
    old, young = folder / ".tmp-1-dead", folder / ".tmp-2-alive"
    old.write_bytes(b"wei")
    young.write_bytes(b"weig")
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    reopened = UnitStore(store.root)
    assert reopened.held() == {unit.sha256}
    assert not old.exists()
    assert young.exists()


def test_a_file_system_that_refuses_is_a_clear_error(tmp_path):
    (tmp_path / "units").write_bytes(b"a file where a folder should be")
    with pytest.raises(UnavailableError, match="Not a directory"):
        UnitStore(tmp_path / "units").put(b"weights")
