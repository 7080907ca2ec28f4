import asyncio
import random
import threading

import pytest

from meedge_ray.operator.server.errors import ExpiredError, Key, NotFoundError
from meedge_ray.operator.server.store import Store

FLEETS = "devicefleets.meedge.dev"


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "state.db", history=10)
    yield store
    store.close()


def key(name, namespace="default", resource=FLEETS):
    return Key(resource, namespace, name)


def sized(size):
    return {"spec": {"size": size}}


def resize(size):
    return lambda content: {**content, **sized(size)}


def test_a_watch_gets_what_was_written_since_and_what_comes(store):
    async def main():
        await store.create(key("a"), sized(1))
        watch = store.watch(FLEETS, "default", store.version)
        await store.update(key("a"), resize(2))
        await store.create(key("b", resource="events"), sized(3))
        await store.create(key("c", "other"), sized(4))
        changes = await watch.next()
        assert [(each.type, each.object["spec"]["size"]) for each in changes] == [("MODIFIED", 2)]
        assert changes[0].before["spec"]["size"] == 1
        assert changes[0].version == int(changes[0].object["metadata"]["resourceVersion"])
        waiting = asyncio.create_task(watch.next())
        await asyncio.sleep(0)
        gone = await store.update(key("a"), lambda content: None)
        (change,) = await waiting
        assert (change.type, change.object, change.before["spec"]) == ("DELETED", gone, {"size": 2})

    asyncio.run(main())


def test_a_watch_of_all_namespaces_sees_them_all(store):
    async def main():
        watch = store.watch(FLEETS, None, store.version)
        await store.create(key("a", "one"), sized(1))
        await store.create(key("a", "two"), sized(1))
        assert [each.key.namespace for each in await watch.next()] == ["one", "two"]
        assert [each.before for each in await store.watch(FLEETS, None, 1).next()] == [None, None]

    asyncio.run(main())


def test_nothing_comes_of_an_unchanged_or_refused_write(store):
    async def main():
        await store.create(key("a"), sized(1))
        watch = store.watch(FLEETS, None, store.version)
        await store.update(key("a"), resize(1))
        with pytest.raises(ZeroDivisionError):
            await store.update(key("a"), lambda content: 1 / 0)
        assert await watch.next(timeout_s=0.01) == []

    asyncio.run(main())


def test_a_bookmark_is_as_far_as_the_store_where_the_resource_is_quiet(store):
    async def main():
        watch = store.watch(FLEETS, None, store.version)
        for i in range(5):
            await store.create(key(f"n{i}", resource="events"), sized(1))
        assert await watch.next(timeout_s=0) == []
        assert watch.version == store.version

    asyncio.run(main())


def test_a_quiet_watch_outlives_the_history_of_a_busy_resource(store):
    async def main():
        watch = store.watch(FLEETS, None, store.version)
        for i in range(15):
            await store.create(key(f"n{i}", resource="events"), sized(1))
        await store.create(key("a"), sized(1))
        assert [each.key.name for each in await watch.next()] == ["a"]

    asyncio.run(main())


@pytest.mark.parametrize("reopened", [False, True])
def test_a_watch_since_a_forgotten_version_is_expired(store, tmp_path, reopened):
    async def main(store):
        for i in range(25):
            await store.create(key(f"n{i}"), sized(1))

    asyncio.run(main(store))
    if reopened:
        store.close()
        store = Store(tmp_path / "state.db", history=10)
    oldest = store.version - 10
    changes = asyncio.run(store.watch(FLEETS, None, oldest).next())
    assert [each.version for each in changes] == list(range(oldest + 1, store.version + 1))
    for since in (0, 1, oldest - 1, store.version + 1):
        with pytest.raises(ExpiredError) as caught:
            store.watch(FLEETS, None, since)
        assert caught.value.code == 410
    store.close()


