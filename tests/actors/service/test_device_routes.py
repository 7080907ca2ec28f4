"""Thin devices at the service: how they register, what their credentials allow, and what they are told."""

import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import SimpleNamespace

import httpx
import pytest
from pydantic import TypeAdapter

from meedge_ray.actors.service import registry as registry_module
from meedge_ray.actors.service import roster as roster_module
from meedge_ray.actors.service.admission import Served
from meedge_ray.actors.service.app import create_app
from meedge_ray.actors.service.catalog import Catalog
from meedge_ray.actors.service.credentials import LIFETIME_S, RENEWED_AFTER_S, Claims, Signer
from meedge_ray.actors.service.registry import Registry
from meedge_ray.actors.service.rhythm import HEARTBEAT_S
from meedge_ray.actors.service.roster import InProcess
from meedge_ray.agent.status import AgentStatus, Counts, MemoryState
from meedge_ray.api.agent import AgentProblem
from meedge_ray.api.devices import CredentialBody, Desired, DeviceList, HeartbeatAnswer, Registration
from meedge_ray.api.serving import ErrorBody
from meedge_ray.bundle.manifest import bundle_sha256, bundle_units
from meedge_ray.domain.device_status import DeviceStatus
from meedge_ray.domain.errors import UnavailableError

BODY = {"model": "tiny", "device_type": None, "memory_bytes": 100_000, "version": "0.1.0"}

