"""What is made of thin devices that register, what they are told, and what is said of them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.actors.service.registry import SILENT_AFTER_S, Presence, Record
from meedge_ray.api.devices import Desired, Heartbeat
from meedge_ray.api.kinds import KINDS
from meedge_ray.operator.controllers.thin_plan import (
    desired_of,
    devices_of,
    is_thin,
    plan_thin,
    thin_conditions,
    thin_status,
)
from meedge_ray.operator.publishing import status_with

[EDGE_DEVICE] = [kind for kind in KINDS if kind.name == "EdgeDevice"]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SERVICE = {
    "apiVersion": "meedge.dev/v1alpha1",
    "kind": "ElasticService",
    "metadata": {"name": "vision", "namespace": "default", "uid": "service-1", "generation": 1},
    "spec": {"modelRefs": [{"name": "tiny"}]},
}


def presence(device="Pi_1", *, silent_s=1.0, status=None, **changes):
    record = Record(device=device, model="tiny", memory_bytes=2**20, version="1", newest=1, current=1)
    return Presence(replace(record, **changes), silent_s, status)


def heartbeat(*, running=None, **changes):
    body = {
        "device": "Pi_1",
        "version": "1",
        "started_at": 0,
        "settings_sha256": "c" * 64,
        "busy": False,
        "problem": None,
        "running": {
            "model": "tiny",
            "bundle_sha256": "a" * 64,
            "device_type": "board",
            "memory_bytes": 2**20,
            "resident_bytes": 1000,
            "process_rss_bytes": 10**8,
            "branches": ["one", "two"],
            "planner": "static",
            "expectation": 0.75,
            "source": "service",
            "problem": "",
            **(running or {}),
        },
        "mode": "anytime",
        "latency_ms": None,
        "memory": {
            "source": "meminfo",
            "limit_bytes": 10**9,
            "used_bytes": 10,
            "pressure": 0.0,
            "allowed_bytes": 2**20,
            "rss_bytes": 9 * 10**7,
        },
        "counts": {},
    }
    return Heartbeat.model_validate(body | changes)


def made(found=None, service=SERVICE, **metadata):
    """The object of a device as the server keeps it."""
    [content] = plan_thin(service, [found or presence()], []).create
    assert EDGE_DEVICE.problems(content) == []
    return {**content, "metadata": {**content["metadata"], "uid": "1", "generation": 3, **metadata}}


def reason(device, found, said, type="Ready"):
    conditions = thin_conditions(device, found, said)
    status = status_with(device, thin_status({}, found, said, NOW), conditions, NOW)
    assert EDGE_DEVICE.problems({**device, "status": status}) == []
    [condition] = [condition for condition in conditions if condition.type == type]
    return condition.status, condition.reason


def test_a_device_that_registered_gets_its_object_which_goes_with_its_service():
    device = made()
    assert device["metadata"]["name"] == "pi-1"
    assert is_thin(device)
    [owner] = device["metadata"]["ownerReferences"]
    assert owner["uid"] == "service-1"
    assert device["spec"] == {
        "device": "Pi_1",
        "serviceRef": {"name": "vision"},
        "modelRef": {"name": "tiny"},
        "memory": str(2**20),
    }


def test_the_profile_that_a_device_names_is_declared():
    assert made(presence(device_type="board-1t"))["spec"]["deviceType"] == "board-1t"


def test_what_is_declared_is_told_to_the_device_once():
    device = made()
    device["spec"] |= {"memory": "2Mi", "latencyMilliseconds": "2.5", "mode": "finiteTime"}
    desired = Desired(generation=3, model="tiny", memory_bytes=2**21, latency_ms=2.5, mode="finiteTime")
    plan = plan_thin(SERVICE, [presence()], [device])
    assert (plan.create, plan.revoke, plan.desire) == ([], [], {"Pi_1": desired})
    told = presence(desired=desired, declared_by="service-1")
    assert plan_thin(SERVICE, [told], [device]).desire == {}


def test_who_deletes_the_object_revokes_the_credential():
    told = presence(declared_by="service-1")
    assert plan_thin(SERVICE, [told], []).revoke == ["Pi_1"]
    going = made(deletionTimestamp="2026-01-01T00:00:00Z")
    assert plan_thin(SERVICE, [told], [going]).revoke == ["Pi_1"]


def test_an_object_that_went_with_a_former_service_is_made_again():
    plan = plan_thin(SERVICE, [presence(declared_by="service-0")], [])
    assert (len(plan.create), plan.revoke) == (1, [])


def test_while_an_object_of_that_name_is_there_none_is_made_and_it_is_said_why():
    node = made(labels={})
    plan = plan_thin(SERVICE, [presence()], [node])
    assert plan.create == []
    assert "default/pi-1 is there already, for Pi_1" in plan.refused["Pi_1"]
    other = plan_thin(SERVICE, [presence("pi-1")], [made()])
    assert "for Pi_1" in other.refused["pi-1"]


def test_of_a_device_nobody_knows_the_memory_of_no_object_is_made():
    # The registry lost its file: the object is there still, or the device registers anew.
    assert plan_thin(SERVICE, [presence(memory_bytes=None)], []).create == []


def test_only_the_services_own_thin_devices_are_its():
    device = made()
    other = {**SERVICE, "metadata": {**SERVICE["metadata"], "name": "other"}}
    elsewhere = {**SERVICE, "metadata": {**SERVICE["metadata"], "namespace": "elsewhere"}}
    assert devices_of(SERVICE, [device, made(labels={})]) == {"Pi_1": device}
    assert devices_of(other, [device]) == {}
    assert devices_of(elsewhere, [device]) == {}


def test_a_spec_that_cannot_be_understood_is_not_told():
    device = made()
    device["spec"]["memory"] = "much"
    assert desired_of(device) is None
    assert plan_thin(SERVICE, [presence()], [device]).desire == {}
    assert thin_conditions(device, presence(), None)[0].reason == "Invalid"


PROBLEM = {"kind": "BudgetError", "what": "below the backbone"}


@pytest.mark.parametrize(
    ("found", "said", "want"),
    [
        (None, None, ("False", "NotRegistered")),
        (presence(), None, ("False", "Registered")),
        (presence(silent_s=SILENT_AFTER_S + 1), heartbeat(), ("False", "NotAnswering")),
        (presence(), heartbeat(), ("True", "Placed")),
        (presence(), heartbeat(running={"source": "local", "problem": "away"}), ("True", "PlacedLocally")),
        (presence(), heartbeat(running={"memory_bytes": 2**19}), ("False", "Placing")),
        (presence(), heartbeat(running={"model": "old"}), ("False", "Switching")),
        (presence(), heartbeat(running={"resident_bytes": 2**30}), ("False", "BudgetTooSmall")),
        (presence(), heartbeat(running={"memory_bytes": None}), ("False", "BudgetTooSmall")),
    ],
)
def test_a_device_is_ready_when_it_does_what_is_declared(found, said, want):
    assert reason(made(), found, said) == want


@pytest.mark.parametrize(
    ("problem", "busy", "want"),
    [(None, False, "Loading"), (PROBLEM, True, "Loading"), (PROBLEM, False, "BudgetTooSmall")],
)
def test_a_device_without_a_model_says_why(problem, busy, want):
    said = Heartbeat.model_validate(heartbeat().model_dump() | {"running": None, "problem": problem, "busy": busy})
    assert reason(made(), presence(), said) == ("False", want)


def test_a_device_whose_machine_takes_memory_away_is_ready_and_under_pressure():
    memory = heartbeat().memory.model_dump() | {"allowed_bytes": 2**18}
    said = heartbeat(memory=memory)
    assert reason(made(), presence(), said) == ("True", "Placed")
    assert reason(made(), presence(), said, "MemoryPressure") == ("True", "LittleLeft")
    assert reason(made(), presence(), heartbeat(), "MemoryPressure") == ("False", "WithinBudget")
    tight = heartbeat(running={"resident_bytes": 2**30})
    assert reason(made(), presence(), tight, "MemoryPressure") == ("True", "BudgetTooSmall")


def test_a_device_is_reachable_while_its_heartbeats_come():
    assert reason(made(), presence(), None, "Reachable") == ("True", "Heartbeat")
    late = presence(silent_s=SILENT_AFTER_S + 0.1)
    assert reason(made(), late, None, "Reachable") == ("False", "NotAnswering")


def test_the_status_is_what_the_device_said():
    status = thin_status({}, presence(), heartbeat(), NOW)
    assert status == {
        "heartbeatTime": "2025-12-31T23:59:59Z",
        "memoryBytes": 2**20,
        "allowedBytes": 2**20,
        "residentBytes": 1000,
        "processRssBytes": 9 * 10**7,
        "branches": 2,
        "expectation": "0.750000",
        "planner": "static",
        "source": "service",
        "bundleSha256": "a" * 64,
        "settingsHash": "c" * 12,
    }


@given(st.lists(st.tuples(st.floats(1, 30), st.integers(0, 2)), max_size=30))
def test_mere_heartbeats_are_written_seldom_and_news_at_once(steps):
    written, now = thin_status({}, presence(), heartbeat(), NOW), NOW
    for after_s, branches in steps:
        now += timedelta(seconds=after_s)
        said = heartbeat(running={"branches": ["b"] * branches}, memory=heartbeat().memory.model_dump())
        before, written = written, thin_status(written, presence(), said, now)
        age_s = (now - timedelta(seconds=1) - datetime.fromisoformat(before["heartbeatTime"])).total_seconds()
        assert written["branches"] == branches
        assert (written != before) == (branches != before["branches"] or age_s >= 60)
