"""Services, fleets and devices end to end: kubectl, the API server, Ray with Serve, and real edge nodes."""

import json
import secrets
import shutil
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import psutil
import pytest
from real_operator import Objects, clean_environment, condition, is_ready, running
from worlds import make_world

from meedge_ray.bundle.manifest import MANIFEST_NAME, bundle_sha256, bundle_units, unit_store, write_bundle
from meedge_ray.operator.serve_client import ServeClient

pytestmark = pytest.mark.ray


def manifest(kind, name, **spec):
    return {"apiVersion": "meedge.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def model(name):
    # Its bundle is put there by hand: nothing is to be built.
    return manifest("ElasticModel", name, model={"architecture": "lenet", "pretrain": {"epochs": 1}}, suspend=True)


def service(name, model="tiny"):
    return manifest("ElasticService", name, modelRefs=[{"name": model}])


def fleet(name, template, **labels):
    return manifest("DeviceFleet", name, selector={"matchLabels": labels}, template=template)


def template(folder, memory="1Mi", *, service="vision", **changes):
    refs = {"serviceRef": {"name": service}, "modelRef": {"name": "tiny"}}
    return {**refs, "memory": memory, "cacheDir": str(folder / "cache"), **changes}


def is_because(reason):
    return lambda content: condition(content).get("reason") == reason


def told(**seen):
    """Whether an EdgeDevice says all that, as a device that is ready."""
    return lambda content: is_ready(content) and seen.items() <= content["status"].items()


class Folder:
    """Where the operator looks for the bundle of a model."""

    def __init__(self, operator, kubectl, model):
        self.path = operator.server.home / "bundles" / kubectl.namespace / model

    def write(self, world, damaged=None):
        store = unit_store(self.path)
        for data in world.units.values():
            store.put(data)
        if damaged is not None:
            store.path(damaged.sha256).write_bytes(bytes(damaged.size_bytes))
        write_bundle(self.path, world.bundle)
        self.sha256 = bundle_sha256(world.bundle)


@pytest.fixture(scope="module")
def kubectl(operator, tmp_path_factory):
    """kubectl in one namespace for all these tests: a service takes its time to come."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl on PATH")
    kubectl = Objects(operator.server, f"devices-{secrets.token_hex(4)}", tmp_path_factory.mktemp("kubectl"))
    kubectl("create", "namespace", kubectl.namespace)
    yield kubectl
    kubectl("delete", "es", "--all")


@pytest.fixture(scope="module")
def tiny(operator, kubectl):
    """The folder of a model's bundle."""
    folder = Folder(operator, kubectl, "tiny")
    folder.write(make_world())
    kubectl.apply(model("tiny"))
    return folder


@pytest.fixture(scope="module")
def vision(kubectl, tiny):
    """An HTTP client of a service of that model."""
    kubectl.apply(service("vision"))
    with client(kubectl.wait_for("es", "vision", is_ready)) as vision:
        yield vision


@pytest.fixture(scope="module")
def roof(operator):
    """Two edge nodes by their devices."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(operator.head.edge_node(name, {"site": "roof"})) for name in ("Roof_1", "b")}


@pytest.fixture
def _no_devices_left(kubectl):
    yield
    kubectl("delete", "df", "--all")
    kubectl("delete", "ed", "--all")


def client(service):
    headers = {"Authorization": f"Bearer {Path(service['status']['tokenFile']).read_text()}"}
    return httpx.Client(base_url=service["status"]["url"], headers=headers, timeout=30, trust_env=False)


def served(vision):
    listed = vision.get("/v1/models").raise_for_status().json()["models"]
    return {model["name"]: model["bundle_sha256"] for model in listed}


def serve_details(operator):
    token = operator.head.environment["RAY_AUTH_TOKEN"]
    with closing(ServeClient(operator.head.dashboard_url, token)) as serve:
        return serve.details()


def test_a_service_comes_as_soon_as_its_model_is_there_and_goes_with_its_object(operator, kubectl):
    world = make_world(model="other")
    kubectl.apply(service("first", "other"))
    kubectl.wait_for("es", "first", is_because("ModelNotFound"))
    kubectl.apply(model("other"))
    kubectl.wait_for("es", "first", is_because("ModelNotReady"))
    Folder(operator, kubectl, "other").write(world)
    status = (found := kubectl.wait_for("es", "first", is_ready))["status"]
    assert status["url"] == f"http://127.0.0.1:{operator.serve_port}/{kubectl.namespace}/first"
    assert status["models"] == [{"name": "other", "bundleSha256": bundle_sha256(world.bundle)}]
    assert status["readyReplicas"] == 1
    assert Path(status["tokenFile"]).stat().st_mode & 0o777 == 0o600
    with client(found) as first:
        assert served(first) == {"other": bundle_sha256(world.bundle)}
        assert first.get("/healthz", headers={"Authorization": ""}).status_code == 200
        assert first.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        for unit in bundle_units(world.bundle):
            assert first.get(f"/v1/units/{unit.sha256}").content == world.units[unit.sha256]
        assert ("Serving", "1 models, 1 replicas") in kubectl.events("first")
        assert first.headers["Authorization"].removeprefix("Bearer ") not in json.dumps(serve_details(operator))
        kubectl("delete", "es", "first")
        deadline = time.monotonic() + 60
        while first.get("/v1/models").status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)


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


def test_a_new_bundle_is_rolled_in_without_a_failed_request_and_a_damaged_one_is_not(kubectl, tiny, vision):
    worlds = [make_world(seed=seed) for seed in range(4)]

    def serves(world):
        wanted = [{"name": "tiny", "bundleSha256": bundle_sha256(world.bundle)}]
        return lambda content: is_ready(content) and content["status"]["models"] == wanted

    tiny.write(worlds[0])
    kubectl.wait_for("es", "vision", serves(worlds[0]))
    with Hammer(vision) as hammer:
        tiny.write(worlds[1])
        kubectl.wait_for("es", "vision", serves(worlds[1]))

        tiny.write(worlds[2], damaged=worlds[2].bundle.branches[0].units[0])
        kubectl.wait_for("es", "vision", is_because("OldBundle"))
        assert served(vision) == {"tiny": bundle_sha256(worlds[1].bundle)}
        tiny.write(worlds[2])  # mended: replicas look again soon
        kubectl.wait_for("es", "vision", serves(worlds[2]))

        (tiny.path / MANIFEST_NAME).write_text("{}")
        kubectl.wait_for("es", "vision", is_because("OldBundle"))
        assert served(vision) == {"tiny": bundle_sha256(worlds[2].bundle)}
        tiny.write(worlds[3])
        kubectl.wait_for("es", "vision", serves(worlds[3]))

        settled = hammer.count
        while hammer.count < settled + 20:
            time.sleep(0.05)
    assert hammer.failures == []
    assert hammer.seen == {bundle_sha256(world.bundle) for world in worlds}


@pytest.mark.usefixtures("_no_devices_left", "vision")
def test_a_device_follows_its_fleet_and_its_model_and_goes_with_its_object(kubectl, tiny, roof, tmp_path):
    backbone_bytes = make_world().bundle.backbone_bytes

    def run(*memory, **changes):
        kubectl.apply(fleet("roof", template(tmp_path, *memory, **changes), **{"meedge.dev/device": "Roof_1"}))

    run("1Mi")
    device = kubectl.wait_for("ed", "roof-1", told(source="service"))  # by itself at first, should that be slow
    status = device["status"]
    assert device["spec"]["device"] == "Roof_1"
    assert (status["source"], status["bundleSha256"], status["memoryBytes"]) == ("service", tiny.sha256, 2**20)
    assert backbone_bytes < status["residentBytes"] <= 2**20
    assert status["node"]["address"]
    assert condition(device, "Reachable")["status"] == "True"
    assert condition(device, "MemoryPressure")["status"] == "False"

    run(str(backbone_bytes))
    small = kubectl.wait_for("ed", "roof-1", told(branches=0, memoryBytes=backbone_bytes))
    assert small["status"]["settingsHash"] != status["settingsHash"]
    rolled_out = kubectl.wait_for("df", "roof", is_because("AllReady"))["status"]
    assert [rolled_out[each] for each in ("desired", "current", "updated", "ready")] == [1, 1, 1, 1]

    run("1Ki")
    squeezed = kubectl.wait_for("ed", "roof-1", is_because("BudgetTooSmall"))
    assert condition(squeezed, "MemoryPressure")["status"] == "True"
    kubectl.wait_for("df", "roof", is_because("RollingOut"))

    run("1Mi", planning="static")
    kubectl.wait_for("ed", "roof-1", told(memoryBytes=2**20))
    kubectl.wait_for("df", "roof", is_because("AllReady"))
    tiny.write(make_world(seed=7))
    kubectl.wait_for("ed", "roof-1", told(bundleSha256=tiny.sha256))
    described = kubectl("describe", "ed", "roof-1")
    assert all(reason in described for reason in ("Placed", "BudgetTooSmall"))

    kubectl("delete", "df", "roof")
    deadline = time.monotonic() + 60
    while kubectl.find("ed", "roof-1") is not None or is_attached(roof["Roof_1"]):
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


@pytest.mark.usefixtures("_no_devices_left", "vision", "roof")
def test_a_rollout_takes_one_device_after_the_other_and_another_operator_changes_nothing(operator, kubectl, tmp_path):
    names = ("roof-1", "b")
    kubectl.apply(fleet("roof", template(tmp_path), site="roof"))
    kubectl.wait_for("df", "roof", lambda content: is_ready(content) and content["status"]["ready"] == 2)
    kubectl.apply(fleet("roof", template(tmp_path, threads=2), site="roof"))
    deadline = time.monotonic() + 120
    while True:
        devices = [kubectl.find("ed", name) for name in names]
        assert any(map(is_ready, devices)), devices
        if all(is_ready(device) and device["spec"].get("threads") == 2 for device in devices):
            break
        assert time.monotonic() < deadline
    kubectl.wait_for("df", "roof", is_because("AllReady"))

    def state():
        changed_at = [condition(kubectl.find("ed", name))["lastTransitionTime"] for name in names]
        applications = serve_details(operator)["applications"].values()
        return changed_at, [application["last_deployed_time_s"] for application in applications]

    before = state()
    with one_more(operator, tmp_path / "log"):
        time.sleep(10)  # it takes 3 s to come
    assert state() == before


@pytest.mark.usefixtures("_no_devices_left", "vision")
def test_a_device_whose_node_died_comes_back_with_it(operator, kubectl, tmp_path):
    kubectl.apply(fleet("yard", template(tmp_path), site="yard"))
    kubectl.wait_for("df", "yard", is_because("NoNodes"))
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


@pytest.mark.usefixtures("_no_devices_left", "tiny", "roof")
def test_what_is_missing_is_said_and_heals_by_itself(kubectl, tmp_path):
    spec = {"device": "b", **template(tmp_path, service="later")}
    kubectl.apply(manifest("EdgeDevice", "mine", **spec))
    kubectl.wait_for("ed", "mine", is_because("ServiceNotFound"))
    kubectl.apply(manifest("EdgeDevice", "twin", **spec))
    kubectl.wait_for("ed", "twin", is_because("DeviceTaken"))
    kubectl.apply(fleet("all", template(tmp_path)))
    kubectl.wait_for("df", "all", lambda content: condition(content, "Conflict").get("status") == "True")
    kubectl.apply(service("later"))
    kubectl.wait_for("ed", "mine", is_ready)
    kubectl("delete", "ed", "mine")
    kubectl.wait_for("ed", "twin", is_ready)
    kubectl("delete", "es", "later")