RUNNING = DeviceStatus(
    model="tiny",
    bundle_sha256="a" * 64,
    device_type="board-1t",
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
STATUS = AgentStatus(
    device="pi",
    pid=7,
    version="0.1.0",
    started_at=1.8e9,
    settings_sha256="b" * 64,
    busy=False,
    problem=AgentProblem(kind="UnavailableError", what="away", where="here", do="wait"),
    running=RUNNING,
    mode="anytime",
    latency_ms=None,
    memory=MemoryState(
        source="cgroup2", limit_bytes=None, used_bytes=10, pressure=0.1, allowed_bytes=2**20, rss_bytes=10**8
    ),
    counts=Counts(inferences=3),
)
AGENT_STATUS = TypeAdapter(AgentStatus)


class World:
    """A service with a registry at hand, asked by whoever bears something."""

    def __init__(self, http, served, registry):
        self.http, self.served, self.registry = http, served, registry
        self.enrolment = served.signer.enrolment_token

    def ask(self, method, path, bearer, **content):
        headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
        return httpx.request(method, self.http.base_url.join(path), headers=headers, **content)

    def register(self, bearer=None, device="pi", **changes):
        response = self.ask("POST", f"/v1/devices/{device}", bearer or self.enrolment, json=BODY | changes)
        assert response.status_code == 200, response.text
        return CredentialBody.model_validate_json(response.content).credential

    def report(self, credential, device="pi", status=STATUS):
        content = AGENT_STATUS.dump_json(replace(status, device=device))
        return self.ask("PUT", f"/v1/devices/{device}/status", credential, content=content)

    def told(self, credential, **changes):
        response = self.report(credential, **changes)
        assert response.status_code == 200, response.text
        return HeartbeatAnswer.model_validate_json(response.content)

    def renew(self, credential, device="pi"):
        return self.ask("POST", f"/v1/devices/{device}/credential", credential)

    def listed(self):
        devices = DeviceList.model_validate_json(self.http.get("/v1/devices").content).devices
        return {entry.device: entry for entry in devices}


@pytest.fixture
def started(running, directories, token, monkeypatch):
    monkeypatch.setattr(roster_module, "_FRESH_S", 0.05)

    @contextmanager
    def started(registry=None, link=None):
        served, registry = Served(Catalog(directories), token), registry or Registry()
        with running(create_app(served, link or InProcess(registry))) as http:
            yield World(http, served, registry)

    return started


@pytest.fixture
def service(started):
    with started() as service:
        yield service


def refused(response, status):
    assert response.status_code == status, response.text
    said = ErrorBody.model_validate_json(response.content)
    assert said.what
    assert said.where
    assert said.do
    return said


def units_request(*names):
    return {"units": [{"sha256": name} for name in names]}


def test_a_device_registers_says_how_it_is_and_is_told_what_to_do(service, world):
    credential = service.register()
    answer = service.told(credential)
    assert answer.desired == Desired(model="tiny", bundle_sha256=bundle_sha256(world.bundle))
    assert (answer.renew, answer.heartbeat_s) == (False, HEARTBEAT_S)
    entry = service.listed()["pi"]
    assert (entry.model, entry.memory_bytes, entry.version) == ("tiny", 100_000, "0.1.0")
    assert entry.status.running.branches == ("one", "two")
    assert entry.status.problem == STATUS.problem
    assert entry.status.counts.inferences == 3
    service.registry.desire({"pi": Desired(generation=3, model="tiny", memory_bytes=50_000)}, "uid")
    time.sleep(2 * roster_module._FRESH_S)
    desired = service.told(credential).desired
    assert (desired.generation, desired.memory_bytes, desired.model) == (3, 50_000, "tiny")


def test_among_many_a_device_is_told_to_say_seldom_how_it_is_and_not_called_silent_meanwhile(service, monkeypatch):
    for number in range(499):
        service.registry.register(f"d{number}", Registration.model_validate(BODY), None)
    credential = CredentialBody.model_validate_json(
        service.ask("POST", "/v1/devices/pi", service.enrolment, json=BODY).content
    )
    assert credential.heartbeat_s == pytest.approx(10, abs=0.1)
    assert service.told(credential.credential).heartbeat_s == 10
    assert not service.listed()["pi"].is_silent
    heard_at = time.monotonic()
    for after_s, is_silent in [(29, False), (31, True)]:
        with monkeypatch.context() as later:
            later.setattr(registry_module, "time", SimpleNamespace(monotonic=lambda at_s=heard_at + after_s: at_s))
            [presence] = [each for each in service.registry.presences() if each.record.device == "pi"]
        assert presence.is_silent == is_silent


def test_a_device_before_its_model_is_loaded_may_say_so(service):
    assert service.told(service.register(), status=replace(STATUS, running=None, problem=None))
    assert service.listed()["pi"].status.running is None


def test_an_admin_registers_devices_and_does_not_speak_for_them(service, token):
    credential = service.register(bearer=token)
    refused(service.report(token), 403)
    refused(service.renew(token), 403)
    assert service.told(credential)


def test_a_device_reads_its_model_and_nothing_else(service, world, other_world, token):
    credential = service.register()
    own = min(unit.sha256 for unit in bundle_units(world.bundle))
    foreign = min({unit.sha256 for unit in bundle_units(other_world.bundle)} - set(world.units))
    allowed = [
        ("GET", "/v1/models/tiny/bundle", None),
        ("GET", "/v1/models/tiny/frontier", None),
        ("POST", "/v1/models/tiny/placements", {"memory_bytes": 10**9}),
        ("GET", f"/v1/units/{own}", None),
        ("POST", "/v1/units", units_request(own)),
    ]
    for method, path, body in allowed:
        assert service.ask(method, path, credential, json=body).status_code == 200, path
    status = AGENT_STATUS.dump_python(replace(STATUS, device="other"), mode="json")
    for method, path, body in [
        ("GET", "/v1/models", None),
        ("GET", "/v1/devices", None),
        ("GET", "/v1/models/other/bundle", None),
        ("GET", "/v1/models/other/frontier", None),
        ("POST", "/v1/models/other/placements", {"memory_bytes": 10**9}),
        ("GET", f"/v1/units/{foreign}", None),
        ("GET", f"/v1/units/{'0' * 64}", None),
        ("POST", "/v1/units", units_request(foreign)),
        ("POST", "/v1/units", units_request(own, foreign)),
        ("POST", "/v1/units", units_request("0" * 64)),
        ("GET", "/v1/units", None),
        ("DELETE", f"/v1/units/{own}", None),
        ("PUT", "/v1/devices/other/status", status),
        ("POST", "/v1/devices/other/credential", None),
        ("POST", "/v1/devices/other", BODY),
        ("GET", "/v1/nothing", None),
        ("GET", "/v1/models/tiny/bundle/", None),
        ("GET", "/v1//models/tiny/bundle", None),
    ]:
        refused(service.ask(method, path, credential, json=body), 403)
    assert service.ask("GET", f"/v1/units/{foreign}", token).status_code == 200
    assert service.ask("POST", "/v1/units", token, json=units_request(own, foreign)).status_code == 200


def test_units_of_the_bundle_before_may_still_be_read(running, bundle_writer, worlds, world, token, tmp_path):
    before, after = worlds(seed=1), worlds(seed=2)
    folder = bundle_writer(tmp_path, before)
    served = Served(Catalog([folder]), token)
    with running(create_app(served)) as http:
        service = World(http, served, None)
        credential = service.register()
        bundle_writer(folder, after)
        catalog, problems = served.catalog.renewed([folder])
        assert not problems
        served.replace(catalog, token)
        for sha256 in (*before.units, *after.units):
            assert service.ask("GET", f"/v1/units/{sha256}", credential).status_code == 200
        assert service.ask("POST", "/v1/units", credential, json=units_request(*before.units)).status_code == 200
        refused(service.ask("GET", f"/v1/units/{min(world.units)}", credential), 403)
        refused(service.ask("POST", "/v1/units", credential, json=units_request(min(world.units))), 403)


def test_an_enrolment_token_registers_and_nothing_else(service, world):
    for method, path in [
        ("GET", "/v1/models"),
        ("GET", "/v1/devices"),
        ("GET", "/v1/models/tiny/bundle"),
        ("GET", f"/v1/units/{min(world.units)}"),
        ("POST", "/v1/units"),
        ("PUT", "/v1/devices/pi/status"),
        ("POST", "/v1/devices/pi/credential"),
    ]:
        assert "nothing else" in refused(service.ask(method, path, service.enrolment, json=BODY), 403).what
    assert service.register()


@pytest.mark.parametrize(
    ("device", "changes", "status", "where"),
    [
        ("pi", {"model": "none"}, 404, "model"),
        ("pi", {"memory_bytes": 0}, 422, "body.memory_bytes"),
        ("pi", {"memory_bytes": 2**60}, 422, "body.memory_bytes"),
        ("pi", {"colour": "red"}, 422, "body.colour"),
        ("pi", {"version": "x" * 70_000}, 413, "header Content-Length"),
        ("-pi", {}, 422, "path.device"),
        ("p" * 64, {}, 422, "path.device"),
        ("a%20b", {}, 422, "path.device"),
    ],
)
def test_an_unusable_registration_is_refused_with_the_field(service, device, changes, status, where):
    response = service.ask("POST", f"/v1/devices/{device}", service.enrolment, json=BODY | changes)
    assert refused(response, status).where == where
    assert service.listed() == {}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"busy": None}, "body.busy"),
        ({"device": "other"}, "body.device"),
        ({"mode": "never"}, "body.mode"),
        ({"running": {"model": "tiny"}}, "body.running"),
        ({"running": asdict(RUNNING) | {"branches": ["b"] * 5000}}, "body.running.branches"),
        ({"running": asdict(RUNNING) | {"resident_bytes": -1}}, "body.running.resident_bytes"),
    ],
)
def test_a_status_that_is_none_is_refused_with_the_field(service, change, where):
    credential = service.register()
    body = AGENT_STATUS.dump_python(STATUS, mode="json") | change
    assert refused(service.ask("PUT", "/v1/devices/pi/status", credential, json=body), 422).where.startswith(where)
    long = AGENT_STATUS.dump_json(replace(STATUS, settings_sha256="x" * 70_000))
    refused(service.ask("PUT", "/v1/devices/pi/status", credential, content=long), 413)
    assert service.listed()["pi"].status is None


