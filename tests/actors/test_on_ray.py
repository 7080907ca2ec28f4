"""On a real cluster: head, placement service, and edge nodes as processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray

from meedge_ray.actors.cluster import attach_edge_node
from meedge_ray.actors.device import (
    attach_device,
    detach_device,
    device_names,
    find_device,
)
from meedge_ray.actors.fleet import fleet_devices, live_nodes, start_fleet, stop_fleet
from meedge_ray.api.agent import DeviceSettings
from meedge_ray.api.time_distribution import TimeDistribution
from meedge_ray.domain.errors import (
    BudgetError,
    InvalidInputError,
    MeedgeError,
    NotFoundError,
    UnavailableError,
)
from meedge_ray.runtime.placing import Placer

pytestmark = pytest.mark.ray

EVERYTHING = 10**9


@pytest.fixture
def settings(service_url, token, tmp_path):
    return DeviceSettings(
        service_url=service_url, token=token, model="tiny", cache_dir=str(tmp_path), memory_bytes=EVERYTHING
    )


@pytest.fixture
def device(edge_node, settings):
    yield attach_device(edge_node.device, settings)
    detach_device(edge_node.device)


def changed(settings, **changes):
    return settings.model_copy(update=changes)


def eventually(ask, holds, timeout_s=30):
    """Ask until what comes holds; the device may be away meanwhile."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            answer = ask()
            if holds(answer):
                return answer
        except UnavailableError as error:
            answer = error
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


def kill_raylet(node):
    """Lose the node as a power cut would: nothing is said to the head."""
    [raylet] = [child for child in psutil.Process(node.process.pid).children() if child.name() == "raylet"]
    os.kill(raylet.pid, signal.SIGKILL)


def test_a_device_pulls_its_units_and_answers(device, world, sample):
    status = device.status()
    best = Placer(world.bundle).place(EVERYTHING)
    assert (status.branches, status.source, status.problem) == (best.branches, "service", "")
    assert status.fetched_bytes == status.resident_bytes == best.size_bytes
    answer = device.infer(sample, 1e6)
    assert answer.ending == "completed"
    assert answer.label == world.logits(sample[None])[answer.branch].argmax()


def test_a_device_shrinks_and_grows_with_its_memory(device, world, sample):
    small = device.set_memory(world.bundle.backbone_bytes)
    assert (small.branches, small.resident_bytes) == ((), world.bundle.backbone_bytes)
    assert device.infer(sample).branch is None
    fetched = small.fetched_bytes
    large = device.set_memory(EVERYTHING)
    assert large.branches
    assert large.fetched_bytes == fetched


def test_inference_goes_on_while_the_memory_changes(device, world, sample):
    asked = [device.actor.infer.remote(sample) for _ in range(200)]
    for memory_bytes in (world.bundle.backbone_bytes, EVERYTHING, world.bundle.backbone_bytes):
        device.set_memory(memory_bytes)
    said = world.logits(sample[None])
    for answer in ray.get(asked, timeout=60):
        assert answer.label == said[answer.branch].argmax()


def test_the_devices_own_errors_reach_the_caller(device, sample):
    with pytest.raises(BudgetError) as caught:
        device.set_memory(1)
    assert type(caught.value) is BudgetError
    assert caught.value.__cause__ is None
    assert caught.value.do
    with pytest.raises(InvalidInputError):
        device.infer(sample[0])
    assert device.infer(sample).label is not None


def test_a_device_that_cannot_start_leaves_nothing(edge_node, settings, tmp_path):
    for wrong, kind in (
        ({"memory_bytes": 1}, BudgetError),
        ({"token": "wrong"}, InvalidInputError),
        ({"model": "tony"}, NotFoundError),
        ({"service_url": "http://127.0.0.1:9"}, UnavailableError),
        ({"planning": "samplewise"}, InvalidInputError),  # the bundle has no predictor
    ):
        # A cache of its own: with a warm one a device starts without the service.
        fresh = {"cache_dir": str(tmp_path / next(iter(wrong)))}
        with pytest.raises(kind):
            attach_device(edge_node.device, changed(settings, **fresh, **wrong))
        assert edge_node.device not in device_names()


def test_a_device_is_attached_once_and_found_by_name(device, settings):
    assert attach_device(device.name, settings).actor == device.actor
    assert find_device(device.name).settings() == settings
    assert settings.token not in repr(settings)
    with pytest.raises(InvalidInputError, match="other settings"):
        attach_device(device.name, changed(settings, model="other"))
    with pytest.raises(NotFoundError, match=device.name):
        find_device("pi-0")


def test_a_device_without_a_node_is_given_up_in_time(service_url, settings):
    with pytest.raises(UnavailableError, match="pi-0"):
        attach_device("pi-0", settings, timeout_s=0.5)
    assert "pi-0" not in device_names()


