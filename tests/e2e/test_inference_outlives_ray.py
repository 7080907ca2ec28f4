"""Everything of Ray is killed, part by part, while a client on the device asks its agent."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray_device
from edge_homes import Asking, served_home
from kept_agent import KeptAgent, is_placed

pytestmark = pytest.mark.ray


@pytest.fixture
def home(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with served_home(monkeypatch) as home:
        yield home


@pytest.fixture
def ray(home):
    given = home.settings().model_dump(exclude={"device", "http_port", "heartbeat_s"})
    command = [sys.executable, ray_device.__file__, json.dumps(given)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        said = json.loads(process.stdout.readline())
        root = psutil.Process(process.pid)
        family = [root, *root.children(recursive=True)]
        yield SimpleNamespace(**said, family=family)
        process.kill()
    for each in family:
        if each.is_running():
            each.kill()
    psutil.wait_procs(family, timeout=10)
    shutil.rmtree(Path(said["run_dir"]).parent, ignore_errors=True)


def test_no_request_fails_when_actor_raylet_and_head_are_killed(home, ray, monkeypatch):
    monkeypatch.setenv("MEEDGE_RUN_DIR", ray.run_dir)
    agent = KeptAgent(home.settings())
    agent.until(is_placed)
    edge = [psutil.Process(ray.node), *psutil.Process(ray.node).children(recursive=True)]
    head = [each for each in ray.family if each not in edge]
    try:
        with Asking(home, agent) as asking:
            for killed in (
                [each for each in edge if "DeviceActor" in " ".join(each.cmdline())],
                [each for each in edge if each.name() == "raylet"],
                head,
            ):
                assert killed
                for each in killed:
                    each.kill()
                asking.a_few_more(200)
                assert agent.pid == ray.agent
            assert agent.client.set_memory(home.world.bundle.backbone_bytes).running.branches == ()
            assert agent.client.set_memory(10**8).running.branches == home.best
        assert asking.failed == []
    finally:
        agent.client.stop()
        agent.client.close()
