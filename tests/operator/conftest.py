"""A real operator for end-to-end tests: Ray's head with its dashboard, the API server, the controllers, kubectl.

All three are processes of their own, one of each a session; the test's own process joins no cluster.

- `ray_head`: Ray's head, with token authentication, on free ports. `.address`, `.dashboard_url`, `.environment` (what
  others need to be let in), `.edge_node(device, labels)`: a context with an edge node of that device.
- `api_server`: the API server with a home of its own, a `api_process.ServerProcess`. `.home`, `.kubeconfig`.
- `operator`: the controllers at work on both. `.head`, `.server`, `.base_dir` (where relative paths of manifests
  start), `.serve_port`, `.log` (what they have printed).
- `kubectl`: kubectl in a new namespace, so that tests share one operator and do not meet. `kubectl("get", "em")`
  returns what it printed, `.apply(content)`, `.find(kind, name)` the object or None, `.events(name)` (reason, message)
  of each, `.wait_for(kind, name, holds, timeout_s)` the object as soon as it is so, or fails showing it; all of
  `api_process.Kubectl` besides. `real_operator.condition` and `is_ready` read a status.
"""

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_process import ServerProcess, serving
from real_operator import (
    HOST,
    Objects,
    Operator,
    RayHead,
    clean_environment,
    free_port,
    running,
    wait_until_answered,
)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    port, dashboard_port, client_port = free_port(HOST), free_port(), free_port(HOST)
    token = secrets.token_hex(32)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    folder = Path(tempfile.mkdtemp(prefix=f"meedge-{os.getpid()}-", dir="/tmp"))  # short, for Unix sockets
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *(f"--port={port}", f"--node-ip-address={HOST}", f"--ray-client-server-port={client_port}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", "--dashboard-agent-listen-port=0"),
        *("--num-cpus=2", "--object-store-memory=200000000", "--include-log-monitor=false"),
        *("--disable-usage-stats", "--log-style=record", "--log-color=false", f"--temp-dir={folder}"),
    ]
    # A lost node is noticed in seconds, and no busy machine is taken for one.
    health = {f"RAY_health_check_{name}": "1000" for name in ("initial_delay_ms", "period_ms", "timeout_ms")}
    health["RAY_health_check_failure_threshold"] = "10"
    log = folder / "log"
    url = f"http://127.0.0.1:{dashboard_port}"
    try:
        with running(command, clean_environment() | environment | health, log) as process:
            # Not its version alone: a job needs the agent of the head as well.
            wait_until_answered(f"{url}/api/jobs/", {"Authorization": f"Bearer {token}"}, process, log)
            yield RayHead(f"{HOST}:{port}", url, environment, process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="session")
def operator(
    ray_head: RayHead, api_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    base_dir, serve_port = tmp_path_factory.mktemp("manifests"), free_port()
    log = api_server.home / "operator.log"
    command = [
        *(sys.executable, "-m", "meedge_ray.operator.reconciler"),
        *("--kubeconfig", api_server.kubeconfig, "--home", api_server.home, "--base-dir", base_dir),
        *("--dashboard-url", ray_head.dashboard_url, "--ray-address", ray_head.address),
        *("--serve-port", str(serve_port)),
    ]
    with running(command, clean_environment() | ray_head.environment, log):
        yield Operator(ray_head, api_server, base_dir, serve_port, log)


@pytest.fixture
def kubectl(api_server: ServerProcess, tmp_path: Path) -> Objects:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl on PATH")
    objects = Objects(api_server, f"test-{secrets.token_hex(4)}", tmp_path)
    objects("create", "namespace", objects.namespace)
    return objects
