"""Services, fleets and devices end to end: kubectl, the API server, Ray with Serve, and real edge nodes."""

import json
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import psutil
import pytest
from real_operator import clean_environment, condition, is_ready, running
from worlds import make_world

from meedge_ray.bundle.manifest import MANIFEST_NAME, bundle_sha256, bundle_units, unit_store, write_bundle
from meedge_ray.operator.serve_client import ServeClient

pytestmark = pytest.mark.ray

MODEL = {
    "apiVersion": "meedge.dev/v1alpha1",
    "kind": "ElasticModel",
    "metadata": {"name": "tiny"},
    # Its bundle is put there by hand: nothing is to be built.
    "spec": {"model": {"architecture": "lenet", "pretrain": {"epochs": 1}}, "suspend": True},
}
SERVICE = {
    "apiVersion": "meedge.dev/v1alpha1",
    "kind": "ElasticService",
    "metadata": {"name": "vision"},
    "spec": {"modelRefs": [{"name": "tiny"}]},
}


def fleet(name, template, **labels):
    return {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "DeviceFleet",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"serviceRef": {"name": "vision"}, "modelRef": {"name": "tiny"}, **template},
        },
    }


def is_because(reason):
    return lambda content: condition(content).get("reason") == reason


class Folder:
    """Where the operator looks for the bundle of the model."""

    def __init__(self, path):
        self.path = path

    def write(self, world, damaged=None):
        store = unit_store(self.path)
        for data in world.units.values():
            store.put(data)
        if damaged is not None:
            store.path(damaged.sha256).write_bytes(bytes(damaged.size_bytes))
        write_bundle(self.path, world.bundle)


@pytest.fixture
def folder(operator, kubectl):
    return Folder(operator.server.home / "bundles" / kubectl.namespace / "tiny")


@pytest.fixture
def close_later():
    with ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture
def vision(kubectl, folder):
    """A service of a model that is there; gives an HTTP client of it."""
    folder.write(make_world())
    kubectl.apply(MODEL)
    kubectl.apply(SERVICE)
    service = kubectl.wait_for("es", "vision", is_ready)
    with client(service) as vision:
        yield vision
    for kind in ("df", "ed", "es"):
        kubectl("delete", kind, "--all")


def client(service):
    headers = {"Authorization": f"Bearer {Path(service['status']['tokenFile']).read_text()}"}
    return httpx.Client(base_url=service["status"]["url"], headers=headers, timeout=30, trust_env=False)


def served(vision):
    return {
        model["name"]: model["bundle_sha256"] for model in vision.get("/v1/models").raise_for_status().json()["models"]
    }


def test_a_service_comes_as_soon_as_its_model_is_there_and_goes_with_its_object(operator, kubectl, folder, close_later):
    kubectl.apply(SERVICE)
    kubectl.wait_for("es", "vision", is_because("ModelNotFound"))
    kubectl.apply(MODEL)
    kubectl.wait_for("es", "vision", is_because("ModelNotReady"))
    world = make_world()
    folder.write(world)
    service = kubectl.wait_for("es", "vision", is_ready)
    assert service["status"]["url"] == f"http://127.0.0.1:{operator.serve_port}/{kubectl.namespace}/vision"
    assert service["status"]["models"] == [{"name": "tiny", "bundleSha256": bundle_sha256(world.bundle)}]
    assert service["status"]["readyReplicas"] == 1
    assert Path(service["status"]["tokenFile"]).stat().st_mode & 0o777 == 0o600
    vision = close_later(client(service))
    assert served(vision) == {"tiny": bundle_sha256(world.bundle)}
    assert vision.get("/healthz", headers={"Authorization": ""}).status_code == 200
    assert vision.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
    for unit in bundle_units(world.bundle):
        assert vision.get(f"/v1/units/{unit.sha256}").content == world.units[unit.sha256]
    token = vision.headers["Authorization"].removeprefix("Bearer ")
    details = serve_details(operator)
    assert token not in json.dumps(details)
    deployed = details["applications"][f"{kubectl.namespace}.vision"]
    time.sleep(5)
    # Nothing is told that is so already.
    again = serve_details(operator)["applications"][f"{kubectl.namespace}.vision"]
    assert again["last_deployed_time_s"] == deployed["last_deployed_time_s"]
    assert ("Serving", "1 models, 1 replicas") in kubectl.events("vision")
    kubectl("delete", "es", "vision")
    deadline = time.monotonic() + 60
    while vision.get("/v1/models").status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def serve_details(operator):
    token = operator.head.environment["RAY_AUTH_TOKEN"]
    with closing(ServeClient(operator.head.dashboard_url, token)) as serve:
        return serve.details()


