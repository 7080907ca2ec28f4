import contextlib
import itertools
import os
import random
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import make_world

from meedge_ray.bundle.manifest import bundle_json
from meedge_ray.bundle.store import UnitStore, sha256_of
from meedge_ray.domain.elastic import Unit
from meedge_ray.domain.errors import IntegrityError, NotFoundError, UnavailableError
from meedge_ray.runtime import cache as cache_module
from meedge_ray.runtime import client as client_module
from meedge_ray.runtime.cache import Cache, Progress
from meedge_ray.runtime.client import ServiceClient


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(client_module, "BACK_OFF_S", (0.0,))


@pytest.fixture
def large(service):
    """Three units of 300 kB each that the service has, too."""
    contents = [random.Random(seed).randbytes(300_000) for seed in range(3)]
    units = {sha256_of(data): data for data in contents}
    service.world = replace(service.world, units=service.world.units | units)
    return [Unit(sha256=sha256, size_bytes=len(data)) for sha256, data in units.items()]


@pytest.fixture
def cache(client, store):
    return Cache(client, store)


def reopened(cache):
    """The cache as the next process finds it."""
    return Cache(cache.client, UnitStore(cache.store.root))


def partial(cache, unit):
    return cache.store.root / "partial" / unit.sha256


def test_a_unit_is_fetched_once_and_kept(cache, service, large):
    data = service.world.units[large[0].sha256]
    assert cache.ensure(large[0]) == cache.ensure(large[0]) == cache.stored(large[0]) == data
    assert reopened(cache).stored(large[0]) == data
    assert len(service.fetched()) == 1
    assert cache.fetched_bytes == len(data)
    assert cache.rate_bps > 0
    assert cache.problem is None
    assert not partial(cache, large[0]).exists()


def test_a_download_goes_on_in_the_next_process(cache, service, large):
    [unit, *_] = large
    service.break_after[unit.sha256] = [100_000, 50_000]
    with pytest.raises(UnavailableError, match="received 50000 bytes, expected 200000"):
        cache.ensure(unit)
    assert cache.fetched_bytes == 150_000
    service.requests.clear()
    again = reopened(cache)
    assert again.ensure(unit) == service.world.units[unit.sha256]
    assert service.asked() == [[(unit.sha256, 150_000)]]
    assert again.fetched_bytes == 150_000


def test_a_download_that_was_whole_needs_no_service(cache, service, large):
    [unit, *_] = large
    partial(cache, unit).parent.mkdir(parents=True)
    partial(cache, unit).write_bytes(service.world.units[unit.sha256])
    service.away = True
    assert cache.ensure(unit) == service.world.units[unit.sha256]
    assert cache.held(large) == {unit.sha256}


@pytest.mark.parametrize("size_bytes", [1_000, 300_000, 300_001])
def test_a_damaged_partial_is_thrown_away_and_fetched_anew_once(cache, service, large, size_bytes):
    [unit, *_] = large
    partial(cache, unit).parent.mkdir(parents=True)
    partial(cache, unit).write_bytes(bytes(size_bytes))
    assert cache.ensure(unit) == service.world.units[unit.sha256]
    service.swapped[large[1].sha256] = bytes(300_000)
    partial(cache, large[1]).write_bytes(bytes(1_000))
    service.requests.clear()
    with pytest.raises(IntegrityError, match="arrived damaged"):
        cache.ensure(large[1])
    assert service.asked() == [[(large[1].sha256, 1_000)], [(large[1].sha256, 0)]]
    assert not partial(cache, large[1]).exists()
    assert cache.held(large) == {unit.sha256}


def test_partials_that_nobody_goes_on_with_are_removed(cache, large):
    old, young = (partial(cache, unit) for unit in large[:2])
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    young.write_bytes(b"young")
    month_ago = time.time() - 30 * 24 * 3600
    os.utime(old, (month_ago, month_ago))
    reopened(cache)
    assert [path.name for path in old.parent.iterdir()] == [young.name]


def test_a_damaged_unit_is_fetched_anew(cache, service, large):
    [unit, *_] = large
    cache.ensure_all(large)
    cache.store.path(unit.sha256).write_bytes(b"damaged")
    service.requests.clear()
    cache.ensure_all(large)
    assert service.fetched() == [unit.sha256]
    assert cache.stored(unit) == service.world.units[unit.sha256]
    cache.store.path(unit.sha256).write_bytes(b"damaged")
    with pytest.raises(IntegrityError):
        cache.stored(unit)
    assert cache.held(large) == {other.sha256 for other in large[1:]}


