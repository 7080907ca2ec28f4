"""Watches where time and history are short."""

import asyncio
import json

import pytest
from api_process import device
from starlette.datastructures import QueryParams

from meedge_ray.operator.server.options import AnswerForm, list_options
from meedge_ray.operator.server.resources import RESOURCES
from meedge_ray.operator.server.selectors import matching
from meedge_ray.operator.server.store import Store
from meedge_ray.operator.server.watching import pieces

[DEVICES] = [resource for resource in RESOURCES if resource.kind == "EdgeDevice"]
JSON = AnswerForm(form="json", include="Metadata")


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "state.db", history=5)
    yield store
    store.close()


async def write(store, name, threads=1, **labels):
    content = device(name, threads=threads)
    content["metadata"] |= {"labels": labels, "uid": name}
    key = DEVICES.key("default", name)
    names = [item["metadata"]["name"] for item in store.list(DEVICES.stored, None).items]
    await (store.update(key, lambda _: content) if name in names else store.create(key, content))


def watch(store, selector="", **query):
    options = list_options(QueryParams({"watch": "1", "timeoutSeconds": "20", **query}))
    return pieces(store, DEVICES, None, options, JSON, matching(selector, ""))


async def lines(watching, count):
    found = []
    async for piece in watching:
        found += [json.loads(line) for line in piece.splitlines()]
        if len(found) >= count:
            break
    await watching.aclose()
    return [(event["type"], event["object"].get("metadata", {}).get("name")) for event in found], found


def test_who_comes_back_too_late_is_told_to_list_again(store):
    async def late():
        for index in range(10):
            await write(store, f"pi-{index}")
        return await lines(watch(store, resourceVersion="2"), 1)

    [(kind, _)], [event] = asyncio.run(late())

    assert kind == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")


def test_who_falls_behind_is_told_to_list_again(store):
    async def slow():
        watching = watch(store, resourceVersion=str(store.version))
        waiting = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        await write(store, "pi-0")
        first = await waiting
        for index in range(10):
            await write(store, f"pi-{index}", threads=2)
        return first, await lines(watching, 1)

    first, (events, _) = asyncio.run(slow())

    assert json.loads(first)["type"] == "ADDED"
    assert events == [("ERROR", None)]


def test_many_objects_begin_a_watch_in_several_pieces(store):
    async def many():
        for index in range(250):
            await write(store, f"pi-{index:03}")
        begin, sizes = [], []
        watching = watch(store, sendInitialEvents="true", allowWatchBookmarks="true")
        async for piece in watching:
            sizes.append(len(piece.splitlines()))
            begin += [json.loads(line) for line in piece.splitlines()]
            if begin[-1]["type"] == "BOOKMARK":
                break
        await watching.aclose()
        return begin, sizes

    begin, sizes = asyncio.run(many())

    assert sizes == [100, 100, 50, 1]
    assert [event["object"]["metadata"]["name"] for event in begin[:-1]] == [f"pi-{index:03}" for index in range(250)]
    assert begin[-1]["object"]["metadata"]["resourceVersion"] == str(store.version)


def test_from_now_on_means_from_now_on(store):
    async def later():
        await write(store, "old")
        watching = watch(store, sendInitialEvents="false")
        waiting = asyncio.ensure_future(lines(watching, 1))
        await asyncio.sleep(0)
        await write(store, "new")
        return await waiting

    assert asyncio.run(later())[0] == [("ADDED", "new")]


def test_what_a_selection_never_held_is_not_told(store):
    async def selected():
        start = str(store.version)
        await write(store, "in", room="hall")
        await write(store, "out", room="attic")
        await write(store, "out", room="attic", threads=2)
        await store.update(DEVICES.key("default", "out"), lambda _: None)
        await store.update(DEVICES.key("default", "in"), lambda _: None)
        return await lines(watch(store, "room=hall", resourceVersion=start), 2)

    events, found = asyncio.run(selected())

    assert events == [("ADDED", "in"), ("DELETED", "in")]
    assert found[1]["object"]["metadata"]["resourceVersion"] == str(store.version)


def test_a_closed_store_ends_its_watches(store):
    async def close():
        watching = watch(store)
        waiting = asyncio.ensure_future(lines(watching, 1))
        await asyncio.sleep(0)
        await asyncio.to_thread(store.close)
        return await waiting

    assert asyncio.run(close())[0] == []
