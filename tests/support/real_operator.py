"""Parts of a real operator, each a process of its own: see the fixtures in tests/operator/conftest.py."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from api_process import Kubectl, ServerProcess

from meedge_ray.agent.places import RUN_DIR
from meedge_ray.domain.errors import NotFoundError
from meedge_ray.operator.client.api_client import ApiClient
from meedge_ray.operator.client.resources import find_resource

HOST = "127.0.0.2"  # Ray turns 127.0.0.1 into the machine's outward address
_START_TIMEOUT_S = 90.0
_POLL_S = 0.5


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])


def clean_environment() -> dict[str, str]:
    """This process's environment without what points to another cluster."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MEEDGE_", "KUBECONFIG"))}


@contextmanager
def running(
    command: Sequence[str | Path], environment: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process; afterwards neither it nor a descendant of it is left."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for left in psutil.wait_procs(family, timeout=5)[1]:
            left.kill()


def wait_until_answered(url: str, headers: Mapping[str, str], process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, headers=dict(headers), timeout=5, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(_POLL_S)
    pytest.fail(f"{url} does not answer, exit status {process.poll()}; its log ends:\n{log.read_text()[-3000:]}")


@dataclass(frozen=True)
class RayHead:
    address: str
    dashboard_url: str
    environment: Mapping[str, str]
    process: "subprocess.Popen[bytes]"

    @contextmanager
    def edge_node(self, device: str, labels: Mapping[str, str] | None = None) -> Iterator["subprocess.Popen[bytes]"]:
        """Have an edge node while the context lasts; it may not have joined yet when the context begins."""
        from meedge_ray.actors.agents import stop_agents
        from meedge_ray.actors.cluster import DEVICE_LABEL, EDGE, ROLE_LABEL, Cluster, start_arguments

        marked = {**(labels or {}), ROLE_LABEL: EDGE, DEVICE_LABEL: device}
        folder = Path(tempfile.mkdtemp(prefix=f"meedge-{os.getpid()}-", dir="/tmp"))
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts"),
            *start_arguments(Cluster(self.address, self.environment), marked),
            *("--disable-usage-stats", "--log-style=record", "--log-color=false", f"--temp-dir={folder}"),
        ]
        environment = clean_environment() | self.environment | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        environment |= {RUN_DIR: str(folder / "run")}
        try:
            with running(command, environment, folder / "log") as process:
                yield process
        finally:
            stop_agents(folder / "run")  # they outlive their node
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Operator:
    head: RayHead
    server: ServerProcess
    base_dir: Path
    serve_port: int
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


class Objects(Kubectl):
    """kubectl in a namespace of its own, and what tests ask of objects there."""

    def apply(self, content: Mapping[str, Any]) -> str:
        return self("apply", "-f", "-", stdin=yaml.safe_dump(dict(content)))

    def find(self, kind: str, name: str) -> dict[str, Any] | None:
        # Not through kubectl: a process for every look would keep a core busy.
        with ApiClient(self._server.kubeconfig) as api:
            try:
                return api.get(find_resource(kind), self.namespace, name)
            except NotFoundError:
                return None

    def events(self, name: str) -> list[tuple[str, str]]:
        """Return reason and message of every event about an object."""
        listed = json.loads(self("get", "events", "-o", "json"))["items"]
        return [(each["reason"], each["message"]) for each in listed if each["involvedObject"]["name"] == name]

    def wait_for(
        self, kind: str, name: str, holds: Callable[[dict[str, Any]], object], timeout_s: float = 180.0
    ) -> dict[str, Any]:
        """Return the object as soon as it is there and so, or fail showing it."""
        deadline = time.monotonic() + timeout_s
        while (found := self.find(kind, name)) is None or not holds(found):
            if time.monotonic() > deadline:
                pytest.fail(f"{kind} {name} did not get there in {timeout_s} s:\n{json.dumps(found, indent=1)}")
            time.sleep(_POLL_S)
        return found


def condition(content: Mapping[str, Any], type: str = "Ready") -> Mapping[str, Any]:
    """Return what an object's condition says, empty if it is not there."""
    conditions = content.get("status", {}).get("conditions", ())
    return next((each for each in conditions if each["type"] == type), {})


def is_ready(content: Mapping[str, Any]) -> bool:
    """Return whether an object is ready as its spec is now."""
    said = condition(content)
    return said.get("status") == "True" and said["observedGeneration"] == content["metadata"]["generation"]
