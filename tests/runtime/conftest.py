"""Real units without torch, and a real HTTP server that can misbehave."""

from pathlib import Path

import numpy as np
import pytest
from services import serving
from worlds import SHAPE

from meedge_ray.bundle.manifest import bundle_units
from meedge_ray.bundle.store import UnitStore
from meedge_ray.runtime.cache import Cache
from meedge_ray.runtime.client import ServiceClient
from meedge_ray.runtime.device import Device


@pytest.fixture(scope="session")
def samples():
    return np.random.default_rng(1).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


@pytest.fixture
def service(world):
    with serving(world) as service:
        yield service


@pytest.fixture
def client(service):
    with ServiceClient(service.url, service.token, timeout_s=5) as client:
        yield client


@pytest.fixture
def store(tmp_path: Path):
    return UnitStore(tmp_path / "cache")


@pytest.fixture
def device(client, store):
    return Device(Cache(client, store), "tiny")


@pytest.fixture
def whole_bytes(world):
    """Memory in which everything fits."""
    return sum(unit.size_bytes for unit in bundle_units(world.bundle))