def test_a_lost_device_is_reported_and_answers_again_when_its_node_is_back(own_cluster, settings, sample):
    with attach_edge_node(own_cluster, "pi-2") as node:
        device = attach_device("pi-2", settings)
        before = device.infer(sample)
        kill_raylet(node)
        said = eventually(lambda: said_by(device, sample), lambda said: said)
        assert "pi-2" in said
    eventually(lambda: "pi-2" in live_nodes(ray.nodes()), lambda is_live: not is_live)
    with attach_edge_node(own_cluster, "pi-2"):
        after = eventually(lambda: device.infer(sample, timeout_s=5), lambda answer: True)
        assert (after.label, after.branch) == (before.label, before.branch)
        status = device.status()
        assert (status.memory_bytes, status.fetched_bytes) == (EVERYTHING, 0)
    detach_device("pi-2")


def said_by(device, sample):
    try:
        device.infer(sample, timeout_s=2)
    except UnavailableError as error:
        return str(error)
    return ""  # the lost node's worker can answer a moment longer


def test_the_fleet_attaches_every_edge_node_with_its_settings(edge_node, settings, world, sample):
    law = TimeDistribution.model_validate({"normal": {"mean_ms": 1.25, "standard_deviation_ms": 0.05}})
    start_fleet(changed(settings, planning="static", horizon_ms=8.0, distribution=law))
    try:
        devices = eventually(fleet_devices, lambda devices: any(device.status for device in devices))
        [device] = [device for device in devices if device.name == edge_node.device]
        assert device.alive
        assert device.status.model == "tiny"
        best = Placer(world.bundle, horizon_ms=8.0, distribution=law).place(EVERYTHING)
        assert device.status.branches == best.branches
        assert (device.status.planning, device.status.planner) == ("static", "static")
        assert find_device(edge_node.device).infer(sample).planner == "static"
        detach_device(edge_node.device)
        eventually(fleet_devices, lambda devices: any(device.status for device in devices))
    finally:
        stop_fleet()
    with pytest.raises(NotFoundError):
        fleet_devices()


def test_nothing_but_devices_runs_on_an_edge(service_url, edge_node):
    names = [child.name() for child in psutil.Process(edge_node.process.pid).children(recursive=True)]
    assert "raylet" in names
    assert not [name for name in names if "Serve" in name or "Proxy" in name]
    [node] = [node for node in ray.nodes() if node["Labels"].get("meedge.dev/device") == edge_node.device]
    assert node["Labels"]["site"] == "roof"
    assert node["Resources"].get("CPU", 0) == 0


def test_the_services_token_shows_nowhere(service_url, token):
    from ray import serve

    assert token not in str(serve.status())
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    logs = [path for path in session.rglob("*") if path.is_file()]
    assert logs
    assert not [path for path in logs if token.encode() in path.read_bytes()]


@pytest.mark.parametrize("name", ["pi-1", "no label", "", "x" * 64])
def test_a_node_needs_a_free_and_usable_name(own_cluster, edge_node, name):
    with pytest.raises(InvalidInputError) as caught, attach_edge_node(own_cluster, name):
        pass
    assert caught.value.do


def test_a_node_that_cannot_join_says_what_its_log_says(own_cluster):
    with (
        pytest.raises(UnavailableError) as caught,
        attach_edge_node(own_cluster, "pi-3", labels={"no label": "x"}),
    ):
        pass
    assert "did not join" in caught.value.what
    assert "no label=x" in caught.value.do


def test_a_service_is_refused_a_port_that_is_not_serves(service_url, directories, token):
    from meedge_ray.actors.service.serving import run_service

    with pytest.raises(UnavailableError, match="elsewhere"):
        run_service(directories, token, port=9)
    with pytest.raises(MeedgeError):
        run_service([], "", port=9)


SCRIPT = """
import sys, time, psutil, ray
from meedge_ray.actors.cluster import attach_edge_node, cluster
from meedge_ray.domain.errors import MeedgeError
try:
    with cluster() as found:
        if "join" in sys.argv:
            print("nodes", len(ray.nodes()), ray.get_runtime_context().namespace)
        else:
            with attach_edge_node(found, "pi-1"):
                print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
                time.sleep(600)
except MeedgeError as error:
    print("refused:", error)
"""


def script_environment(home, **extra):
    # None of this process's Ray: as a user starts it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return environment | {"HOME": str(home)} | extra


def test_a_cluster_of_ones_own_leaves_no_process_and_no_file(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=script_environment(tmp_path),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    assert len(children) > 5
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does on Ctrl-C
    _, said = process.communicate(timeout=60)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert psutil.wait_procs(children, timeout=20)[1] == []  # workers notice a moment later
    assert list(tmp_path.iterdir()) == []


def join(home, **extra):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, "join"],
        env=script_environment(home, **extra),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_cluster_of_ray_address_is_joined_and_left_running(own_cluster, tmp_path):
    joined = join(tmp_path, RAY_ADDRESS=own_cluster.address, **own_cluster.environment)
    assert joined.stdout == f"nodes {len(ray.nodes())} meedge\n"
    assert joined.stderr == ""
    assert any(node["Alive"] for node in ray.nodes())


def test_a_cluster_that_is_not_there_is_refused_at_once(tmp_path):
    refused = join(tmp_path, RAY_ADDRESS="127.0.0.1:9")
    assert refused.stdout.startswith("refused: RAY_ADDRESS=127.0.0.1:9: cannot join")
    assert refused.stderr == ""
