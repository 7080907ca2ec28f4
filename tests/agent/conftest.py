import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from agents import SmallAgent, served
from services import serving
from worlds import SHAPE

from meedge_ray.agent.client import AgentClient


@pytest.fixture
def run_dir():
    """Short enough for a socket's path, which pytest's folders are not everywhere."""
    path = Path(tempfile.mkdtemp(prefix="meedge-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def agent(world):
    return SmallAgent(world)


@pytest.fixture
def server(agent, run_dir):
    """An agent on its Unix socket and on loopback."""
    with served(agent, run_dir, http_port=0) as server:
        yield server


@pytest.fixture
def client(server, run_dir):
    with AgentClient("pi-1", run_dir=run_dir, timeout_s=30) as client:
        yield client


@pytest.fixture(scope="session")
def sample():
    return np.random.default_rng(1).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture
def service(world):
    with serving(world) as service:
        yield service


@pytest.fixture
def background():
    with ThreadPoolExecutor() as threads:
        yield threads.submit
