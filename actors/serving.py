"""The placement service as a Ray Serve application: restarted when it dies, shedding load it cannot bear."""

import logging
from collections.abc import Sequence
from pathlib import Path

import httpx
import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError

from meedge_ray.actors.app import create_app
from meedge_ray.actors.cluster import OFF_EDGES
from meedge_ray.actors.waiting import eventually
from meedge_ray.domain.errors import UnavailableError

_NAME = "meedge"
_ONGOING = 64  # a replica's requests at a time; most wait for a device's slow link
_QUEUED = 256  # then 503, which a device takes for "later"
_CONTROLLER = ("SERVE_CONTROLLER_ACTOR", "serve")
_PROXY_TIMEOUT_S = 5.0
_STOP_TIMEOUT_S = 30.0
_LOGGING = {"log_level": "WARNING", "enable_access_log": False}


class PlacementService:
    """One replica. The bundles are read here, so that none is pickled."""

    def __init__(self, directories: Sequence[str], token: str) -> None:
        self._directories = [Path(directory) for directory in directories]
        self._token = token

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Serve calls it in the replica, after the constructor."""
        return create_app(self._directories, self._token)


def run_service(directories: Sequence[Path], token: str, *, host: str = "127.0.0.1", port: int) -> str:
    """Serve the bundles in `directories` and return the URL, where the service answers from then on.

    A service that runs already is replaced. Needs a connection to a cluster, on whose head `host` is an
    address; every node that is no edge must see the directories under the same paths.

    Raises:
        InvalidInputError: a bundle or the token cannot be used.
        NotFoundError: a directory holds no bundle.
        UnavailableError: the service does not come up.
    """
    paths = [directory.resolve() for directory in directories]
    # What a user got wrong is said here and now, and not by a replica that is started again and again.
    create_app(paths, token)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    url = f"http://{host}:{port}"
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=_LOGGING)
    except (RuntimeError, RayError) as error:
        _stop_serve()
        raise _not_up("Ray Serve cannot listen there", url, "Take a free port of the cluster's head") from error
    if not _answers(url):
        raise _not_up("Ray Serve listens elsewhere on this cluster", url, "Take its port, or shut it down before")
    application = _deployment().bind([str(path) for path in paths], token)
    try:
        serve.run(application, name=_NAME, route_prefix="/", logging_config=_LOGGING)
    except (RuntimeError, RayError) as error:
        serve.delete(_NAME)
        raise _not_up(f"the service failed ({error})", url, "See what its replicas say") from error
    return url


def stop_service() -> None:
    """Take the service down, and Ray Serve with it if it serves nothing else."""
    serve.delete(_NAME)
    if not serve.status().applications:
        _stop_serve()


def _deployment() -> serve.Deployment:
    return serve.deployment(
        serve.ingress()(PlacementService),
        name="PlacementService",
        max_ongoing_requests=_ONGOING,
        max_queued_requests=_QUEUED,
        # No CPU of its own: it mostly waits, and must come up beside training that has taken them all.
        ray_actor_options={"num_cpus": 0, "label_selector": OFF_EDGES},
    )


def _stop_serve() -> None:
    # Serve's own way waits in a call to the controller until that is killed, about which Ray complains on stdout.
    controller = ray.get_actor(*_CONTROLLER)
    ray.get(controller.graceful_shutdown.remote(wait=False), timeout=_STOP_TIMEOUT_S)
    eventually(lambda: not _is_there(_CONTROLLER), timeout_s=_STOP_TIMEOUT_S)
    serve.shutdown()  # forgets the controller in this process too


def _is_there(actor: tuple[str, str]) -> bool:
    try:
        ray.get_actor(*actor)
    except ValueError:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        httpx.get(f"{url}/-/healthz", timeout=_PROXY_TIMEOUT_S)
    except httpx.HTTPError:
        return False
    return True


def _not_up(what: str, url: str, do: str) -> UnavailableError:
    return UnavailableError(what, where=url, do=do)