def test_all_that_is_missing_comes_by_one_request(cache, service, large):
    first, second, third = large
    partial(cache, second).parent.mkdir(parents=True)
    partial(cache, second).write_bytes(service.world.units[second.sha256][:1_000])
    cache.ensure_all([first, second, third])
    assert service.asked() == [[(first.sha256, 0), (second.sha256, 1_000), (third.sha256, 0)]]
    assert len(service.requests) == 1
    assert cache.fetched_bytes == 899_000


def test_more_units_than_a_request_may_name_come_by_several(cache, service, large, monkeypatch):
    monkeypatch.setattr(cache_module, "MOST_UNITS", 2)
    told = []
    cache.ensure_all(large, told.append)
    assert [len(units) for units in service.asked()] == [2, 1]
    assert all(cache.stored(unit) == service.world.units[unit.sha256] for unit in large)
    assert [step.received_bytes for step in told] == sorted(step.received_bytes for step in told)
    assert told[-1] == Progress(units=3, units_done=3, size_bytes=900_000, received_bytes=900_000)


@given(
    units=st.lists(st.tuples(st.integers(0, 150_000), st.integers(0, 150_000)), max_size=5),
    cuts=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 150_000)), max_size=6),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_was_there_and_wherever_it_is_cut_the_units_come_and_no_byte_twice(client, service, units, cuts):
    contents = [bytes([index]) + random.Random(index).randbytes(size) for index, (size, _) in enumerate(units)]
    wanted = [Unit(sha256=sha256_of(data), size_bytes=len(data)) for data in contents]
    service.world = replace(
        service.world, units={unit.sha256: data for unit, data in zip(wanted, contents, strict=True)}
    )
    service.break_after = {
        unit.sha256: [size for place, size in cuts if place == index and size < unit.size_bytes]
        for index, unit in enumerate(wanted)
    }
    with TemporaryDirectory() as folder:
        cache = Cache(client, UnitStore(Path(folder)))
        (Path(folder) / "partial").mkdir()
        missing_bytes = 0
        for unit, data, (_, had) in zip(wanted, contents, units, strict=True):
            partial(cache, unit).write_bytes(data[:had])
            missing_bytes += len(data[had:])
        fetched_bytes = 0
        for _ in range(len(cuts) + 1):
            cache = reopened(cache)
            with contextlib.suppress(UnavailableError):
                cache.ensure_all(wanted)
            fetched_bytes += cache.fetched_bytes
        assert [cache.stored(unit) for unit in wanted] == contents
        assert fetched_bytes == missing_bytes
        assert list((Path(folder) / "partial").iterdir()) == []


def test_units_that_came_before_a_cut_are_kept_and_count_for_the_rate(cache, service, large):
    service.break_after[large[2].sha256] = [10_000] * 2
    with pytest.raises(UnavailableError):
        cache.ensure_all(large)
    assert cache.rate_bps > 0
    assert cache.held(large) == {unit.sha256 for unit in large[:2]}


def test_several_units_come_over_one_connection_and_tell_how_far_they_are(service, large, store):
    cut = large[1]
    service.break_after[cut.sha256] = [200_000, 0]
    told = []
    with relay(service.url) as (url, connections), ServiceClient(url, service.token) as client:
        cache = Cache(client, store)
        with pytest.raises(UnavailableError):
            cache.ensure_all(large)
        assert cache.held(large) == {large[0].sha256}
        before = len(connections)
        cache.ensure_all([*large, *large], told.append)
        assert len(connections) == before + 1
    assert cache.held(large) == {unit.sha256 for unit in large}
    assert told[0].received_bytes > 200_000  # those of the first try count
    assert told[-1] == Progress(units=2, units_done=2, size_bytes=600_000, received_bytes=600_000)
    assert [step.received_bytes for step in told] == sorted(step.received_bytes for step in told)
    assert all(after.received_bytes - step.received_bytes <= 65536 for step, after in itertools.pairwise(told))


def test_a_download_ends_when_its_listener_says_so_and_goes_on_later(cache, service, large):
    def stop(progress):
        if progress.received_bytes > 100_000:
            raise RuntimeError("another placement is wanted")

    with pytest.raises(RuntimeError, match="another placement"):
        cache.ensure_all(large, stop)
    service.requests.clear()
    cache.ensure_all(large[:1])
    [[(sha256, offset_bytes)]] = service.asked()
    assert sha256 == large[0].sha256
    assert 100_000 < offset_bytes < 200_000


