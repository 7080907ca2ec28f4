"""An agent from its first moment on, with a service that is there, away, or silent."""

import time
from functools import partial

import numpy as np
import pytest

from meedge_ray.agent import agent as agent_module
from meedge_ray.agent.agent import Agent
from meedge_ray.api.agent import AgentSettings, MemoryPolicy, ScheduledMemory
from meedge_ray.domain.errors import BudgetError, InvalidInputError, UnavailableError
from meedge_ray.runtime import client as client_module
from meedge_ray.runtime.client import ServiceClient

EVERYTHING = 10**9


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(client_module, "BACK_OFF_S", (0.0,))
    monkeypatch.setattr(agent_module, "_FIRST_PAUSE_S", 0.01)


@pytest.fixture
def settings(service, tmp_path):
    return AgentSettings(
        device="pi-1",
        service_url=service.url,
        token=service.token,
        model="tiny",
        cache_dir=str(tmp_path / "cache"),
        memory_bytes=EVERYTHING,
        memory_policy=MemoryPolicy(headroom_bytes=0, hysteresis=0.0, grow_after_s=0.0),
    )


@pytest.fixture
def agent_of(settings):
    """Makes agents of these settings, changed, which end with the test."""
    agents = []

    def make(**changes):
        agents.append(Agent(settings.model_copy(update=changes)))
        return agents[-1]

    yield make
    for agent in agents:
        agent.close()


def until(condition):
    while not condition():
        time.sleep(0.001)


def loaded(agent):
    until(lambda: agent.status().running is not None and not agent.status().busy)
    return agent


def test_it_loads_its_model_and_places_what_the_service_says(agent_of, service, world, sample):
    agent = loaded(agent_of())
    status = agent.status()
    assert (status.problem, status.running.source, status.running.model) == (None, "service", "tiny")
    assert status.running.branches
    assert status.memory.allowed_bytes >= status.running.resident_bytes
    assert agent.sample_bytes == 8 * sample.size
    assert agent.infer(sample).ending == "completed"


def test_without_the_service_it_waits_and_says_why_and_begins_when_it_comes(agent_of, service, sample):
    service.away = True
    agent = agent_of()
    until(lambda: agent.status().problem is not None)
    with pytest.raises(UnavailableError, match=service.url):
        agent.infer(sample)
    status = agent.status()
    assert (status.running, status.problem.kind, status.counts.failed) == (None, "UnavailableError", 1)
    assert agent.sample_bytes == 0
    service.away = False
    loaded(agent)
    assert agent.infer(sample).label is not None
    assert agent.status().problem is None


def test_with_its_cache_it_begins_without_the_service(agent_of, service, sample):
    placed = loaded(agent_of()).status().running.branches
    service.away = True
    again = loaded(agent_of())
    assert (again.status().running.branches, again.status().running.source) == (placed, "local")
    assert again.infer(sample).label is not None


def test_while_the_model_travels_inferences_are_refused_and_nothing_else_waits(agent_of, service, sample):
    service.hangs = "/v1/"
    agent = agent_of()
    until(lambda: service.hanging)
    with pytest.raises(UnavailableError, match="being loaded"):
        agent.infer(sample)
    status = agent.status()
    assert (status.running, status.busy) == (None, True)
    assert agent.preempt() == 0
    assert agent.set_latency(5.0).latency_ms == 5.0
    assert [each.memory_bytes for each in agent.set_memory(5000, in_ms=60_000).foreseen] == [5000]
    service.go_on.set()
    loaded(agent)


def test_the_backbone_answers_and_the_status_comes_while_branches_travel(agent_of, service, world, sample):
    service.hangs = "/v1/models/tiny/placements"
    agent = agent_of()
    until(lambda: agent.status().running is not None)
    answer = agent.infer(sample)
    assert (answer.ending, answer.resident) == ("completed", 0)
    until(lambda: service.hanging)
    assert agent.status().busy
    service.go_on.set()
    until(lambda: agent.status().running.branches)


