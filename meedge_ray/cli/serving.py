"""`meedge serve`: the placement service, and devices on every edge node that joins."""

import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from meedge_ray.cli.extras import extra
from meedge_ray.cli.output import Format, emit


def serve(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="bundles' folders")],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8000,
    form: Annotated[Format, typer.Option("-o", "--output", help="how to answer")] = Format.TEXT,
) -> None:
    """Serve bundles' placements and units over HTTP, until it is stopped.

    Callers send the bearer token in MEEDGE_TOKEN; without one a random token is made and printed. Runs on the cluster
    RAY_ADDRESS names, else on one of its own, which edge nodes can join with the printed command.

    Example: meedge serve digits --port 8000
    """
    with extra("ray"):
        from meedge_ray.actors.cluster import DEVICE_LABEL, EDGE, ROLE_LABEL, cluster
        from meedge_ray.actors.serving import run_service, stop_service
    given = os.environ.get("MEEDGE_TOKEN")
    token = given or secrets.token_urlsafe(32)
    with cluster() as joined:
        url = run_service(directories, token, host=host, port=port)
        variables = " ".join(f"{name}={value}" for name, value in joined.environment.items())
        join = (
            f"{variables} ray start --address={joined.address} --num-cpus=0 --object-store-memory=80000000 "
            f"--labels={ROLE_LABEL}={EDGE},{DEVICE_LABEL}=NAME --include-log-monitor=false --block"
        ).strip()
        emit(
            form,
            {"url": url, "token": None if given else token, "address": joined.address, "join": join},
            f"serving {', '.join(map(str, directories))} at {url}; page for people: {url}/docs",
            "token: the one in MEEDGE_TOKEN" if given else f"token: {token}",
            f"attach a node:\n  {join}",
            "stop with Ctrl-C",
        )
        sys.stdout.flush()
        try:
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
        finally:
            stop_service()