def test_what_a_newer_device_says_besides_is_left_out(service):
    credential = service.register()
    body = AGENT_STATUS.dump_python(STATUS, mode="json") | {"new": 1}
    assert service.ask("PUT", "/v1/devices/pi/status", credential, json=body).status_code == 200


def test_a_taken_name_is_refused_to_others_and_not_to_the_device_itself(service):
    credential = service.register()
    service.told(credential)
    service.listed()  # so that the registry has heard it
    said = refused(service.ask("POST", "/v1/devices/pi", service.enrolment, json=BODY), 409)
    assert "is at work" in said.what
    again = service.register(bearer=credential, memory_bytes=5)
    assert service.told(again)
    assert service.listed()["pi"].memory_bytes == 5


def test_a_replaced_credential_is_refused_and_the_new_one_goes_on(service, monkeypatch):
    monkeypatch.setattr(registry_module, "OVERLAP_S", 0.0)
    old = service.register()
    new = CredentialBody.model_validate_json(service.renew(old).content).credential
    assert service.told(old)  # the answer with the new one may have been lost
    assert service.told(new)
    service.listed()
    for response in (service.report(old), service.renew(old), service.ask("GET", "/v1/models/tiny/bundle", old)):
        assert "replaced" in refused(response, 401).what
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert service.told(new)