def test_a_watcher_that_falls_behind_the_history_is_told_so(store):
    async def main():
        watch = store.watch(FLEETS, None, store.version)
        for i in range(11):
            await store.create(key(f"n{i}"), sized(1))
        with pytest.raises(ExpiredError):
            await watch.next()

    asyncio.run(main())


def test_few_large_objects_do_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("meedge_ray.operator.server.memory.HISTORY_BYTES", 100_000)

    async def main(store):
        for i in range(10):
            await store.create(key(f"n{i}"), sized("x" * 30_000))
        assert len(await store.watch(FLEETS, None, store.version - 3).next()) == 3
        with pytest.raises(ExpiredError):
            store.watch(FLEETS, None, store.version - 4)

    store = Store(tmp_path / "state.db")
    asyncio.run(main(store))
    store.close()
    again = Store(tmp_path / "state.db")
    assert len(again.list(FLEETS, None).json) == 10
    with pytest.raises(ExpiredError):
        again.watch(FLEETS, None, again.version - 4)
    again.close()


def test_a_cancelled_wait_loses_nothing(store):
    async def main():
        watch = store.watch(FLEETS, None, store.version)
        for i in range(8):
            waiting = asyncio.create_task(watch.next())
            await asyncio.sleep(0)
            writing = asyncio.create_task(store.create(key(f"n{i}"), sized(1)))
            waiting.cancel()
            await writing
            assert waiting.cancelled()
            assert [each.key.name for each in await watch.next()] == [f"n{i}"]

    asyncio.run(main())


def test_closing_ends_watches(store):
    async def main():
        watch = store.watch(FLEETS, None, store.version)
        waiting = asyncio.create_task(watch.next())
        await asyncio.sleep(0)
        store.close()
        assert store.closed
        assert await waiting == []

    asyncio.run(main())


def test_a_thousand_watchers_each_get_every_change(store):
    async def main():
        watches = [store.watch(FLEETS, None, store.version) for _ in range(1000)]
        waiting = [asyncio.create_task(watch.next()) for watch in watches]
        await asyncio.sleep(0)
        await store.create(key("a"), sized(1))
        first = await asyncio.gather(*waiting)
        assert {each.json for changes in first for each in changes} == {first[0][0].json}
        await store.update(key("a"), resize(2))
        second = await asyncio.gather(*(watch.next() for watch in watches))
        assert all([each.version for each in changes] == [store.version] for changes in second)

    asyncio.run(main())


def test_watches_miss_and_repeat_nothing_while_threads_write(tmp_path):
    store = Store(tmp_path / "state.db")
    threads, writes, start = 6, 60, store.version

    async def write(thread):
        choose = random.Random(thread)
        for i in range(writes):
            at, content = key(f"n{thread}-{choose.randrange(5)}"), choose.choice([None, sized(i)])
            try:
                await store.update(at, lambda _, content=content: content)
            except NotFoundError:
                await store.create(at, sized(i))

    async def follow():
        versions, watch = [], store.watch(FLEETS, None, start)
        while not (done.is_set() and watch.version == store.version):
            versions += [each.version for each in await watch.next(timeout_s=0.05)]
        return versions

    async def resume():
        versions, since = [], start
        while not (done.is_set() and since == store.version):
            watch = store.watch(FLEETS, None, since)
            versions += [each.version for each in await watch.next(timeout_s=0.05)]
            since = watch.version
        return versions

    done = threading.Event()
    writers = [threading.Thread(target=lambda n=n: asyncio.run(write(n))) for n in range(threads)]

    async def main():
        readers = [asyncio.create_task(each()) for each in [follow] * 5 + [resume] * 5]
        for writer in writers:
            writer.start()
        await asyncio.to_thread(lambda: [writer.join() for writer in writers])
        done.set()
        return await asyncio.gather(*readers)

    for versions in asyncio.run(main()):
        assert versions == list(range(start + 1, store.version + 1))
    assert store.version > start + threads * writes // 2
    store.close()
