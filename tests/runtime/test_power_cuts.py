"""A cache whose process is killed, or whose machine loses power, at every single step of its writing."""

import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from worlds import make_world

from meedge_ray.bundle.manifest import bundle_json
from meedge_ray.bundle.store import UnitStore, sha256_of
from meedge_ray.domain.elastic import Unit
from meedge_ray.domain.errors import NotFoundError
from meedge_ray.runtime.cache import Cache
from meedge_ray.runtime.client import ServiceClient

CONTENTS = [random.Random(seed).randbytes(size) for seed, size in enumerate((1_000, 150_000, 100_000))]
HELD, *WANTED = (Unit(sha256=sha256_of(data), size_bytes=len(data)) for data in CONTENTS)
TAKEN_UP = WANTED[1]  # of which half had come before
OLD, NEW = make_world(seed=1).bundle, make_world(seed=2).bundle


@pytest.fixture
def folder():
    """In memory where that can be: hundreds of real syncs would take the disk seconds."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def test_after_a_cut_at_any_step_the_cache_is_whole_or_lacks_the_unit(service, folder):
    units = {sha256_of(data): data for data in CONTENTS}
    service.world = replace(service.world, bundle=NEW, units=units)
    command = [sys.executable, __file__, service.url, service.token, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(sys.modules["worlds"].__file__).parent)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    # It was cut before the first unit was there, after the last, and in between.
    assert {0, 1, 2} <= set(report["held"])
    assert set(report["bundle"]) == {"old", "new"}


def every_cut(url, token, folder):
    """Run the writing once for each of its steps, cut there, and check what is left; the last run gets through."""
    report = {"held": [], "bundle": []}
    for step in itertools.count():
        home = folder / str(step)
        prepare(home)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            cut_at(step, writing)
            with ServiceClient(url, token) as client:
                write_all(client, home)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as log:
            unsynced = unsynced_inodes(log)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        lost = shutil.copytree(home, folder / f"{step}-lost")
        spoil(lost, unsynced_files(home, unsynced), keep=step % 3 / 2)
        for left in (home, lost):
            with ServiceClient("http://127.0.0.1:1") as nobody:
                held, bundle = what_is_left(nobody, left)
            report["held"].append(held)
            report["bundle"].append(bundle)
            with ServiceClient(url, token) as client:
                write_all(client, left)
                assert what_is_left(client, left) == (2, "new")
        if os.WIFEXITED(status):
            return report


def prepare(home):
    cache = Cache(None, UnitStore(home))
    cache.store.put(CONTENTS[0])
    path = home / "bundles" / "tiny.bundle"
    path.parent.mkdir()
    path.write_bytes(f"{sha256_of(bundle_json(OLD))}\n".encode() + bundle_json(OLD))
    partial = home / "partial" / TAKEN_UP.sha256
    partial.parent.mkdir()
    partial.write_bytes(CONTENTS[2][:50_000])


def write_all(client, home):
    cache = Cache(client, UnitStore(home))
    cache.bundle("tiny")
    cache.ensure(WANTED[0])
    cache.ensure_all(WANTED)
    assert cache.problem is None


def what_is_left(client, home):
    """How many of the wanted units are held, and which bundle; what is held is right, or this raises."""
    cache = Cache(client, UnitStore(home))
    assert cache.stored(HELD) == CONTENTS[0]
    held = 0
    for unit, data in zip(WANTED, CONTENTS[1:], strict=True):
        with suppress(NotFoundError):
            assert cache.stored(unit) == data
            held += 1
    assert len(cache.held(WANTED)) == held
    bundle = cache.bundle("tiny")
    assert bundle in (OLD, NEW)
    return held, "old" if bundle == OLD else "new"


def cut_at(step, log):
    """Kill this process before, within or after its `step`-th file operation; log which inodes are not synced."""
    steps = itertools.count()
    write, fstat = os.write, os.fstat

    def reached():
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def noted(mark, file):
        write(log, f"{mark} {fstat(file).st_ino}\n".encode())

    def around(operation, mark=""):
        @functools.wraps(operation)
        def cutting(*args, **kwargs):
            reached()
            result = operation(*args, **kwargs)
            if mark:
                noted(mark, args[0])
            reached()
            return result

        return cutting

    def opening(path, flags, *args, **kwargs):
        reached()
        file = original_open(path, flags, *args, **kwargs)
        if flags & (os.O_WRONLY | os.O_CREAT):
            noted("dirty", file)
        reached()
        return file

    def torn(file, data):
        reached()
        noted("dirty", file)
        half = write(file, memoryview(data)[: len(data) // 2])
        reached()
        return half + write(file, memoryview(data)[half:])

    original_open, os.open, os.write = os.open, opening, torn
    os.fsync = around(os.fsync, "synced")
    for name in ("replace", "unlink", "mkdir", "ftruncate"):
        setattr(os, name, around(getattr(os, name)))


def unsynced_inodes(log):
    unsynced = set()
    for line in log:
        mark, inode = line.split()
        (unsynced.add if mark == "dirty" else unsynced.discard)(int(inode))
    return unsynced


def unsynced_files(home, inodes):
    return [path.relative_to(home) for path in home.rglob("*") if path.is_file() and path.stat().st_ino in inodes]


def spoil(home, names, *, keep):
    """Take away what had not reached the disk: of such a file the given share stays, then come zeros."""
    for name in names:
        data = (home / name).read_bytes()
        kept = data[: int(len(data) * keep)]
        (home / name).write_bytes(kept + bytes(len(data) - len(kept)))


if __name__ == "__main__":
    print(json.dumps(every_cut(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
