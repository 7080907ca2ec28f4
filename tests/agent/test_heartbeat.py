"""A device without Ray at a real service that is busy now and then: it backs off, comes in, and is not alarmed."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from agents import SmallAgent
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.actors.service.admission import Served
from meedge_ray.actors.service.app import create_app
from meedge_ray.actors.service.catalog import Catalog
from meedge_ray.agent import heartbeat as heartbeat_module
from meedge_ray.agent.heartbeat import Heartbeat, first_pause_s, pause_s
from meedge_ray.api.agent import AgentSettings
from meedge_ray.bundle.manifest import unit_store, write_bundle
from meedge_ray.domain.errors import UnavailableError
from meedge_ray.runtime.client import ServiceClient

TOKEN = "the-service"
INTERVALS_S = st.floats(5, 400)


class BusyService:
    """The service, which refuses as many of the next requests as it is told, as a full proxy does."""

    def __init__(self, app):
        self.url, self.enrolment = "", ""
        self.refusals = {}  # words in a path -> statuses of the next answers
        self.asked = []  # (path, status or None)
        self._app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        pending = next((statuses for word, statuses in self.refusals.items() if path.endswith(word) and statuses), None)
        self.asked.append((path, pending[0] if pending else None))
        if pending is None:
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": pending.pop(0), "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"busy"})

    def beats(self):
        return sum(path.endswith("/status") and status is None for path, status in self.asked)


@contextmanager
def running(app):
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def service(world, tmp_path):
    store = unit_store(tmp_path / "bundle")
    for data in world.units.values():
        store.put(data)
    write_bundle(tmp_path / "bundle", world.bundle)
    served = Served(Catalog([tmp_path / "bundle"]), TOKEN)
    busy = BusyService(create_app(served))
    with running(busy) as url:
        busy.url, busy.enrolment = url, served.signer.enrolment_token
        yield busy


class Steered(SmallAgent):
    """An agent that notes what it is told to do."""

    def __init__(self, world):
        super().__init__(world)
        self.models = []

    def run_model(self, model):
        self.models.append(model)

    def ask_service(self):
        pass


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were asked for: the interval, and how often in a row the service had failed; none is long."""
    asked = []

    def short(every_s, failures):
        asked.append((every_s, failures))
        return 0.001

    monkeypatch.setattr(heartbeat_module, "pause_s", short)
    monkeypatch.setattr(heartbeat_module, "first_pause_s", lambda _every_s: 0.001)
    return asked


@pytest.fixture
def heartbeat(service, world, tmp_path):
    settings = AgentSettings(
        device="pi-1",
        service_url=service.url,
        token=service.enrolment,
        model="tiny",
        cache_dir=str(tmp_path / "cache"),
        memory_bytes=10**6,
        heartbeat_s=1.0,
    )
    with ServiceClient(service.url, service.enrolment) as client:
        heartbeat = Heartbeat(settings, client, Steered(world), 1.0)
        yield heartbeat
        heartbeat.close()
        heartbeat._thread.join()


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@given(INTERVALS_S, st.integers(0, 10**6))
def test_pauses_are_uneven_and_bounded(every_s, failures):
    longest_s = max(every_s, 60.0)
    waits = [pause_s(every_s, failures) for _ in range(20)]
    assert len(set(waits)) > 1
    assert 0 < min(waits) <= max(waits) <= 1.5 * longest_s
    if failures == 0:
        assert 0.5 * every_s <= min(waits) <= max(waits) <= 1.5 * every_s
    assert 0 <= first_pause_s(every_s) <= every_s


@given(INTERVALS_S)
def test_a_heartbeat_refused_twice_is_said_again_before_the_device_counts_as_silent(every_s):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heartbeat_module.random, "uniform", lambda _low, high: high)
        assert pause_s(every_s, 0) + pause_s(every_s, 1) + pause_s(every_s, 2) < 3 * every_s


@given(INTERVALS_S)
def test_the_longer_a_service_refuses_the_more_seldom_it_is_asked(every_s):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heartbeat_module.random, "uniform", lambda low, high: (low + high) / 2)
        waits = [pause_s(every_s, failures) for failures in range(1, 30)]
    assert waits == sorted(waits)
    assert waits[0] < every_s
    assert waits[-1] == max(every_s, 60.0)


def test_devices_that_came_at_once_are_apart_after_a_few_heartbeats():
    devices, every_s = 1000, 20.0
    times = [0.0] * devices
    for _ in range(8):
        times = [at_s + pause_s(every_s, 0) for at_s in times]
    counts = [sum(at_s % every_s // 1 == second for at_s in times) for second in range(int(every_s))]
    assert max(counts) < 2 * devices / every_s


@pytest.mark.parametrize("status", [503, 429])
def test_a_service_busy_for_a_moment_is_no_problem(service, heartbeat, pauses, status):
    heartbeat.enter()
    service.refusals["/status"] = [status, status]
    seen = []
    heartbeat.start()
    until(lambda: seen.append(heartbeat.problem) or service.beats() >= 2)
    assert set(seen) == {None}
    assert pauses[:3] == [(5.0, 1), (5.0, 2), (5.0, 0)]
    assert heartbeat._agent.models == ["tiny"]


def test_a_service_that_goes_on_refusing_is_a_problem_until_it_takes_a_heartbeat(service, heartbeat, pauses):
    heartbeat.enter()
    service.refusals["/status"] = [503] * 100_000
    heartbeat.start()
    until(lambda: heartbeat.problem is not None)
    assert heartbeat.problem.kind == "UnavailableError"
    assert [failures for _, failures in pauses[:3]] == [1, 2, 3]
    service.refusals.clear()
    until(lambda: heartbeat.problem is None)


def test_a_device_whose_registration_was_refused_registers_when_the_service_takes_it(service, heartbeat, pauses):
    service.refusals["/pi-1"] = [503] * 4
    with pytest.raises(UnavailableError):
        heartbeat.enter()
    heartbeat.start()
    until(lambda: service.beats() >= 1)
    assert [path for path, status in service.asked if status is None][:2] == [
        "/v1/devices/pi-1",
        "/v1/devices/pi-1/status",
    ]
    until(lambda: heartbeat.problem is None)


def test_a_device_whose_credential_was_refused_by_a_busy_service_registers_anew(service, heartbeat, pauses):
    heartbeat.enter()
    service.refusals |= {"/status": [401], "/pi-1": [503] * 4}
    heartbeat.start()
    until(lambda: service.beats() >= 2)
    assert sum(path.endswith("/pi-1") for path, _ in service.asked) == 6
    until(lambda: heartbeat.problem is None)


def test_it_says_it_as_often_as_it_was_told_last(service, heartbeat, pauses, monkeypatch):
    heartbeat.enter()
    assert heartbeat._every_s == 5.0
    monkeypatch.setattr("meedge_ray.actors.service.registry.heartbeat_s", lambda _devices: 20.0)
    heartbeat.start()
    until(lambda: (20.0, 0) in pauses)