def test_memory_taken_away_is_met_while_the_service_is_silent(agent_of, service, world, sample, background):
    agent = loaded(agent_of())
    service.hangs = "/v1/models/tiny/placements"
    taking = background(agent.set_memory, world.bundle.backbone_bytes)
    until(lambda: agent.status().running.branches == ())
    assert agent.status().running.memory_bytes == world.bundle.backbone_bytes
    assert agent.infer(sample).label is not None
    until(lambda: service.hanging)
    assert agent.status().busy
    service.go_on.set()
    assert taking.result().counts.drops == 1


def test_a_budget_below_the_backbone_is_refused_and_the_backbone_goes_on(agent_of, world, sample):
    agent = loaded(agent_of())
    with pytest.raises(BudgetError, match="backbone alone"):
        agent.set_memory(world.bundle.backbone_bytes - 1)
    status = agent.status()
    assert (status.problem.kind, status.running.branches) == ("BudgetError", ())
    assert agent.infer(sample).ending == "completed"
    assert agent.set_memory(EVERYTHING).problem is None


def test_an_agent_that_begins_below_the_backbone_begins_when_it_is_given_more(agent_of, world, sample):
    agent = agent_of(memory_bytes=world.bundle.backbone_bytes - 1)
    until(lambda: agent.status().problem is not None)
    with pytest.raises(BudgetError, match="backbone alone"):
        agent.infer(sample)
    with pytest.raises(BudgetError, match="backbone alone"):
        agent.set_memory(world.bundle.backbone_bytes - 2)
    assert agent.set_memory(EVERYTHING).running is not None
    assert agent.infer(sample).label is not None


def test_a_budget_that_is_none_is_refused(agent_of):
    agent = loaded(agent_of())
    for in_ms in (0.0, 60_000.0):
        with pytest.raises(BudgetError, match="holds no model"):
            agent.set_memory(0, in_ms=in_ms)
    assert agent.status().running.branches


def test_a_foreseen_budget_comes_by_itself(agent_of, world):
    agent = loaded(agent_of())
    agent.set_memory(world.bundle.backbone_bytes, in_ms=50)
    until(lambda: agent.status().running.branches == ())
    assert agent.status().foreseen == ()
    assert agent.status().running.memory_bytes == world.bundle.backbone_bytes


def test_the_budget_of_the_time_of_day_holds(agent_of, world):
    agent = loaded(agent_of(schedule=(ScheduledMemory(at="00:00", memory_bytes=world.bundle.backbone_bytes),)))
    status = agent.status()
    assert status.running.branches == ()
    assert status.running.memory_bytes == world.bundle.backbone_bytes
    assert [each.memory_bytes for each in status.foreseen] == [world.bundle.backbone_bytes]


def test_it_counts_how_inferences_end(agent_of, sample):
    agent = loaded(agent_of(latency_ms=60_000.0))
    agent.infer(sample)
    agent.infer(sample, deadline_ms=0.0)
    agent.set_latency(1e-6)
    agent.infer(sample)
    with pytest.raises(InvalidInputError):
        agent.infer(np.zeros(3))
    with pytest.raises(InvalidInputError):
        agent.infer(sample, deadline_ms=-1.0)
    counts = agent.status().counts
    assert (counts.inferences, counts.completed, counts.deadline, counts.empty, counts.failed) == (3, 1, 2, 2, 2)
    assert counts.fetched_bytes > 0
    assert agent.latencies.read()[0][-1] == ("+Inf", 3)


@pytest.mark.parametrize("path", ["/v1/", "/v1/models/tiny/placements"])
def test_it_ends_though_the_service_is_silent(agent_of, service, monkeypatch, path):
    monkeypatch.setattr(agent_module, "ServiceClient", partial(ServiceClient, timeout_s=3600))
    service.hangs = path
    agent = agent_of()
    until(lambda: service.hanging)
    agent.close()
    assert service.hanging == 1
