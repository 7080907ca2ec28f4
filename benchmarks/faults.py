"""Kills parts of a running operator while a model is built and a device serves; and what it takes when idle.

It starts an operator of its own, with an edge node on this machine that is started again when it ends, as a service
manager would.

Run: python benchmarks/faults.py
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from _results import write_results

from meedge_ray.actors.agents import stop_agents
from meedge_ray.agent.places import RUN_DIR
from meedge_ray.cli.output import show, table
from meedge_ray.domain.errors import MeedgeError
from meedge_ray.operator.client.api_client import ApiClient, Object
from meedge_ray.operator.client.resources import DEVICES, FLEETS, MODELS, SERVICES

IDLE_S, PATIENCE_S, POLL_S = 30.0, 240.0, 0.1
RECONCILED, WRITERS = 1000, 8
NAMESPACE = "default"
MEEDGE = [sys.executable, "-m", "meedge_ray.cli.main"]
KINDS = {"ElasticModel": MODELS, "ElasticService": SERVICES, "DeviceFleet": FLEETS}

Figures = dict[str, Any]


def content(kind: str, name: str, spec: Figures) -> Figures:
    """Return an object as a manifest says it."""
    return {"apiVersion": "meedge.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def model(name: str, seed: int) -> Figures:
    """Return a small model on the digits; another seed builds it anew, from its cultivation on."""
    return content(
        "ElasticModel",
        name,
        {
            "model": {"architecture": "lenet", "pretrain": {"epochs": 3}},
            "data": {"source": "digits", "imageSize": 16},
            "zoo": {
                "convolutions": [{"kind": "none"}],
                "fullyConnected": [{"pooledSize": 1}, {"pooledSize": 2}],
            },
            "cultivation": {"epochs": 20, "learningRate": f"0.00{seed + 100}"},
            "sharing": {"fullyConnected": []},
        },
    )


class World:
    """An operator, its API, an edge node, and a client that asks the service all the time."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "MEEDGE_HOME": str(home), "KUBECONFIG": str(home / "kubeconfig")}
        self.status = self.meedge("up", "-o", "json")
        self.api = ApiClient(home / "kubeconfig")
        self.answered = self.failed = 0
        self._over = threading.Event()

    def meedge(self, *arguments: str) -> Any:  # noqa: ANN401 - any JSON
        """Run a command; `status` fails where something is not ready, and says what all the same."""
        said = subprocess.run([*MEEDGE, *arguments], env=self.environment, check=False, stdout=subprocess.PIPE)
        return json.loads(said.stdout)

    def apply(self, wanted: Figures) -> Object:
        """Declare an object."""
        return self.api.apply(KINDS[wanted["kind"]], NAMESPACE, wanted, manager="bench")

    def keep_edge_node(self, device: str) -> None:
        """Run an edge node, again and again."""
        words = self.status["join"].replace("NAME", device).split()
        command, log = ["env", f"{RUN_DIR}={self.home}/run", *words], (self.home / "edge.log").open("ab")

        def keep() -> None:
            while not self._over.is_set():
                self.node = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
                self.node.wait()

        threading.Thread(target=keep, daemon=True).start()

    def ask_on(self) -> None:
        """Ask the service for its models, every 50 ms."""
        status = self.api.get(SERVICES, NAMESPACE, "placements")["status"]
        headers = {"Authorization": f"Bearer {Path(status['tokenFile']).read_text().strip()}"}

        def ask() -> None:
            while not self._over.wait(0.05):
                try:
                    asked = httpx.get(f"{status['url']}/v1/models", headers=headers, timeout=2, trust_env=False)
                    ok = asked.is_success
                except httpx.HTTPError:
                    ok = False
                self.answered, self.failed = self.answered + ok, self.failed + (not ok)

        threading.Thread(target=ask, daemon=True).start()

    def part(self, name: str) -> int:
        """Return the process of a part of the operator."""
        parts = self.meedge("status", "-o", "json")["parts"]
        pid: int = next(part["pid"] for part in parts if part["name"] == name)
        return pid

    def family(self, title: str) -> list[psutil.Process]:
        """Return processes under Ray's head whose title or command holds this."""
        found = []
        for process in psutil.Process(self.part("ray")).children(recursive=True):
            try:
                if title in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def ready(self, kind: Any, name: str, since: float = 0.0) -> bool:  # noqa: ANN401
        """Return whether an object is ready at its generation; a device only with a heartbeat since then."""
        try:
            found = self.api.get(kind, NAMESPACE, name)
        except MeedgeError:
            return False
        status = found.get("status", {})
        if since and status.get("heartbeatTime", "") < time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since)):
            return False
        return any(
            each["type"] == "Ready"
            and each["status"] == "True"
            and each["observedGeneration"] == found["metadata"]["generation"]
            for each in status.get("conditions", ())
        )

    def end(self) -> int:
        """Stop all; return how many processes of the operator are left."""
        self._over.set()
        stop_agents(self.home / "run")
        ours = [process for process in psutil.process_iter() if self._is_ours(process)]
        subprocess.run([*MEEDGE, "down"], env=self.environment, check=True, capture_output=True)
        os.killpg(self.node.pid, signal.SIGTERM)
        _, left = psutil.wait_procs(ours, timeout=30)
        return len([process for process in left if process.is_running()])

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return str(self.home) in " ".join(process.cmdline())
        except psutil.Error:
            return False


