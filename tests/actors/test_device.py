"""The device's actor as the plain class it is, before a real service and with a real agent; on Ray in test_on_ray."""

import os
import signal
import socket
import time

import psutil
import pytest

from meedge_ray.actors.agents import stop_agents
from meedge_ray.actors.device import DeviceActor, DeviceReport
from meedge_ray.agent.client import AgentClient
from meedge_ray.agent.places import place_of
from meedge_ray.api.agent import DeviceSettings
from meedge_ray.api.time_distribution import TimeDistribution
from meedge_ray.domain.errors import BudgetError, UnavailableError
from meedge_ray.runtime.placing import Placer

EVERYTHING = 10**9


@pytest.fixture
def settings(http, token, tmp_path, monkeypatch):
    monkeypatch.setenv("MEEDGE_RUN_DIR", str(tmp_path / "run"))
    return DeviceSettings(
        service_url=str(http.base_url),
        token=token,
        model="tiny",
        cache_dir=str(tmp_path / "cache"),
        memory_bytes=EVERYTHING,
    )


@pytest.fixture
def start(settings):
    actors = []

    def started(**changes):
        actors.append(DeviceActor("pi-1", settings.model_copy(update=changes)))
        return actors[-1]

    yield started
    for actor in actors:
        actor._ended.set()
    for actor in actors:
        actor.stop()
    stop_agents()


def agent_status():
    with AgentClient("pi-1") as agent:
        return agent.status()


def until(holds, timeout_s=30):
    give_up = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_a_device_plans_as_its_settings_say(start, world, sample):
    law = TimeDistribution.model_validate({"normal": {"mean_ms": 1.25, "standard_deviation_ms": 0.05}})
    actor = start(planning="static", horizon_ms=8.0, distribution=law)
    status = actor.status()
    answer = actor.infer(sample)
    assert status.branches == Placer(world.bundle, horizon_ms=8.0, distribution=law).place(EVERYTHING).branches
    assert (status.planning, status.planner, answer.planner) == ("static", "static", "static")


def test_a_report_loads_nothing_and_says_what_was_the_matter(start, settings, world):
    actor = start()
    report = actor.report()
    assert report == DeviceReport(settings=settings, status=None, busy=False, problem=None)
    actor.place(1)
    report = actor.report()
    assert report.status is None
    assert type(report.problem) is BudgetError
    assert not report.busy
    actor.place(EVERYTHING)
    report = actor.report()
    assert report.problem is None
    assert report.status.branches == Placer(world.bundle).place(EVERYTHING).branches
    assert report.memory.allowed_bytes <= EVERYTHING


def test_a_report_does_not_wait_for_a_service_that_does_not_answer(start):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        actor = start(service_url=f"http://127.0.0.1:{mute.getsockname()[1]}")
        actor._agent()
        until(lambda: actor.report().busy)
        assert actor.report().status is None


def test_the_agent_goes_on_without_its_actor_and_is_adopted_by_the_next(start, sample):
    first = start()
    before = first.infer(sample)
    pid = agent_status().pid
    first._ended.set()  # as if its process had been killed
    with AgentClient("pi-1") as agent:
        assert agent.infer(sample).label == before.label
    second = start()
    until(lambda: second.report().status is not None)
    assert second.infer(sample).label == before.label
    assert agent_status().pid == pid


def test_another_actor_with_other_settings_replaces_the_agent(start, sample):
    first = start()
    first.infer(sample)
    first._ended.set()
    pid = agent_status().pid
    other = start(planning="static")
    assert other.status().planning == "static"
    assert agent_status().pid != pid


def test_a_killed_agent_comes_back_with_its_cache(start, sample):
    actor = start()
    before = actor.infer(sample)
    pid = agent_status().pid
    os.kill(pid, signal.SIGKILL)

    def is_back():
        try:
            status = agent_status()
        except UnavailableError:
            return False
        return status.pid != pid and status.running is not None and not status.busy

    until(is_back)
    after = actor.infer(sample)
    assert (after.label, after.branch) == (before.label, before.branch)
    assert agent_status().counts.fetched_bytes == 0


def test_a_stopped_device_leaves_no_agent(start, sample):
    actor = start()
    actor.infer(sample)
    pid = agent_status().pid
    actor.stop()
    assert not place_of("pi-1").is_listened_to()
    until(lambda: not psutil.pid_exists(pid))