def test_threads_that_want_the_same_units_fetch_them_once(cache, service, large):
    threads = [threading.Thread(target=cache.ensure_all, args=(large,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(service.fetched()) == sorted(unit.sha256 for unit in large)
    assert all(cache.stored(unit) == service.world.units[unit.sha256] for unit in large)


def test_a_limited_download_is_whole(client, service, store, large):
    cache = Cache(client, store, rate_limit_bps=80e6)
    cache.ensure_all(large)
    assert cache.held(large) == {unit.sha256 for unit in large}
    assert cache.rate_bps < 100e6


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, to fill or to write-protect: `mount -t tmpfs`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no small disk can be mounted: {error}")
    if result.returncode != 0:
        pytest.skip(f"no small disk can be mounted: {result.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder, *, leave_bytes=0):
    with contextlib.suppress(OSError), (folder / "filler").open("ab", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    if leave_bytes:
        os.truncate(folder / "filler", (folder / "filler").stat().st_size - leave_bytes)


def write_protect(folder):
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def nearly_fill(folder):
    fill(folder, leave_bytes=100_000)


@pytest.mark.parametrize("refuse", [fill, nearly_fill, write_protect])
def test_a_disk_that_takes_nothing_more_leaves_a_device_its_units(client, service, world, large, disk, refuse):
    cache = Cache(client, UnitStore(disk / "cache"))
    kept, wanted, other = large
    cache.bundle("tiny")
    cache.ensure(kept)
    refuse(disk)
    assert cache.ensure(wanted) == service.world.units[wanted.sha256]
    assert str(disk) in cache.problem.where
    assert cache.problem.do
    cache.ensure_all([wanted, other])
    assert cache.held(large) == {unit.sha256 for unit in large}
    assert service.fetched().count(wanted.sha256) == 1
    for unit in (wanted, other):
        assert cache.stored(unit) == service.world.units[unit.sha256]
        with pytest.raises(NotFoundError):
            cache.stored(unit)  # the caller has it now
    service.world = rebuilt = replace(make_world(seed=5), units=service.world.units)
    assert cache.bundle("tiny") == rebuilt.bundle
    # Nothing that was held is lost, and nothing lies about.
    again = reopened(cache)
    assert again.stored(kept) == service.world.units[kept.sha256]
    service.away = True
    assert again.bundle("tiny") in (world.bundle, rebuilt.bundle)
    partials = disk / "cache" / "partial"
    assert [path for path in partials.iterdir() if path.stat().st_size] == []


def test_a_disk_with_room_again_is_used_again(cache_on, service, large, disk):
    cache = cache_on(disk)
    fill(disk)
    cache.ensure(large[0])
    assert cache.problem is not None
    (disk / "filler").unlink()
    cache.release()
    assert cache.held(large) == frozenset()
    cache.ensure(large[0])
    assert cache.problem is None
    assert reopened(cache).stored(large[0]) == service.world.units[large[0].sha256]


def test_a_damaged_unit_that_cannot_be_removed_is_not_held(cache_on, service, large, disk):
    cache = cache_on(disk)
    [unit, *_] = large
    cache.ensure(unit)
    cache.store.path(unit.sha256).write_bytes(b"damaged")
    write_protect(disk)
    with pytest.raises(IntegrityError):
        cache.stored(unit)
    assert cache.held(large) == frozenset()
    assert "Read-only" in cache.problem.what
    assert cache.ensure(unit) == service.world.units[unit.sha256]


@pytest.fixture
def cache_on(client):
    return lambda disk: Cache(client, UnitStore(disk / "cache"))


def test_the_kept_bundle_serves_while_the_service_is_away(cache, service, world, large):
    assert cache.bundle("tiny") == world.bundle
    [path] = (cache.store.root / "bundles").iterdir()
    assert path.read_bytes().partition(b"\n")[2] == bundle_json(world.bundle)
    before = path.stat().st_ino
    cache.bundle("tiny")
    assert path.stat().st_ino == before  # an unchanged one wears no flash
    service.away = True
    assert reopened(cache).bundle("tiny") == world.bundle
    path.write_bytes(path.read_bytes().replace(b"tiny", b"tinx"))  # JSON still
    with pytest.raises(UnavailableError):
        reopened(cache).bundle("tiny")
    service.away = False
    assert reopened(cache).bundle("tiny") == world.bundle
    service.away = True
    assert reopened(cache).bundle_at_hand("tiny") == world.bundle


@contextlib.contextmanager
def relay(url):
    """A TCP relay to the service that counts connections: yields its URL and them."""
    import socket

    host, port = url.removeprefix("http://").split(":")
    connections = []

    def pump(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                connections.append((near, far))
                for pair in ((near, far), (far, near)):
                    threads.append(threading.Thread(target=pump, args=pair))
                    threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            threads[0].join()
            for near, far in connections:
                for end in (near, far):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
            for thread in threads[1:]:
                thread.join()
            for near, far in connections:
                near.close()
                far.close()