class Hammer:
    """Asks a service all it can be asked, from several threads, and keeps what failed."""

    def __init__(self, vision):
        self._vision, self._stop = vision, threading.Event()
        self.count, self.failures, self.seen = 0, [], set()
        self._threads = [threading.Thread(target=self._ask, args=(index,)) for index in range(4)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, index):
        units = []
        while not self._stop.is_set():
            # A device may still fetch what it was told to before the bundle changed.
            for unit in units[index::4]:
                self._send("GET", f"/v1/units/{unit['sha256']}")
            placed = self._send("POST", "/v1/models/tiny/placements", json={"memory_bytes": 10**9})
            self._send("GET", "/v1/models/tiny/bundle")
            if placed is not None:
                body = placed.json()
                self.seen.add(body["bundle_sha256"])
                units = body["fetch"]

    def _send(self, method, path, **content):
        self.count += 1
        try:
            response = self._vision.request(method, path, **content)
        except httpx.HTTPError as error:
            self.failures.append((method, path, repr(error)))
            return None
        if response.status_code != 200:
            self.failures.append((method, path, response.text))
            return None
        return response


def test_a_new_bundle_is_rolled_in_without_a_failed_request_and_a_damaged_one_is_not(kubectl, folder, vision):
    worlds = [make_world(seed=seed) for seed in range(4)]

    def serves(world):
        wanted = [{"name": "tiny", "bundleSha256": bundle_sha256(world.bundle)}]
        return lambda content: is_ready(content) and content["status"]["models"] == wanted

    with Hammer(vision) as hammer:
        folder.write(worlds[1])
        kubectl.wait_for("es", "vision", serves(worlds[1]))

        folder.write(worlds[2], damaged=worlds[2].bundle.branches[0].units[0])
        kubectl.wait_for("es", "vision", is_because("OldBundle"))
        assert served(vision) == {"tiny": bundle_sha256(worlds[1].bundle)}
        folder.write(worlds[2])  # mended: replicas look again within half a minute
        kubectl.wait_for("es", "vision", serves(worlds[2]))

        (folder.path / MANIFEST_NAME).write_text("{}")
        kubectl.wait_for("es", "vision", is_because("OldBundle"))
        assert served(vision) == {"tiny": bundle_sha256(worlds[2].bundle)}
        folder.write(worlds[3])
        kubectl.wait_for("es", "vision", serves(worlds[3]))

        settled = hammer.count
        while hammer.count < settled + 20:
            time.sleep(0.05)
    assert hammer.failures == []
    assert hammer.seen == {bundle_sha256(world.bundle) for world in worlds}


def told(**seen):
    """Whether an EdgeDevice says all that, as a device that is ready."""
    return lambda content: is_ready(content) and seen.items() <= content["status"].items()


def template(tmp_path, memory="1Mi", **changes):
    return {"memory": memory, "cacheDir": str(tmp_path / "cache"), **changes}


def test_a_node_that_joins_gets_its_device_which_follows_its_fleet_and_goes_with_it(
    operator, kubectl, folder, vision, tmp_path
):
    world = make_world()
    kubectl.apply(fleet("roof", template(tmp_path), site="roof"))
    kubectl.wait_for("df", "roof", is_because("NoNodes"))
    with operator.head.edge_node("Roof_1", {"site": "roof"}) as node:
        joined = kubectl.wait_for("ed", "roof-1", lambda _: True)
        assert joined["spec"]["device"] == "Roof_1"
        device = kubectl.wait_for("ed", "roof-1", is_ready)
        status = device["status"]
        assert (status["source"], status["bundleSha256"]) == ("service", bundle_sha256(world.bundle))
        assert status["memoryBytes"] == 2**20
        assert world.bundle.backbone_bytes < status["residentBytes"] <= 2**20
        assert status["node"]["address"]
        assert condition(device, "Reachable")["status"] == "True"
        assert condition(device, "MemoryPressure")["status"] == "False"
        kubectl.wait_for("df", "roof", is_because("AllReady"))

        backbone = str(world.bundle.backbone_bytes)
        kubectl.apply(fleet("roof", template(tmp_path, backbone), site="roof"))
        small = kubectl.wait_for("ed", "roof-1", told(branches=0, memoryBytes=world.bundle.backbone_bytes))
        assert small["status"]["settingsHash"] != status["settingsHash"]
        fleet_ready = kubectl.wait_for("df", "roof", is_because("AllReady"))
        assert {fleet_ready["status"][each] for each in ("desired", "current", "updated", "ready")} == {1}

        kubectl.apply(fleet("roof", template(tmp_path, "1Ki"), site="roof"))
        squeezed = kubectl.wait_for("ed", "roof-1", is_because("BudgetTooSmall"))
        assert condition(squeezed, "MemoryPressure")["status"] == "True"
        kubectl.wait_for("df", "roof", is_because("RollingOut"))

        rolled = template(tmp_path, "1Mi", planning="static", threads=2)
        kubectl.apply(fleet("roof", rolled, site="roof"))
        kubectl.wait_for("ed", "roof-1", told(memoryBytes=2**20))
        kubectl.wait_for("df", "roof", is_because("AllReady"))

        newer = make_world(seed=7)
        folder.write(newer)
        kubectl.wait_for("ed", "roof-1", told(bundleSha256=bundle_sha256(newer.bundle)))

        described = kubectl("describe", "ed", "roof-1")
        assert all(reason in described for reason in ("Placed", "BudgetTooSmall"))

        kubectl("delete", "df", "roof")
        deadline = time.monotonic() + 60
        while kubectl.find("ed", "roof-1") is not None or is_attached(node):
            assert time.monotonic() < deadline
            time.sleep(0.2)


