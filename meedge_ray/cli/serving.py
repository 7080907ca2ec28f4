"""`meedge serve`: the placement service, and devices on every edge node that joins."""

import os
import secrets
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from meedge_ray.bundle.manifest import read_bundle, unit_store
from meedge_ray.cli.bundles import Horizon
from meedge_ray.cli.distribution import Distribution, read_distribution
from meedge_ray.cli.extras import extra
from meedge_ray.cli.fields import as_options
from meedge_ray.cli.joining import enrol_command, join_command
from meedge_ray.cli.output import Format, emit
from meedge_ray.cli.planning import Plan, Planning
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.domain.quantity import parse_bytes
from meedge_ray.runtime.exit_planning import planner_for
from meedge_ray.runtime.loading import load_predictor
from meedge_ray.runtime.placing import Placer


def serve(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="bundles' folders")],
    host: Annotated[
        str, typer.Option(help="address to listen on; this machine's own, for nodes on other machines")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8000,
    memory: Annotated[
        str | None,
        typer.Option(help="give every edge node that joins a device of the first model, with this memory"),
    ] = None,
    cache_dir: Annotated[str, typer.Option(help="where a device keeps its units")] = "~/.cache/meedge",
    plan: Planning = Plan.AUTO,
    horizon_ms: Horizon = None,
    distribution: Distribution = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="serve HTTPS: PEM file of the certificate, under this path on devices too")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key")] = None,
    form: Annotated[Format, typer.Option("-o", "--output", help="how to answer")] = Format.TEXT,
) -> None:
    """Serve bundles' placements and units over HTTP, until it is stopped.

    Callers send the bearer token in MEEDGE_TOKEN; without one a random token is made and printed. Runs on the cluster
    RAY_ADDRESS names, else on one of its own, which edge nodes can join with the printed command. Devices without Ray
    come with the other one: their token lets them register, and nothing else. How devices plan, and for which kills,
    goes with --memory.

    Example: meedge serve digits --memory 1200Ki
    """
    memory_bytes = None if memory is None else parse_bytes(memory, where="--memory")
    bundle, law = read_bundle(directories[0]), read_distribution(distribution)
    if memory_bytes is None:
        _refuse_without_devices(plan, horizon_ms, distribution)
    else:  # refuse here what every device would refuse later
        with as_options(distribution):
            placer = Placer(bundle, horizon_ms=horizon_ms, distribution=law)
            placer.place(memory_bytes)
            predictor = load_predictor(unit_store(directories[0]), bundle)
            planner_for(plan.value, bundle, placer.profile, (), predictor, horizon_ms=placer.horizon_ms, law=placer.law)
    with extra("ray"):
        from meedge_ray.actors.cluster import LOOPBACK, cluster
        from meedge_ray.actors.fleet import start_fleet, stop_fleet
        from meedge_ray.actors.service.serving import run_service, stop_service
        from meedge_ray.api.agent import DeviceSettings
    given = os.environ.get("MEEDGE_TOKEN")
    token = given or secrets.token_urlsafe(32)
    with ExitStack() as stack:
        joined = stack.enter_context(cluster(host=LOOPBACK if host == "127.0.0.1" else host))
        url = run_service(directories, token, host=host, port=port, certificate=tls_cert, key=tls_key)
        stack.callback(stop_service)
        if memory_bytes is not None:
            start_fleet(
                DeviceSettings(
                    service_url=url,
                    token=token,
                    ca_file=None if tls_cert is None else str(tls_cert.resolve()),
                    model=bundle.model,
                    cache_dir=cache_dir,
                    memory_bytes=memory_bytes,
                    planning=plan.value,
                    horizon_ms=horizon_ms,
                    distribution=law,
                )
            )
            stack.callback(stop_fleet)
        join, enrol = join_command(joined), enrol_command(url, token, bundle.model, tls_cert)
        emit(
            form,
            {"url": url, "token": None if given else token, "address": joined.address, "join": join, "enrol": enrol},
            f"serving {', '.join(map(str, directories))} at {url}; page for people: {url}/docs",
            "token: the one in MEEDGE_TOKEN" if given else f"token: {token}",
            f"join an edge node, NAME being its own:\n  {join}",
            f"or a device without Ray:\n  {enrol}",
            "stop with Ctrl-C",
        )
        sys.stdout.flush()
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        stopped.wait()


def _refuse_without_devices(plan: Plan, horizon_ms: float | None, distribution: Path | None) -> None:
    given = {
        "--plan": plan is not Plan.AUTO,
        "--horizon-ms": horizon_ms is not None,
        "--distribution": distribution is not None,
    }
    for option, is_given in given.items():
        if is_given:
            raise InvalidInputError("is for devices, and none is given one", where=option, do="Add --memory")
