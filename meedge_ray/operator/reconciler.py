"""Runs the controllers: as a process against any kubeconfig, or as a detached actor of the cluster it keeps."""

import argparse
import asyncio
import logging
import os
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import kopf
import ray

from meedge_ray.actors.cluster import NAMESPACE, detached_on_head
from meedge_ray.actors.waiting import eventually
from meedge_ray.domain.errors import MeedgeError, UnavailableError
from meedge_ray.operator.controllers import devices, fleets, models, services, thin_devices
from meedge_ray.operator.world import OperatorSettings, World

_NAME = "reconciler"
_BACK_OFF_S = 5.0
_STOP_TIMEOUT_S = 30.0

_log = logging.getLogger(__name__)


async def run_operator(settings: OperatorSettings, stop: asyncio.Event | threading.Event | None = None) -> None:
    """Run all controllers until `stop` is set. Needs a connection to the Ray cluster.

    Raises:
        Exception: what kopf cannot live with, such as an API server that does not answer for long.
    """
    registry = kopf.OperatorRegistry()
    world = World(settings)
    os.environ["KUBECONFIG"] = str(settings.kubeconfig)  # the one way kopf takes it
    kopf.on.login(registry=registry)(kopf.login_with_kubeconfig)
    world.watch(registry)
    for controller in (models, services, fleets, devices, thin_devices):
        controller.register(registry, world)
    with closing(world), world.sweeps.running():
        await kopf.operator(registry=registry, standalone=True, clusterwide=True, stop_flag=stop)


class Reconciler:
    """Runs the controllers in a thread with an event loop of its own, again and again should they fail."""

    def __init__(self, settings: OperatorSettings) -> None:
        # Here, for nothing else runs again when Ray restarts the actor.
        _configure_logging()
        self._settings = settings
        threading.Thread(target=self._run, daemon=True).start()

    def settings(self) -> OperatorSettings:
        """Return what the actor was started with."""
        return self._settings

    def _run(self) -> None:
        while True:
            try:
                asyncio.run(run_operator(self._settings))
            except Exception:
                _log.exception("the controllers failed")
            time.sleep(_BACK_OFF_S)


def start_reconciler(settings: OperatorSettings, *, timeout_s: float = 60.0) -> None:
    """Run the controllers as a detached actor on the head; one that runs already, with other settings, is replaced.

    It outlives its maker, and Ray starts it again when it dies.
    """
    options = ray.remote(Reconciler).options(**detached_on_head(_NAME))
    if ray.get(options.remote(settings).settings.remote(), timeout=timeout_s) != settings:
        stop_reconciler()
        ray.get(options.remote(settings).settings.remote(), timeout=timeout_s)


def stop_reconciler() -> None:
    """End the detached actor, if it runs; what it keeps is left as it is.

    Raises:
        UnavailableError: it does not go.
    """
    try:
        ray.kill(ray.get_actor(_NAME, NAMESPACE))
    except ValueError:
        return
    if not eventually(lambda: not _is_there(), timeout_s=_STOP_TIMEOUT_S):
        raise UnavailableError("the controllers do not end", where="actor reconciler", do="Look at the cluster's head")


def _is_there() -> bool:
    named = ray.util.list_named_actors(all_namespaces=True)
    return {"name": _NAME, "namespace": NAMESPACE} in named


def _configure_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("kopf", "httpx", "httpcore", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)


def main() -> None:
    """Run the controllers in this process until it is told to end, or start them as a detached actor."""
    parser = argparse.ArgumentParser(prog="python -m meedge_ray.operator.reconciler")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--base-dir", type=Path, default=Path.cwd())
    parser.add_argument("--dashboard-url", required=True)
    parser.add_argument("--ray-address", required=True)
    parser.add_argument("--serve-host", default="127.0.0.1")
    parser.add_argument("--serve-port", type=int, default=8000)
    parser.add_argument("--serve-certificate", type=Path, help="PEM file; with --serve-key services speak HTTPS")
    parser.add_argument("--serve-key", type=Path)
    parser.add_argument("--detached", action="store_true", help="start them on the cluster's head and return")
    given = vars(parser.parse_args())
    detached = given.pop("detached")
    settings = OperatorSettings(**given)
    _configure_logging()
    ray.init(address=settings.ray_address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    try:
        if detached:
            start_reconciler(settings)
        else:
            asyncio.run(run_operator(settings))
    except MeedgeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
