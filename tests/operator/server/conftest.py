"""What tests of the API server share: one server, a namespace each, and clients."""

import itertools
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from api_process import Kubectl, ServerProcess, serving

_NAMES = itertools.count()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server that most tests share; each has a namespace of its own."""
    with serving(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that is not started yet, for one test alone."""
    server = ServerProcess(tmp_path / "home")
    yield server
    if hasattr(server, "process"):
        server.stop(signal.SIGKILL)


@pytest.fixture
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def namespace(http: httpx.Client) -> Iterator[str]:
    name = f"test-{next(_NAMES)}"
    http.post("/api/v1/namespaces", json={"metadata": {"name": name}}).raise_for_status()
    yield name
    http.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def kubectl(server: ServerProcess, namespace: str, tmp_path: Path) -> Kubectl:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the PATH")
    return Kubectl(server, namespace, tmp_path)