def eventually(holds: Callable[[], bool]) -> float:
    """Return after how many seconds it holds."""
    start = time.perf_counter()
    while not holds():
        if time.perf_counter() - start > PATIENCE_S:
            raise TimeoutError("it does not recover")
        time.sleep(POLL_S)
    return time.perf_counter() - start


def killed(*processes: psutil.Process) -> None:
    """Send SIGKILL to all that are still there."""
    for process in processes:
        if process.is_running():
            process.kill()


def head(world: World) -> None:
    """Kill the head of the cluster with all that runs under it."""
    whole = psutil.Process(world.part("ray"))
    killed(*whole.children(recursive=True), whole)


def job_driver(world: World) -> None:
    """Kill the driver of the job that builds."""
    eventually(lambda: bool(world.family("meedge_ray.jobs.")))
    killed(*world.family("meedge_ray.jobs."))


FAULTS: dict[str, Callable[[World], None]] = {
    "API server": lambda world: killed(psutil.Process(world.part("api-server"))),
    "reconciler": lambda world: killed(psutil.Process(world.part("reconciler"))),
    "job driver": job_driver,
    "Serve replica": lambda world: killed(*world.family("ray::ServeReplica")),
    "raylet of the edge node": lambda world: killed(*psutil.Process(world.node.pid).children(recursive=True)),
    "the whole head": head,
}


def survived(world: World, fault: str, seed: int) -> Figures:
    """Kill something in the middle of a build; return how long what came back, and what was done twice."""
    world.apply(model("busy", seed))
    eventually(lambda: _stage(world, "cultivate").get("state") == "Running")
    done = {stage["name"]: stage.get("jobId") for stage in _stages(world) if stage["state"] == "Succeeded"}
    written = world.api.patch(MODELS, NAMESPACE, "busy", {"metadata": {"labels": {"fault": f"f{seed}"}}}, manager="b")
    failed, start = world.failed, time.time()
    FAULTS[fault](world)
    recovered_s = eventually(
        lambda: (
            world.meedge("status", "-o", "json")["state"] == "ready"
            and world.ready(SERVICES, "placements")
            and world.ready(DEVICES, "pi-1", since=start + 1)
        )
    )
    failed = world.failed - failed
    built_s = recovered_s + eventually(lambda: world.ready(MODELS, "busy"))
    now = world.api.get(MODELS, NAMESPACE, "busy")
    again = [
        stage["name"] for stage in _stages(world) if stage["name"] in done and done[stage["name"]] != stage.get("jobId")
    ]
    lost = now["metadata"]["labels"].get("fault") != written["metadata"]["labels"]["fault"]
    return {"recovered_s": recovered_s, "built_s": built_s, "failed": failed, "write_lost": lost, "redone": again}