def is_attached(node):
    """Whether a device's actor runs on the node."""
    return any("DeviceActor" in process.name() for process in psutil.Process(node.pid).children(recursive=True))


def one_more(operator, log):
    """Run an operator as one that was killed is started again: it knows nothing but what it finds."""
    command = [
        *(sys.executable, "-m", "meedge_ray.operator.reconciler"),
        *("--kubeconfig", operator.server.kubeconfig, "--home", operator.server.home),
        *("--base-dir", operator.base_dir, "--serve-port", str(operator.serve_port)),
        *("--dashboard-url", operator.head.dashboard_url, "--ray-address", operator.head.address),
    ]
    return running(command, clean_environment() | operator.head.environment, log)


def test_a_rollout_takes_one_device_after_the_other_and_a_second_operator_changes_nothing(
    operator, kubectl, vision, tmp_path
):
    names = ("east-1", "east-2")
    kubectl.apply(fleet("east", template(tmp_path), site="east"))
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(operator.head.edge_node(name, {"site": "east"}))
        kubectl.wait_for("df", "east", lambda content: is_ready(content) and content["status"]["ready"] == 2)
        kubectl.apply(fleet("east", template(tmp_path, threads=2), site="east"))
        deadline = time.monotonic() + 120
        while True:
            devices = [kubectl.find("ed", name) for name in names]
            assert any(map(is_ready, devices)), devices
            if all(is_ready(device) and device["spec"].get("threads") == 2 for device in devices):
                break
            assert time.monotonic() < deadline
        kubectl.wait_for("df", "east", is_because("AllReady"))

        before = [condition(kubectl.find("ed", name))["lastTransitionTime"] for name in names]
        deployed = serve_details(operator)["applications"][f"{kubectl.namespace}.vision"]["last_deployed_time_s"]
        stack.enter_context(one_more(operator, tmp_path / "log"))
        time.sleep(15)
        devices = [kubectl.find("ed", name) for name in names]
        assert [condition(device)["lastTransitionTime"] for device in devices] == before
        assert all(map(is_ready, devices))
        again = serve_details(operator)["applications"][f"{kubectl.namespace}.vision"]
        assert again["last_deployed_time_s"] == deployed


def test_a_device_whose_node_died_comes_back_with_it(operator, kubectl, vision, tmp_path):
    kubectl.apply(fleet("yard", template(tmp_path), site="yard"))
    with operator.head.edge_node("yard-1", {"site": "yard"}) as node:
        first = kubectl.wait_for("ed", "yard-1", is_ready)
        for process in psutil.Process(node.pid).children(recursive=True):
            process.kill()  # as a power cut would
        away = kubectl.wait_for("ed", "yard-1", is_because("NodeAway"))
        assert condition(away, "Reachable")["status"] == "False"
        assert "node" not in away["status"]
        assert away["status"]["residentBytes"] == first["status"]["residentBytes"]
        unready = kubectl.wait_for("df", "yard", is_because("DevicesNotReady"))
        assert unready["status"]["desired"] == 1
    with operator.head.edge_node("yard-1", {"site": "yard"}):
        back = kubectl.wait_for("ed", "yard-1", is_ready)
        assert back["metadata"]["uid"] == first["metadata"]["uid"]
        assert back["status"]["node"]["id"] != first["status"]["node"]["id"]
        kubectl.wait_for("df", "yard", is_because("AllReady"))


def test_what_is_missing_is_said_and_heals_by_itself(operator, kubectl, folder, tmp_path):
    device = {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "EdgeDevice",
        "metadata": {"name": "mine"},
        "spec": {
            "device": "hand-1",
            "serviceRef": {"name": "vision"},
            "modelRef": {"name": "tiny"},
            **template(tmp_path),
        },
    }
    kubectl.apply(device)
    kubectl.wait_for("ed", "mine", is_because("ServiceNotFound"))
    kubectl.apply({**device, "metadata": {"name": "twin"}})
    kubectl.wait_for("ed", "twin", is_because("DeviceTaken"))
    kubectl.apply(fleet("all", template(tmp_path)))
    with operator.head.edge_node("hand-1"):
        kubectl.wait_for("df", "all", lambda content: condition(content, "Conflict").get("status") == "True")
        folder.write(make_world())
        kubectl.apply(SERVICE)
        kubectl.apply(MODEL)
        kubectl.wait_for("ed", "mine", is_ready)
        kubectl("delete", "ed", "mine")
        kubectl.wait_for("ed", "twin", is_ready)
    for kind in ("df", "ed", "es"):
        kubectl("delete", kind, "--all")
