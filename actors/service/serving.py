"""The placement service as a Ray Serve application: restarted when it dies, shedding load it cannot bear."""

import asyncio
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import httpx
import ray
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.exceptions import RayError

from meedge_ray.actors.service.admission import Served
from meedge_ray.actors.service.app import create_app
from meedge_ray.actors.service.catalog import Catalog
from meedge_ray.actors.service.credentials import device_secret
from meedge_ray.actors.service.registry_actor import ReplicaLink, end_registry
from meedge_ray.actors.service.serve_options import ACTOR_OPTIONS, DEPLOYMENT, LOGGING
from meedge_ray.actors.waiting import eventually
from meedge_ray.domain.errors import InvalidInputError, UnavailableError

_NAME = "meedge"
# A replica's requests at a time: so many that it is not idle while Serve's proxy, which found it full, pauses for up to
# 0.5 s, and so few that even a busy one has answered them before devices give up.
_ONGOING = 128
_QUEUED = 64  # then 503, which a device takes for "later"
_CONTROLLER = ("SERVE_CONTROLLER_ACTOR", "serve")
_PROXY_TIMEOUT_S = 5.0
_STOP_TIMEOUT_S = 30.0

_log = logging.getLogger(__name__)


class Bundles(TypedDict):
    """What replicas serve: the hashes of the bundles' manifests by their folders. Ray hands it over as plain JSON."""

    bundles: dict[str, str]


class PlacementService:
    """One replica. The bundles are read here, so that none is pickled."""

    def __init__(self, token: str | Path) -> None:
        """Take the token, or the file that holds it."""
        self._token = token
        self._served = Served(Catalog(), _read_token(token), device_secret=device_secret(token))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Serve calls it in the replica, after the constructor."""
        service = serve.get_replica_context().app_name
        return create_app(self._served, ReplicaLink(service, self._token if isinstance(self._token, Path) else None))

    async def reconfigure(self, config: Bundles) -> None:
        """Serve these bundles from now on; Serve calls it before the first request and whenever `config` changes.

        Requests go on meanwhile. What is damaged is not taken over: the bundle served before stays.

        Raises:
            MeedgeError: there is nothing to serve at all.
        """
        await asyncio.to_thread(self._renew, [Path(directory) for directory in config["bundles"]])

    def _renew(self, directories: Sequence[Path]) -> None:
        catalog, problems = self._served.catalog.renewed(directories)
        for problem in problems:
            _log.warning("a bundle cannot be served: %s", problem)
        if problems and not catalog.models:
            raise problems[0]
        try:
            token = _read_token(self._token)
        except OSError as error:
            _log.warning("the token before stays: %s", error)
            token = self._served.token
        self._served.replace(catalog, token)


class Arguments(BaseModel):
    """What the application is made with. The token itself would show in Serve's status."""

    token_file: Path


def application(arguments: Arguments) -> serve.Application:
    """Return the application for a Serve configuration, which says what it serves and by how many replicas."""
    return _deployment().bind(arguments.token_file)


def run_service(
    directories: Sequence[Path],
    token: str,
    *,
    host: str = "127.0.0.1",
    port: int,
    certificate: Path | None = None,
    key: Path | None = None,
) -> str:
    """Serve the bundles in `directories` and return the URL, where the service answers from then on.

    A service that runs already is replaced. Needs a connection to a cluster, on whose head `host` is an
    address; every node that is no edge must see the directories under the same paths.

    Args:
        directories: of the bundles.
        token: what may do everything. What is known of thin devices is kept in memory alone, for it is in no file.
        host: where to listen.
        port: where to listen.
        certificate: PEM file of the chain that HTTPS is served with; None serves HTTP.
        key: PEM file of its private key, without a password.

    Raises:
        InvalidInputError: a bundle or the token cannot be used.
        NotFoundError: a directory holds no bundle.
        UnavailableError: the service does not come up.
    """
    # What a user got wrong is said here and now, and not by a replica that is started again and again.
    served = Served(Catalog([directory.resolve() for directory in directories]), token)
    tls = _tls_options(certificate, key)
    bundles: Bundles = {"bundles": {str(model.directory): model.sha256 for model in served.catalog.models}}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    url = f"{'https' if tls else 'http'}://{host}:{port}"
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port, **tls}, logging_config=LOGGING)
    except (RuntimeError, RayError) as error:
        _stop_serve()
        raise _not_up("Ray Serve cannot listen there", url, "Take a free port of the cluster's head") from error
    if not _answers(url):
        raise _not_up("Ray Serve listens elsewhere on this cluster", url, "Take its port, or shut it down before")
    deployment = _deployment().options(user_config=bundles)
    try:
        serve.run(deployment.bind(token), name=_NAME, route_prefix="/", logging_config=LOGGING)
    except (RuntimeError, RayError) as error:
        serve.delete(_NAME)
        raise _not_up(f"the service failed ({error})", url, "See what its replicas say") from error
    return url


def stop_service() -> None:
    """Take the service down, and Ray Serve with it if it serves nothing else."""
    serve.delete(_NAME)
    end_registry(_NAME)
    if not serve.status().applications:
        _stop_serve()


def _deployment() -> serve.Deployment:
    return serve.deployment(
        serve.ingress()(PlacementService),
        name=DEPLOYMENT,
        max_ongoing_requests=_ONGOING,
        max_queued_requests=_QUEUED,
        ray_actor_options=ACTOR_OPTIONS,
    )


def _read_token(token: str | Path) -> str:
    return token.read_text().strip() if isinstance(token, Path) else token


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


def _tls_options(certificate: Path | None, key: Path | None) -> dict[str, str]:
    if certificate is None and key is None:
        return {}
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(str(certificate), str(key), password="")
    except OSError as error:  # ssl.SSLError is one
        raise InvalidInputError(
            f"HTTPS cannot be served with that ({error})",
            where=f"certificate {certificate}, key {key}",
            do="Give both, as PEM files that belong together, the key without a password",
        ) from error
    return {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}


def _answers(url: str) -> bool:
    try:
        # Whether anybody listens there is asked, and nothing told: its own name need not be this one.
        httpx.get(f"{url}/-/healthz", timeout=_PROXY_TIMEOUT_S, verify=False)  # noqa: S501
    except httpx.HTTPError:
        return False
    return True


def _not_up(what: str, url: str, do: str) -> UnavailableError:
    return UnavailableError(what, where=url, do=do)
