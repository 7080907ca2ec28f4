"""What goes by itself: dependents of what is deleted, the content of namespaces, and old events."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from api_process import device

from meedge_ray.operator.server.app import App
from meedge_ray.operator.server.collector import Collector
from meedge_ray.operator.server.seeds import sow
from meedge_ray.operator.server.store import Store

DEVICES = "/apis/meedge.dev/v1alpha1/namespaces/default/edgedevices"
FLEETS = "/apis/meedge.dev/v1alpha1/namespaces/default/devicefleets"
EVENTS = "/api/v1/namespaces/default/events"
MERGE = {"content-type": "application/merge-patch+json"}


@asynccontextmanager
async def api(folder, event_ttl_s=3600.0, collects=True):
    """A client of a server in this process, with its collector at work."""
    store = Store(folder / "state.db")
    await sow(store)
    collecting = asyncio.create_task(Collector(store, event_ttl_s=event_ttl_s).run() if collects else asyncio.sleep(0))
    transport = httpx.ASGITransport(App(store, lambda _: "admin"))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client
    collecting.cancel()
    await asyncio.gather(collecting, return_exceptions=True)
    store.close()


def run(test):
    """Lets an asynchronous test be a plain one."""

    def plain(tmp_path):
        asyncio.run(asyncio.wait_for(test(tmp_path), 60))

    plain.__name__ = test.__name__
    return plain


def fleet(name="fleet", **metadata):
    template = {name: value for name, value in device()["spec"].items() if name != "device"}
    spec = {"selector": {}, "template": template}
    return {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "DeviceFleet",
        "metadata": {"name": name, **metadata},
        "spec": spec,
    }


def owned(name, *owners, blocks=False, **metadata):
    references = [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": blocks,
        }
        for owner in owners
    ]
    return device(name) | {"metadata": {"name": name, "ownerReferences": references, **metadata}}


async def made(client, path, content):
    answer = await client.post(path, json=content)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def names(client, path=DEVICES):
    return [item["metadata"]["name"] for item in (await client.get(path)).json()["items"]]


async def delete(client, path, policy=None):
    answer = await client.request("DELETE", path, json={"propagationPolicy": policy} if policy else {})
    assert answer.status_code == 200, answer.text


async def until(holds):
    deadline = time.monotonic() + 30
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def settled():
    """Long enough for the collector to do what it should not."""
    await asyncio.sleep(0.3)


@run
async def test_dependents_follow_their_owner(tmp_path):
    async with api(tmp_path) as client:
        owner, other = await made(client, FLEETS, fleet()), await made(client, FLEETS, fleet("other"))
        for name, owners in (("a", [owner]), ("b", [owner, other]), ("c", [other]), ("d", [])):
            await made(client, DEVICES, owned(name, *owners))

        await delete(client, f"{FLEETS}/fleet")
        await until(lambda: is_now(client, ["b", "c", "d"]))
        b = (await client.get(f"{DEVICES}/b")).json()

    assert [owner["name"] for owner in b["metadata"]["ownerReferences"]] == ["other"]


async def is_now(client, expected, path=DEVICES):
    return await names(client, path) == expected


@run
async def test_dependents_of_dependents_follow_as_well(tmp_path):
    async with api(tmp_path) as client:
        above = await made(client, FLEETS, fleet())
        for level in range(5):
            above = await made(client, DEVICES, owned(f"level-{level}", above))

        await delete(client, f"{FLEETS}/fleet", "Background")
        await until(lambda: is_now(client, []))


@run
async def test_orphans_stay(tmp_path):
    async with api(tmp_path) as client:
        owner = await made(client, FLEETS, fleet())
        await made(client, DEVICES, owned("a", owner))

        await delete(client, f"{FLEETS}/fleet", "Orphan")
        await until(lambda: is_now(client, [], FLEETS))
        await settled()
        left = (await client.get(f"{DEVICES}/a")).json()

    assert "ownerReferences" not in left["metadata"]


@run
async def test_in_the_foreground_the_owner_waits_for_dependents_that_block_it(tmp_path):
    async with api(tmp_path) as client:
        owner = await made(client, FLEETS, fleet())
        await made(client, DEVICES, owned("held", owner, blocks=True, finalizers=["example.com/hold"]))
        await made(client, DEVICES, owned("free", owner))

        await delete(client, f"{FLEETS}/fleet", "Foreground")
        await until(lambda: is_now(client, ["held"]))
        await settled()
        waiting = (await client.get(f"{FLEETS}/fleet")).json()
        await client.patch(f"{DEVICES}/held", content=json.dumps({"metadata": {"finalizers": None}}), headers=MERGE)
        await until(lambda: is_now(client, [], FLEETS))

    assert waiting["metadata"]["finalizers"] == ["foregroundDeletion"]


@run
async def test_an_owner_that_was_made_anew_is_another(tmp_path):
    async with api(tmp_path) as client:
        first = await made(client, FLEETS, fleet())
        await delete(client, f"{FLEETS}/fleet")
        await made(client, FLEETS, fleet())

        await made(client, DEVICES, owned("late", first))
        await until(lambda: is_now(client, []))


@run
async def test_owners_of_kinds_that_nobody_here_knows_are_believed(tmp_path):
    async with api(tmp_path) as client:
        stranger = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "uid": "1"}}
        await made(client, DEVICES, owned("a", stranger))
        await settled()

        assert await names(client) == ["a"]


@run
async def test_what_was_left_to_do_is_done_after_a_restart(tmp_path):
    async with api(tmp_path, collects=False) as client:
        owner, keeper = await made(client, FLEETS, fleet()), await made(client, FLEETS, fleet("keeper"))
        await made(client, DEVICES, owned("a", owner))
        await made(client, DEVICES, owned("b", keeper, blocks=True))
        await made(client, "/api/v1/namespaces", {"metadata": {"name": "lab"}})
        await made(client, DEVICES.replace("default", "lab"), device())
        await delete(client, f"{FLEETS}/fleet")
        await delete(client, f"{FLEETS}/keeper", "Foreground")
        await delete(client, "/api/v1/namespaces/lab")
        assert await names(client) == ["a", "b"]

    async with api(tmp_path) as client:
        await until(lambda: is_now(client, []))
        await until(lambda: is_now(client, ["default"], "/api/v1/namespaces"))
        await until(lambda: is_now(client, [], FLEETS))


@run
async def test_a_namespace_takes_nothing_new_and_goes_when_it_is_empty(tmp_path):
    async with api(tmp_path) as client:
        devices = DEVICES.replace("default", "lab")
        await made(client, "/api/v1/namespaces", {"metadata": {"name": "lab"}})
        held = device("held")
        held["metadata"]["finalizers"] = ["example.com/hold"]
        for content in (held, *(device(f"pi-{index}") for index in range(100))):
            await made(client, devices, content)

        await delete(client, "/api/v1/namespaces/lab")
        await until(lambda: is_now(client, ["held"], devices))
        refused = await client.post(devices, json=device("late"))
        phase = (await client.get("/api/v1/namespaces/lab")).json()["status"]["phase"]
        await client.patch(f"{devices}/held", content=json.dumps({"metadata": {"finalizers": None}}), headers=MERGE)
        await until(lambda: is_now(client, ["default"], "/api/v1/namespaces"))
        gone = await client.post(devices, json=device("later"))

    assert phase == "Terminating"
    assert refused.status_code == 403
    assert refused.json()["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    assert gone.status_code == 404


@run
async def test_a_namespace_goes_however_it_is_deleted(tmp_path):
    async with api(tmp_path) as client:
        for policy in ("Orphan", "Foreground", "Background"):
            await made(client, "/api/v1/namespaces", {"metadata": {"name": "lab"}})
            await made(client, DEVICES.replace("default", "lab"), device())
            await delete(client, "/api/v1/namespaces/lab", policy)
            await until(lambda: is_now(client, ["default"], "/api/v1/namespaces"))


@run
async def test_events_go_when_they_are_old_by_the_clock_of_the_server(tmp_path):
    now = datetime.now(UTC)

    def event(name, **times):
        return {"metadata": {"name": name}, "involvedObject": {"namespace": "default"}, **times}

    async with api(tmp_path, collects=False) as client:
        for name, moment in (("old", now - timedelta(hours=2)), ("new", now), ("future", now + timedelta(days=9))):
            await made(client, EVENTS, event(name, lastTimestamp=moment.isoformat()))
        await made(client, EVENTS, event("odd", lastTimestamp="yesterday", eventTime="2020-01-01"))
    async with api(tmp_path, event_ttl_s=3600) as client:
        await settled()
        kept = await names(client, EVENTS)
    async with api(tmp_path, event_ttl_s=0.5) as client:
        await until(lambda: is_now(client, [], EVENTS))

    # Created now, all of them: no event is older than its object.
    assert kept == ["future", "new", "odd", "old"]


@pytest.mark.parametrize("policy", ["Background", "Foreground", "Orphan"])
def test_kubectl_delete_cascades_as_it_is_told(kubectl, policy):
    made_fleet = json.loads(kubectl("create", "-o", "json", "-f", "-", stdin=json.dumps(fleet())))
    kubectl("create", "-f", "-", stdin=json.dumps(owned("a", made_fleet, blocks=True)))

    kubectl("delete", "df", "fleet", f"--cascade={policy.lower()}")

    if policy == "Orphan":
        assert "ownerReferences" not in json.loads(kubectl("get", "ed", "a", "-o", "json"))["metadata"]
    else:
        kubectl("wait", "--for=delete", "ed/a", "--timeout=30s")