def test_a_revoked_credential_is_soon_refused(service):
    credential = service.register()
    assert service.told(credential)
    service.registry.revoke(["pi"])
    time.sleep(2 * roster_module._FRESH_S)
    assert "revoked" in refused(service.report(credential), 401).what
    assert service.listed() == {}
    assert service.told(service.register())


def test_forged_foreign_and_expired_credentials_are_refused(service):
    credential = service.register()
    now = time.time()
    claims = Claims(device="pi", model="tiny", generation=time.time_ns(), expires_at=now + 1e6)
    old = replace(claims, expires_at=now - 1)
    for bearer, what in [
        (Signer(b"other").credential(claims), "forged"),
        (credential[:-1], "forged"),
        (f"{credential}x", "forged"),
        ("mdc1.", "forged"),
        (service.served.signer.credential(old), "expired"),
        ("mde1.wrong", "missing or wrong"),
    ]:
        response = service.ask("GET", "/v1/models/tiny/bundle", bearer)
        assert what in refused(response, 401).what
    assert "secret" not in repr(CredentialBody(credential="secret", expires_in_s=1, heartbeat_s=1))


def test_an_ageing_credential_and_one_for_another_model_are_to_be_renewed(service):
    service.register()
    expires_at = time.time() + LIFETIME_S - RENEWED_AFTER_S - 1
    ageing = Claims(device="pi", model="tiny", generation=time.time_ns(), expires_at=expires_at)
    assert service.told(service.served.signer.credential(ageing)).renew

    credential = service.register(device="b")
    service.registry.desire({"b": Desired(model="other", memory_bytes=5)}, "uid")
    time.sleep(2 * roster_module._FRESH_S)
    answer = service.told(credential, device="b")
    assert (answer.renew, answer.desired.model) == (True, "other")
    refused(service.ask("GET", "/v1/models/other/bundle", credential), 403)
    new = CredentialBody.model_validate_json(service.renew(credential, "b").content).credential
    assert service.ask("GET", "/v1/models/other/bundle", new).status_code == 200
    assert not service.told(new, device="b").renew


class Away(InProcess):
    """A registry that does not answer now and then."""

    is_away = False

    async def exchange(self, news, since):
        if self.is_away:
            raise UnavailableError("the registry does not answer", where="here", do="Wait")
        return await super().exchange(news, since)

    async def register(self, device, registration, proof):
        if self.is_away:
            raise UnavailableError("the registry does not answer", where="here", do="Wait")
        return await super().register(device, registration, proof)


def test_while_the_registry_is_away_devices_are_served_and_what_they_say_is_passed_on_later(started, monkeypatch):
    monkeypatch.setattr(roster_module, "_PATIENCE_S", 0.2)
    registry = Registry()
    link = Away(registry)
    with started(registry, link) as service:
        credential = service.register()
        assert service.told(credential)
        link.is_away = True
        time.sleep(2 * roster_module._FRESH_S)
        assert service.ask("GET", "/v1/models/tiny/bundle", credential).status_code == 200
        assert service.told(credential, status=replace(STATUS, version="2"))
        refused(service.ask("POST", "/v1/devices/b", service.enrolment, json=BODY), 503)
        assert service.told(credential, status=replace(STATUS, version="3"))
        link.is_away = False
        deadline = time.monotonic() + 30
        while '"version":"3"' not in (registry.presences()[0].status or ""):
            assert time.monotonic() < deadline
            time.sleep(0.05)
