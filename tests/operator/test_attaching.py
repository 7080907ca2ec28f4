"""What devices do and say, step by step, and through any history in a simulated cluster."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_objects import SPECS

from meedge_ray.actors.device import DeviceReport
from meedge_ray.actors.fleet import EdgeNodeInfo
from meedge_ray.agent.status import MemoryState
from meedge_ray.api.agent import DeviceSettings, ScheduledMemory
from meedge_ray.api.edge_device import EdgeDeviceSpec
from meedge_ray.api.kinds import KINDS
from meedge_ray.domain.device_status import DeviceStatus
from meedge_ray.domain.errors import BudgetError, IntegrityError, InvalidInputError, NotFoundError, UnavailableError
from meedge_ray.operator.controllers.attaching import (
    Refusal,
    Seen,
    Wanted,
    conditions_of,
    next_step,
    settings_hash,
    settings_of,
    status_of,
    wanted_of,
)
from meedge_ray.operator.publishing import status_with
from meedge_ray.operator.view import Name

[EDGE_DEVICE] = [kind for kind in KINDS if kind.name == "EdgeDevice"]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NODE = EdgeNodeInfo(id="node-1", address="10.0.0.2", labels={})
SETTINGS = DeviceSettings(
    service_url="http://head:8000/default/service", token="secret", model="tiny", cache_dir="/cache", memory_bytes=2**20
)


def changed(settings, **changes):
    return settings.model_copy(update=changes)


WANTED = Wanted(settings=SETTINGS, bundle_sha256="a" * 64, waits="")


def device_status(**changes):
    status = DeviceStatus(
        model="tiny",
        bundle_sha256="a" * 64,
        device_type="board",
        memory_bytes=2**20,
        resident_bytes=1000,
        process_rss_bytes=10**8,
        branches=("one", "two"),
        planning="auto",
        planner="static",
        expectation=0.75,
        units_held=3,
        fetched_bytes=1000,
        source="service",
        problem="",
    )
    return replace(status, **changes)


def report(settings=SETTINGS, status=None, *, busy=False, problem=None, memory=None, **changes):
    status = device_status(**changes) if status is None else status
    return DeviceReport(settings=settings, status=status or None, busy=busy, problem=problem, memory=memory)


def memory_state(allowed_bytes):
    return MemoryState(
        source="/proc/meminfo",
        limit_bytes=2**30,
        used_bytes=2**29,
        pressure=None,
        allowed_bytes=allowed_bytes,
        rss_bytes=10**8,
    )


def test_a_machine_that_leaves_less_than_is_declared_is_told_of():
    [pressure] = [
        condition
        for condition in conditions_of(WANTED, seen(report(memory=memory_state(5000))))
        if condition.type == "MemoryPressure"
    ]
    assert (pressure.status, pressure.reason, pressure.warning) == ("True", "LittleLeft", False)
    assert "/proc/meminfo" in pressure.message
    status = status_of({}, seen(report(memory=memory_state(5000))), NOW, NOW)
    assert status["allowedBytes"] == 5000


def test_a_schedule_changes_the_budget_by_itself():
    schedule = (ScheduledMemory(at="22:30", memory_bytes=5000),)
    wanted = replace(WANTED, settings=changed(SETTINGS, schedule=schedule))
    by_night = seen(report(wanted.settings, memory_bytes=5000))
    assert next_step(wanted, by_night) == "none"
    assert conditions_of(wanted, by_night)[0].reason == "Placed"
    assert settings_hash(wanted.settings, 5000) == settings_hash(wanted.settings, 2**20)


def test_every_bound_of_a_spec_reaches_the_device():
    spec = EdgeDeviceSpec.model_validate(SPECS["EdgeDevice"])
    settings = settings_of(spec, service_url="http://head:8000", token="t")
    assert (settings.mode, settings.latency_ms, settings.transfer_ms, settings.device_type) == (
        "finiteTime",
        2.0,
        1500.0,
        "board-1t",
    )
    assert settings.memory_policy.headroom_bytes == 8 * 2**20
    assert [(each.at, each.memory_bytes) for each in settings.schedule] == [("07:00", 2**18), ("22:30:30", 2**19)]


def seen(said=None, *, node=NODE, attached=True, silent_s=0.0):
    return Seen(node=node, attached=attached, report=said, silent_s=silent_s)


def manifest(**spec):
    content = {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "EdgeDevice",
        "metadata": {"name": "pi-1", "namespace": "default", "uid": "1", "generation": 3},
        "spec": {
            "device": "pi-1",
            "serviceRef": {"name": "service"},
            "modelRef": {"name": "tiny"},
            "memory": "1Mi",
            **spec,
        },
    }
    assert EDGE_DEVICE.problems(content) == []
    return content


def service(**status):
    return {
        "metadata": {"name": "service", "namespace": "default"},
        "spec": {"modelRefs": [{"name": "tiny"}]},
        "status": {
            "url": SETTINGS.service_url,
            "tokenFile": "/token",
            "models": [{"name": "tiny", "bundleSha256": "a" * 64}],
            **status,
        },
    }


def read_token(path):
    if path != "/token":
        raise FileNotFoundError(2, "No such file or directory")
    return "secret"


def wanted(device=None, **status):
    services = {Name("default", "service"): service(**status)}
    return wanted_of(manifest(cacheDir="/cache") if device is None else device, services, read_token)


def test_a_manifest_says_how_the_device_runs():
    assert wanted() == WANTED
    law = {"normal": {"meanMilliseconds": "1.25", "standardDeviationMilliseconds": "0.05"}}
    device = manifest(planning="static", horizonMilliseconds="2.5", timeDistribution=law, threads=2)
    settings = wanted(device).settings
    assert (settings.planning, settings.horizon_ms, settings.threads) == ("static", 2.5, 2)
    assert settings.distribution.normal.mean_ms == 1.25
    assert settings.cache_dir == "~/.cache/meedge"


@pytest.mark.parametrize(
    ("device", "status", "reason", "message"),
    [
        ({"serviceRef": {"name": "other"}}, {}, "ServiceNotFound", "there is no ElasticService other"),
        ({"modelRef": {"name": "big"}}, {}, "ModelNotServed", "service has no reference to big"),
        ({}, {"tokenFile": "/nowhere"}, "TokenNotFound", "/nowhere: No such file"),
    ],
)
def test_what_is_missing_is_named_and_changes_nothing(device, status, reason, message):
    refusal = wanted(manifest(**device), **status)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert message in refusal.message
    assert next_step(refusal, seen(attached=False)) == "none"
    assert next_step(refusal, seen(report())) == "none"
    [ready, *_] = conditions_of(refusal, seen(report()))
    assert (ready.status, ready.reason, ready.warning) == ("False", reason, True)
    assert ready.message.endswith("it runs on as it did")


@pytest.mark.parametrize(("scheme", "ca_file"), [("https", "/tls/certificate.pem"), ("http", None)])
def test_a_service_that_speaks_https_is_checked_by_its_certificate(scheme, ca_file):
    services = {Name("default", "service"): service(url=f"{scheme}://head:8000/default/service")}
    found = wanted_of(manifest(), services, read_token, Path("/tls/certificate.pem"))
    assert found.settings.ca_file == ca_file


def test_a_service_without_a_url_is_waited_for():
    services = {Name("default", "service"): service() | {"status": {}}}
    assert wanted_of(manifest(), services, read_token).reason == "ServiceNotReady"


WAITS = replace(WANTED, waits="for the service", bundle_sha256="")
STEPS = [
    ("no node", WANTED, seen(node=None, attached=False), "none", "NodeAway"),
    ("its node left", WANTED, seen(report(), node=None), "none", "NodeAway"),
    ("new", WANTED, seen(attached=False), "attach", "Attaching"),
    ("new, the service is not there yet", WAITS, seen(attached=False), "none", "ServiceNotReady"),
    ("not heard of yet", WANTED, seen(), "none", "Attaching"),
    ("nothing is loaded", WANTED, seen(report(status=())), "place", "Loading"),
    ("it is loading", WANTED, seen(report(status=(), busy=True)), "none", "Loading"),
    (
        "it could not load",
        WANTED,
        seen(report(status=(), problem=UnavailableError("x"))),
        "place",
        "ServiceUnavailable",
    ),
    ("too little", WANTED, seen(report(status=(), problem=BudgetError("x"))), "place", "BudgetTooSmall"),
    ("not served", WANTED, seen(report(status=(), problem=NotFoundError("x"))), "place", "NotServed"),
    ("damaged", WANTED, seen(report(status=(), problem=IntegrityError("x"))), "place", "Damaged"),
    ("refused", WANTED, seen(report(status=(), problem=InvalidInputError("x"))), "place", "Refused"),
    ("as wanted", WANTED, seen(report()), "none", "Placed"),
    ("as wanted, the service is away", WAITS, seen(report()), "none", "Placed"),
    ("another token", WANTED, seen(report(changed(SETTINGS, token="old"))), "end", "Restarting"),
    ("another model, not served yet", WAITS, seen(report(changed(SETTINGS, model="old"))), "none", "ServiceNotReady"),
    ("another first budget", WANTED, seen(report(changed(SETTINGS, memory_bytes=1))), "none", "Placed"),
    ("another budget", WANTED, seen(report(memory_bytes=2**21)), "place", "Placing"),
    ("placing", WANTED, seen(report(memory_bytes=2**21, busy=True)), "none", "Placing"),
    ("the service was away", WANTED, seen(report(source="local", problem="away")), "place", "PlacedLocally"),
    ("the service is away", WAITS, seen(report(source="local", problem="away")), "none", "PlacedLocally"),
    ("a new bundle", WANTED, seen(report(bundle_sha256="b" * 64)), "place", "Placed"),
    ("not even the backbone fits", WANTED, seen(report(resident_bytes=2**21)), "none", "BudgetTooSmall"),
    ("silent", WANTED, seen(report(), silent_s=20), "none", "NotAnswering"),
]


@pytest.mark.parametrize(("wanted", "seen", "step", "reason"), [case[1:] for case in STEPS], ids=[c[0] for c in STEPS])
def test_each_state_has_its_step_and_its_reason(wanted, seen, step, reason):
    assert next_step(wanted, seen) == step
    ready, reachable, *pressure = conditions_of(wanted, seen)
    assert (ready.type, ready.reason) == ("Ready", reason)
    assert (ready.status == "True") == reason.startswith("Placed")
    assert (reachable.status == "True") == (reason not in ("NodeAway", "NotAnswering"))
    for each in pressure:
        assert (each.status == "True") == (reason == "BudgetTooSmall")


def test_the_status_is_what_the_device_said_last():
    before = status_of({}, seen(report()), NOW, NOW)
    assert before == {
        "node": {"id": "node-1", "address": "10.0.0.2"},
        "heartbeatTime": "2026-01-01T00:00:00Z",
        "memoryBytes": 2**20,
        "residentBytes": 1000,
        "processRssBytes": 10**8,
        "branches": 2,
        "expectation": "0.750000",
        "planner": "static",
        "source": "service",
        "bundleSha256": "a" * 64,
        "settingsHash": settings_hash(SETTINGS, 2**20),
    }
    away = status_of(before, seen(report(), node=None, attached=False), NOW, NOW + timedelta(minutes=1))
    assert away == {key: value for key, value in before.items() if key != "node"}
    for status in (before, away):
        written = status_with(manifest(), status, conditions_of(WANTED, seen(report())), NOW)
        assert EDGE_DEVICE.status_problems(written) == []


def test_a_mere_heartbeat_is_written_at_most_every_fifteen_seconds():
    before = status_of({}, seen(report()), NOW, NOW)
    soon, late = NOW + timedelta(seconds=10), NOW + timedelta(seconds=16)
    rss = report(process_rss_bytes=5)
    assert status_of(before, seen(rss), soon, soon) == before
    assert status_of(before, seen(rss), late, late)["heartbeatTime"] == "2026-01-01T00:00:16Z"
    other = status_of(before, seen(report(memory_bytes=1)), soon, soon)
    assert (other["heartbeatTime"], other["memoryBytes"]) == ("2026-01-01T00:00:10Z", 1)


def test_the_settings_hash_tells_budgets_apart_and_no_tokens():
    assert settings_hash(SETTINGS, 1) != settings_hash(SETTINGS, 2)
    assert settings_hash(SETTINGS, 1) == settings_hash(changed(SETTINGS, token="other"), 1)
    assert settings_hash(SETTINGS, 1) != settings_hash(changed(SETTINGS, threads=2), 1)


class Device:
    """An actor as the cluster has it: it loads when told, and forgets all when its node comes back."""

    def __init__(self):
        self.settings, self.memory_bytes, self.loaded, self.node = None, None, False, True

    def seen(self, bundle_sha256, service_is_there):
        if self.settings is None:
            return seen(attached=False, node=NODE if self.node else None)
        status = ()
        if self.loaded:
            source = "service" if service_is_there else "local"
            status = device_status(memory_bytes=self.memory_bytes, bundle_sha256=bundle_sha256, source=source)
        return seen(report(self.settings, status), node=NODE if self.node else None)

    def do(self, step, wanted):
        if step == "attach":
            assert self.settings is None
            assert self.node
            self.settings, self.loaded = wanted.settings, False
        elif step == "end":
            assert self.settings is not None
            self.settings, self.loaded = None, False
        elif step == "place":
            self.loaded, self.memory_bytes = True, wanted.settings.memory_bytes


changes = st.lists(
    st.sampled_from(["step", "leave", "return", "memory", "model", "waits", "refuse", "grant"]), max_size=30
)


@given(changes=changes)
def test_through_any_history_a_device_comes_to_run_as_wanted_and_is_then_left_alone(changes):
    device, now_wanted, refused = Device(), WANTED, False
    for index, change in enumerate(changes):
        if change == "leave":
            device.node = False
        elif change == "return":
            device.node, device.loaded = True, device.loaded and device.node
        elif change == "memory":
            now_wanted = replace(now_wanted, settings=changed(now_wanted.settings, memory_bytes=2**20 + index))
        elif change == "model":
            now_wanted = replace(now_wanted, settings=changed(now_wanted.settings, model=f"model-{index}"))
        elif change == "waits":
            now_wanted = replace(now_wanted, waits="" if now_wanted.waits else "for the service")
        elif change in ("refuse", "grant"):
            refused = change == "refuse"
        ran = device.settings if device.loaded else None
        asked = Refusal(reason="No", message="no") if refused else now_wanted
        device.do(next_step(asked, device.seen(now_wanted.bundle_sha256, not now_wanted.waits)), now_wanted)
        if refused or now_wanted.waits:
            assert ran is None or (device.settings == ran and device.loaded)
    device.node, final = True, replace(now_wanted, waits="")
    for _ in range(3):
        device.do(next_step(final, device.seen(final.bundle_sha256, True)), final)
    assert device.loaded
    assert device.memory_bytes == final.settings.memory_bytes
    assert changed(device.settings, memory_bytes=0) == changed(final.settings, memory_bytes=0)
    assert next_step(final, device.seen(final.bundle_sha256, True)) == "none"
    assert conditions_of(final, device.seen(final.bundle_sha256, True))[0].status == "True"
