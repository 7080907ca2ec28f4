"""The store's file: processes killed, files of others, files broken, two processes at once."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from meedge_ray.domain.errors import InvalidInputError, MeedgeError, UnavailableError
from meedge_ray.operator.server.errors import Key
from meedge_ray.operator.server.store import Store

EVENTS = "events"

# Writers side by side, each over its own objects, telling every write once it is acknowledged.
WRITER = """
import asyncio, os, sys
from pathlib import Path
from meedge_ray.operator.server.errors import Key
from meedge_ray.operator.server.store import Store

store = Store(Path(sys.argv[1]), history=100_000)

async def told(write, key, count):
    made = await write
    os.write(1, f"{made['metadata']['resourceVersion']} {key.name} {count}\\n".encode())

async def writer(number):
    for object_ in range(1_000_000):
        key = Key("events", "default", f"{sys.argv[2]}-{number}-{object_}")
        await told(store.create(key, {"count": 0, "text": "x" * 2000}), key, 0)
        for count in range(1, object_ % 5):
            await told(store.update(key, lambda content: {**content, "count": count}), key, count)
        if object_ % 3 == 0:
            await told(store.update(key, lambda content: None), key, "deleted")

async def main():
    os.write(1, b"ready\\n")
    await asyncio.gather(*(writer(number) for number in range(8)))

