"""`meedge up` over HTTPS: devices come with the commands that it prints, and are reached through the scheduler."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from meedge_up import running_up
from real_operator import clean_environment, condition, is_ready, running
from worlds import make_world

from meedge_ray.actors.agents import stop_agents
from meedge_ray.agent.places import RUN_DIR
from meedge_ray.bundle.manifest import unit_store, write_bundle
from meedge_ray.operator.keeping.certificate import make_certificate

pytestmark = pytest.mark.ray

ASK = """
import json, sys, time
import numpy as np, ray
from meedge_ray.actors.cluster import NAMESPACE
from meedge_ray.actors.routing.fleet_scheduler import find_scheduler
from meedge_ray.domain.errors import UnavailableError

ray.init(address=sys.argv[1], namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
sample = np.zeros(json.loads(sys.argv[2]), np.uint8)
for _ in range(60):
    try:
        answer = find_scheduler().infer("tiny", sample)
        break
    except UnavailableError:
        time.sleep(0.5)
devices = [each.candidate.name for each in find_scheduler().report().devices]
print(json.dumps({"is_answered": answer.label is not None, "devices": devices}))
"""


def manifest(kind, name, **spec):
    return {"apiVersion": "meedge.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def device(name, **spec):
    refs = {"serviceRef": {"name": "vision"}, "modelRef": {"name": "tiny"}, "memory": "2Mi"}
    content = manifest("EdgeDevice", name, **refs, **spec)
    return {**content, "metadata": {"name": name, "labels": {"meedge.dev/tier": "thin"}}}


def runs(memory_bytes):
    return lambda found: is_ready(found) and found["status"]["memoryBytes"] == memory_bytes


class Objects:
    """The objects of an operator that runs."""

    def __init__(self, up):
        self._up = up

    def apply(self, *contents):
        self._up.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(contents))

    def wait_for(self, kind, name, holds):
        deadline = time.monotonic() + 120
        while True:
            found = json.loads(self._up.kubectl("get", kind, name, "--ignore-not-found", "-o", "json") or "null")
            if found and holds(found):
                return found
            assert time.monotonic() < deadline, json.dumps(found, indent=1)
            time.sleep(0.5)


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder / "certificate.pem", folder / "key.pem")
    return folder / "certificate.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def up(tmp_path_factory, tls, world):
    """An operator whose service is ready."""
    with running_up(tmp_path_factory.mktemp("up") / "home") as up:
        said = up.up("--tls-cert", tls[0], "--tls-key", tls[1])
        assert said["enrol"] == {}
        folder = up.home.path / "bundles" / "default" / "tiny"
        for data in world.units.values():
            unit_store(folder).put(data)
        write_bundle(folder, world.bundle)
        model = {"architecture": "lenet", "pretrain": {"epochs": 1}}
        objects = Objects(up)
        objects.apply(
            manifest("ElasticModel", "tiny", model=model, suspend=True),
            manifest("ElasticService", "vision", modelRefs=[{"name": "tiny"}]),
        )
        objects.wait_for("es", "vision", is_ready)
        yield up


@pytest.fixture
def folder():
    # Short, for Unix sockets.
    folder = Path(tempfile.mkdtemp(prefix=f"meedge-{os.getpid()}-", dir="/tmp"))
    yield folder
    stop_agents(folder / "run")
    shutil.rmtree(folder)


@contextmanager
def run_as_printed(command, name, folder):
    """Run a command that `meedge up` printed, as the device of that name."""
    bin = Path(sys.executable).parent
    words = ["env", *shlex.split(command.replace("NAME", name))]
    words = [f"{bin}/{word}" if word in ("ray", "meedge") else word for word in words]
    environment = clean_environment() | {RUN_DIR: str(folder / "run"), "HOME": str(folder)}
    with running(words, environment, folder / "log"):
        yield


def test_the_command_that_status_shows_enrols_a_device_over_https(up, tls, folder):
    status = up.status()
    command = status["enrol"]["default/vision"]
    assert f"--service-url {status['serve']}/default/vision --ca-file {tls[0]}" in command
    assert command in up.meedge("status").stdout
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"{status['serve']}/default/vision/healthz", trust_env=False)

    objects = Objects(up)
    with run_as_printed(command, "pi-1", folder):
        objects.wait_for("ed", "pi-1", is_ready)
        token = command.split()[0].removeprefix("MEEDGE_TOKEN=")
        assert not any(token in " ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
        secrets = [path for path in up.home.path.rglob("tokens/**/*") if path.is_file()]
        assert len(secrets) > 1
        assert {path.stat().st_mode & 0o077 for path in secrets} == {0}

        objects.apply(device("second", device="pi-1"))
        second = objects.wait_for("ed", "second", condition)
        assert condition(second)["reason"] == "DeviceTaken"
        assert "pi-1 is default/pi-1 already" in condition(second)["message"]

        up.kubectl("patch", "ed", "pi-1", "--type=merge", "-p", '{"spec": {"threads": 2, "memory": "3Mi"}}')
        found = objects.wait_for("ed", "pi-1", runs(3 * 2**20))
        assert "not told spec.threads" in condition(found, "Followed")["message"]
        assert "SetOnTheDevice" in up.kubectl("get", "events")


def test_an_edge_node_is_served_over_https_and_reached_through_the_scheduler(up, world, folder):
    status = up.status()
    template = {"serviceRef": {"name": "vision"}, "modelRef": {"name": "tiny"}, "memory": "2Mi"}
    template["cacheDir"] = str(folder / "cache")
    Objects(up).apply(manifest("DeviceFleet", "edge", selector={"matchLabels": {}}, template=template))
    with run_as_printed(f"{status['join']} --temp-dir={folder} --disable-usage-stats", "node-1", folder):
        Objects(up).wait_for("ed", "node-1", is_ready)
        asked = subprocess.run(
            [sys.executable, "-c", ASK, status["rayAddress"], json.dumps(world.bundle.input.shape)],
            env=clean_environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": up.home.ray_token},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert asked.returncode == 0, asked.stderr
        assert json.loads(asked.stdout) == {"is_answered": True, "devices": ["node-1"]}
        up.kubectl("delete", "df", "edge")
