"""The placement service on a real port, and a real Ray cluster around it."""

import dataclasses
import socket
import threading
import time
import warnings
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import uvicorn
from worlds import make_world

from meedge_ray.actors.service.admission import Served
from meedge_ray.actors.service.app import create_app
from meedge_ray.actors.service.catalog import Catalog
from meedge_ray.bundle.manifest import unit_store, write_bundle

TOKEN = "a-secret-that-must-not-show"


def write_world(directory, world):
    store = unit_store(directory)
    for data in world.units.values():
        store.put(data)
    write_bundle(directory, world.bundle)
    return directory


@pytest.fixture(scope="session")
def other_world():
    """Another model, with two profiles."""
    world = make_world(seed=1, blocks=2, model="other")
    [profile] = world.bundle.profiles.values()
    slow = dataclasses.replace(profile, device_type="board-2t")
    profiles = {"board-1t": profile, "board-2t": slow}
    return dataclasses.replace(world, bundle=dataclasses.replace(world.bundle, profiles=profiles))


@pytest.fixture(scope="session")
def sample():
    return np.random.default_rng(1).integers(0, 256, (2, 4, 4), dtype=np.uint8)


@pytest.fixture(scope="session")
def directories(tmp_path_factory, world, other_world):
    root = tmp_path_factory.mktemp("bundles")
    return [write_world(root / "tiny", world), write_world(root / "other", other_world)]


@pytest.fixture
def bundle_writer():
    return write_world


@contextmanager
def _running(app):
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
                yield http
        finally:
            server.should_exit = True
            thread.join()


def _serve(directories):
    return _running(create_app(Served(Catalog(directories), TOKEN)))


@pytest.fixture(scope="session")
def running():
    """Run an application; gives an HTTP client that bears the token."""
    return _running


@pytest.fixture(scope="session")
def serving():
    """Run the application of some bundles; gives an HTTP client that bears the token."""
    return _serve


@pytest.fixture(scope="session")
def http(directories):
    with _serve(directories) as http:
        yield http


@pytest.fixture(scope="session")
def token():
    return TOKEN


@pytest.fixture(scope="session")
def service_url(own_cluster, directories):
    with warnings.catch_warnings():
        # Ray Serve's import, in this Ray version.
        warnings.filterwarnings("ignore", "Using extra keyword arguments on `Field`")
        from meedge_ray.actors.service.serving import run_service, stop_service

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    yield run_service(directories, TOKEN, port=port)
    stop_service()


@pytest.fixture(scope="session")
def edge_node(own_cluster):
    from meedge_ray.actors.cluster import attach_edge_node

    with attach_edge_node(own_cluster, "pi-1", labels={"site": "roof"}) as node:
        yield node