asyncio.run(main())
"""


def start(path, generation=0):
    # Of this checkout, whatever is installed.
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(generation)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def told_until_killed(process, lines):
    told = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    with process:
        told += process.stdout.read().splitlines(keepends=True)
    return [line.decode().split() for line in told if line.endswith(b"\n")]


def changes_since(store, since):
    async def main():
        watch, changes = store.watch(EVENTS, None, since), []
        while found := await watch.next(timeout_s=0):
            changes += found
        return changes

    return asyncio.run(main())


def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path):
    choose, acknowledged, newest = random.Random(1), {}, 1
    for generation in range(4):
        told = told_until_killed(start(tmp_path / "state.db", generation), choose.randrange(20, 800))
        new = {int(version): (name, count) for version, name, count in told}
        assert len(new) == len(told)
        assert min(new) > newest, "versions grow over restarts"
        acknowledged |= new
        store = Store(tmp_path / "state.db", history=100_000)
        newest = store.version
        changes = changes_since(store, 1)
        assert [each.version for each in changes] == list(range(2, newest + 1))
        found = {
            each.version: (each.key.name, "deleted" if each.type == "DELETED" else str(each.object["count"]))
            for each in changes
        }
        assert acknowledged.items() <= found.items()
        since = choose.choice(sorted(new))
        assert changes_since(store, since) == [each for each in changes if each.version > since]
        last = {each.key: each for each in changes}
        expected = sorted(each.json for each in last.values() if each.type != "DELETED")
        assert sorted(store.list(EVENTS, None).json) == expected
        store.close()


def test_a_process_that_holds_the_file_is_named_and_its_end_frees_it(tmp_path):
    path = tmp_path / "state.db"
    process = start(path)
    with pytest.raises(UnavailableError, match=f"in use by process {process.pid}"):
        Store(path)
    told_until_killed(process, 1)
    Store(path).close()


def test_a_second_store_in_one_process_is_refused_and_leaves_the_first_alone(tmp_path):
    first = Store(tmp_path / "state.db")
    with pytest.raises(UnavailableError, match=f"in use by process {os.getpid()}"):
        Store(tmp_path / "state.db")
    asyncio.run(first.create(Key(EVENTS, "", "a"), {}))
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(tmp_path / "state.db", timeout=0).execute("SELECT * FROM changes")
    first.close()


def filled(path):
    store = Store(path, history=50)

    async def main():
        await asyncio.gather(*(store.create(Key(EVENTS, "", f"n{i}"), {"text": "x" * 3000}) for i in range(100)))

    asyncio.run(main())
    store.close()


def sqlite_of_another(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE precious (thing)")
    connection.commit()
    connection.close()


def text(path):
    path.write_text("precious notes\n" * 1000)


@pytest.mark.parametrize("make", [sqlite_of_another, text, Path.touch])
def test_a_file_of_another_is_refused_and_left_as_it_is(tmp_path, make):
    path = tmp_path / "state.db"
    make(path)
    before = path.read_bytes()
    with pytest.raises(InvalidInputError, match="is no state of meedge") as caught:
        Store(path)
    assert str(path) in caught.value.where
    assert caught.value.do
    assert path.read_bytes() == before


def test_a_file_of_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "state.db"
    filled(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(InvalidInputError, match="format 2"):
        Store(path)


def cut(path, _):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def scribbled(path, page):
    content = bytearray(path.read_bytes())
    content[page * 4096 : (page + 1) * 4096] = os.urandom(4096)
    path.write_bytes(content)


def without_a_row(path, row):
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM changes WHERE version = ?", (80 + row,))
    connection.commit()
    connection.close()


def with_nonsense(path, row):
    connection = sqlite3.connect(path)
    connection.execute("UPDATE changes SET object = ? WHERE version = ?", (b"{", 10 + row))
    connection.commit()
    connection.close()


@pytest.mark.parametrize("damage", [cut, scribbled, without_a_row, with_nonsense])
@pytest.mark.parametrize("where", [1, 2, 5])
def test_a_broken_file_is_refused_and_left_as_it_is(tmp_path, damage, where):
    path = tmp_path / "state.db"
    filled(path)
    damage(path, where)
    before = path.read_bytes()
    with pytest.raises(MeedgeError, match="is broken") as caught:
        Store(path)
    assert "copy" in caught.value.do
    assert path.read_bytes() == before
    assert not (tmp_path / "state.db-wal").exists()


def test_a_log_without_its_file_is_not_mixed_into_a_new_one(tmp_path):
    path = tmp_path / "state.db"
    told_until_killed(start(path), 50)
    path.unlink()
    log = (tmp_path / "state.db-wal").read_bytes()
    with pytest.raises(MeedgeError, match="is gone, and its log"):
        Store(path)
    assert not path.exists()
    assert (tmp_path / "state.db-wal").read_bytes() == log


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MeedgeError, match="cannot be opened: No such file"):
        Store(tmp_path / "nowhere" / "state.db")
    (tmp_path / "state.db").mkdir()
    with pytest.raises(MeedgeError, match="cannot be opened: Is a directory"):
        Store(tmp_path / "state.db")


def test_only_the_owner_may_read_it(tmp_path):
    store = Store(tmp_path / "state.db")
    asyncio.run(store.create(Key(EVENTS, "", "a"), {}))
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.glob("state.db*")}
    assert modes == dict.fromkeys(["state.db", "state.db-wal", "state.db.lock"], 0o600)
    store.close()


def test_the_file_grows_with_what_there_is_and_not_with_what_there_was(tmp_path):
    path = tmp_path / "state.db"
    store = Store(path, history=10)
    key = Key(EVENTS, "", "a")

    async def main(rounds):
        for i in range(rounds):
            await store.create(key, {"text": "x" * 5000})
            await store.update(key, lambda content, i=i: {**content, "count": i})
            await store.update(key, lambda content: None)

    asyncio.run(main(6))
    store.close()
    size_bytes = path.stat().st_size
    store = Store(path, history=10)
    asyncio.run(main(60))
    store.close()
    assert path.stat().st_size <= 2 * size_bytes


def test_a_disk_that_is_full_fails_the_write_and_nothing_else(tmp_path):
    store = Store(tmp_path / "state.db")
    key = Key(EVENTS, "", "a")
    made = asyncio.run(store.create(key, {"text": ""}))
    pages = store._database._connection.execute("PRAGMA page_count").fetchone()[0]
    store._database._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Exception, match=r"cannot write .*full"):
        asyncio.run(store.update(key, lambda content: {**content, "text": "x" * 100_000}))
    assert store.get(key) == made
    store._database._connection.execute("PRAGMA max_page_count = 1000000")
    changed = asyncio.run(store.update(key, lambda content: {**content, "text": "y"}))
    assert int(changed["metadata"]["resourceVersion"]) == int(made["metadata"]["resourceVersion"]) + 1
    store.close()
