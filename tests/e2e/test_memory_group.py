"""An agent whose memory is taken away for real: a memory group's limit falls below what it holds, again and again."""

import json
import subprocess
import sys
import time

import pytest
from edge_homes import SAMPLE, served_home
from memory_groups import memory_group

from meedge_ray.agent.client import AgentClient
from meedge_ray.domain.errors import UnavailableError

AMPLE_BYTES = 2**30
POLICY = {"hysteresis": 0.0, "grow_after_s": 0.1}
TAKEN_BYTES = 2**20  # by each drop
PATIENCE_S = 60.0


@pytest.fixture
def home(monkeypatch):
    with served_home(monkeypatch, ballast=4000) as home:  # branches of 1 to 3 MB: loading takes less than the head-room
        yield home


@pytest.fixture
def group():
    with memory_group(AMPLE_BYTES) as group:
        yield group


@pytest.fixture
def agent(home, group):
    """The agent in the group, with all its branches."""
    file = home.folder / "settings.json"
    file.write_text(json.dumps(home.settings(memory_policy=POLICY).model_dump(mode="json")))
    process = subprocess.Popen(group.command([sys.executable, "-m", "meedge_ray.agent", str(file)]))
    with AgentClient("pi-1") as client:
        try:
            eventually(lambda: status(client).running.branches == home.best)
            yield client
            assert process.poll() is None
        finally:
            process.kill()
            process.wait()


def held_bytes(client):
    """What its group uses, without the files that the kernel gives up by itself."""
    return client.status().memory.used_bytes


def status(client):
    try:
        return client.status()
    except UnavailableError:
        return None


def eventually(holds):
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            if holds():
                return
        except AttributeError:  # no status yet, or nothing runs yet
            pass
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_it_lives_and_answers_below_every_limit(home, group, agent):
    drops = 0
    while agent.status().running.resident_bytes - home.world.bundle.backbone_bytes > 2 * TAKEN_BYTES:
        limit_bytes = held_bytes(agent) - TAKEN_BYTES
        group.announce(limit_bytes)
        eventually(lambda limit_bytes=limit_bytes: group.set_limit(limit_bytes))
        assert home.is_right(agent.infer(SAMPLE))
        assert group.used_bytes() <= limit_bytes
        drops += 1
    assert group.oom_kills() == 0
    assert agent.status().counts.drops >= drops >= 1


def test_what_was_taken_comes_back_when_there_is_memory_again(home, group, agent):
    limit_bytes = held_bytes(agent) - TAKEN_BYTES
    group.announce(limit_bytes)
    eventually(lambda: group.set_limit(limit_bytes))
    eventually(lambda: agent.status().running.branches != home.best)
    group.set_limit(AMPLE_BYTES)
    group.announce(AMPLE_BYTES)
    eventually(lambda: agent.status().running.branches == home.best)
    assert home.is_right(agent.infer(SAMPLE))


def test_a_foreseen_drop_is_met_before_it_comes(home, group, agent):
    agent.set_memory(home.world.bundle.backbone_bytes, in_ms=50)
    eventually(lambda: agent.status().running.branches == ())
    # Nothing has to be waited for.
    assert group.set_limit(group.used_bytes() + TAKEN_BYTES)
    assert home.is_right(agent.infer(SAMPLE))
