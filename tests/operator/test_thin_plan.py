"""What is made of thin devices that register, what they are told, and what is said of them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.alias_generators import to_camel

from meedge_ray.actors.service.registry import Presence, Record
from meedge_ray.actors.service.rhythm import HEARTBEAT_S, silent_after_s
from meedge_ray.api.devices import Desired, Heartbeat
from meedge_ray.api.edge_device import EdgeDeviceSpec
from meedge_ray.api.kinds import KINDS
from meedge_ray.operator.controllers.thin_plan import (
    desired_of,
    devices_of,
    is_thin,
    no_service,
    plan_thin,
    taken_by,
    thin_conditions,
    thin_status,
)
from meedge_ray.operator.publishing import status_with
from meedge_ray.operator.view import Name

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
    assert devices_of(SERVICE, [device, made(labels={})]) == ({"Pi_1": device}, [])
    assert devices_of(other, [device]) == ({}, [])
    assert devices_of(elsewhere, [device]) == ({}, [])


def test_of_two_objects_for_one_device_the_younger_says_whose_it_is_until_the_older_goes():
    first, second = made(name="first"), made(name="second")
    assert devices_of(SERVICE, [first, second]) == ({"Pi_1": first}, [second])
    taken = taken_by(first)
    assert (taken.status, taken.reason, taken.warning) == ("False", "DeviceTaken", True)
    assert "Pi_1 is default/first already" in taken.message
    going = made(name="first", deletionTimestamp="2026-01-01T00:00:00Z")
    assert devices_of(SERVICE, [going, second]) == ({"Pi_1": second}, [])


def test_a_device_whose_service_is_not_there_says_so():
    assert no_service(made(), {Name("default", "vision")}) is None
    lost = no_service(made(), {Name("elsewhere", "vision")})
    assert (lost.reason, lost.message) == ("ServiceNotFound", "there is no ElasticService vision")


SAID = {
    "memoryPolicy": {"headroom": "16Mi"},
    "memorySchedule": [{"at": "22:30", "memory": "1Mi"}],
    "mode": "finiteTime",
    "latencyMilliseconds": "5",
    "transferMilliseconds": "100",
    "deviceType": "other",
    "planning": "static",
    "horizonMilliseconds": "10",
    "timeDistribution": {"normal": {"meanMilliseconds": "5", "standardDeviationMilliseconds": "1"}},
    "threads": 2,
    "cacheDir": "/cache",
    "memory": "3Mi",
    "modelRef": {"name": "next"},
}


@pytest.mark.parametrize("field", sorted(SAID))
def test_every_field_is_told_to_the_device_or_said_not_to_be(field):
    device, before = made(), made()
    device["spec"][field] = SAID[field]
    assert EDGE_DEVICE.problems(device) == []
    is_told = desired_of(device) != desired_of(before)
    assert reason(device, presence(), heartbeat(), "Followed")[0] == ("True" if is_told else "False")
    [followed] = [each for each in thin_conditions(device, presence(), None) if each.type == "Followed"]
    assert (f"is not told spec.{field}:" in followed.message, followed.warning) == (not is_told, not is_told)


def test_no_field_of_a_device_is_forgotten_here():
    assert {to_camel(name) for name in EdgeDeviceSpec.model_fields} == SAID.keys() | {"device", "serviceRef"}


def test_what_says_nothing_and_what_the_device_says_itself_is_followed():
    device = made(presence(device_type="board"))
    device["spec"] |= {"memorySchedule": [], "memoryPolicy": {}}
    assert reason(device, presence(device_type="board"), None, "Followed") == ("True", "Told")
    assert reason(device, presence(), heartbeat(), "Followed") == ("True", "Told")
    assert reason(device, None, None, "Followed") == ("True", "Told")
    assert reason(device, presence(device_type="other"), None, "Followed") == ("False", "SetOnTheDevice")


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
        (presence(silent_s=silent_after_s(HEARTBEAT_S) + 1), heartbeat(), ("False", "NotAnswering")),
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
    late = presence(silent_s=silent_after_s(HEARTBEAT_S) + 0.1)
    assert reason(made(), late, None, "Reachable") == ("False", "NotAnswering")
    told_seldom = presence(silent_s=silent_after_s(HEARTBEAT_S) + 0.1, heartbeat_s=20.0)
    assert reason(made(), told_seldom, None, "Reachable") == ("True", "Heartbeat")


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