def _stages(world: World) -> list[Figures]:
    found = world.api.get(MODELS, NAMESPACE, "busy")
    status: Figures = found.get("status", {})
    current = status.get("observedGeneration") == found["metadata"]["generation"]
    return status.get("stages", []) if current else []


def _stage(world: World, name: str) -> Figures:
    return next((stage for stage in _stages(world) if stage["name"] == name), {})


def idle(world: World) -> Figures:
    """Return the share of a core that every part of the operator takes while nothing is to be done."""
    pids = {"supervisor": world.meedge("status", "-o", "json")["supervisor"]["pid"]}
    parts = {**pids, "api-server": world.part("api-server"), "reconciler": world.part("reconciler")}
    processes = {name: psutil.Process(pid) for name, pid in parts.items()}
    before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    time.sleep(IDLE_S)
    return {name: (sum(process.cpu_times()[:2]) - before[name]) / IDLE_S for name, process in processes.items()}


def reconciled(world: World) -> float:
    """Return how long it takes until 1,000 new EdgeDevices, whose nodes are away, have a status that says so."""
    spec = {"serviceRef": {"name": "placements"}, "modelRef": {"name": "digits"}, "memory": "2Mi"}
    start = time.perf_counter()

    def create(number: int) -> None:
        wanted = content("EdgeDevice", f"far-{number:04d}", {"device": f"far-{number:04d}", **spec})
        wanted["metadata"]["labels"] = {"far": "yes"}
        world.api.create(DEVICES, NAMESPACE, wanted, manager="bench")

    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(create, range(RECONCILED)))
    print("created", time.perf_counter() - start)

    def all_said() -> bool:
        listed = world.api.list(DEVICES, NAMESPACE, label_selector="far=yes")["items"]
        return all("conditions" in each.get("status", {}) for each in listed)

    eventually(all_said)
    took_s = time.perf_counter() - start
    for number in range(RECONCILED):
        world.api.delete(DEVICES, NAMESPACE, f"far-{number:04d}")
    return took_s


@contextmanager
def operating() -> Iterator[World]:
    """Run an operator with a served model and a device, all of it ready."""
    with tempfile.TemporaryDirectory(prefix="meedge-faults-") as folder:
        world = World(Path(folder))
        try:
            world.keep_edge_node("pi-1")
            world.apply(model("digits", 0))
            world.apply(content("ElasticService", "placements", {"modelRefs": [{"name": "digits"}]}))
            template = {"serviceRef": {"name": "placements"}, "modelRef": {"name": "digits"}, "memory": "1Mi"}
            world.apply(content("DeviceFleet", "edge", {"selector": {}, "template": template}))
            eventually(lambda: world.ready(DEVICES, "pi-1"))
            world.ask_on()
            yield world
        finally:
            print("processes left:", world.end())


def main() -> None:
    with operating() as world:
        idle_shares = idle(world)
        print("idle", idle_shares)
        reconciled_s = reconciled(world)
        print("reconciled", reconciled_s)
        rows = {}
        for seed, fault in enumerate(FAULTS, start=1):
            rows[fault] = survived(world, fault, seed)
            print(fault, rows[fault])
    write_results("faults", {"faults": rows, "idle_core_share": idle_shares, "reconcile_1000_s": reconciled_s})
    said = [
        [fault, f"{row['recovered_s']:.1f} s", f"{row['built_s']:.1f} s", str(row["failed"]), ", ".join(row["redone"])]
        for fault, row in rows.items()
    ]
    show(table(["SIGKILL of", "all ready after>", "model built after>", "requests failed>", "stages redone"], said))


if __name__ == "__main__":
    main()
