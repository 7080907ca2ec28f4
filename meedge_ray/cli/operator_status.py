"""`meedge status` and `meedge kubeconfig`: what runs, and where."""

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from meedge_ray.cli.extras import extra
from meedge_ray.cli.output import Format, emit, table
from meedge_ray.domain.errors import NotFoundError
from meedge_ray.operator.keeping.home import Home, home_path
from meedge_ray.operator.keeping.places import (
    API_SERVER,
    RAY,
    RECONCILER,
    api_url,
    dashboard_url,
    ray_address,
    ray_environment,
)
from meedge_ray.operator.keeping.run_file import PartStatus, Run, read_run
from meedge_ray.operator.server.tables import age

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="folder of all that is kept [default: MEEDGE_HOME, else ~/.meedge]"),
]


def status(
    home: HomeOption = None,
    form: Annotated[Format, typer.Option("-o", "--output", help="how to answer")] = Format.TEXT,
) -> None:
    """Tell what of the operator runs, since when, how often it was started again, and where it is.

    Ends with 0 when all of it is ready, else with 1.

    Example: meedge status -o json
    """
    place = Home(home_path(home))
    run = read_run(place)
    if run is None:
        emit(form, {"home": str(place.path), "state": "stopped", "parts": []}, f"nothing runs in {place.path}")
        raise typer.Exit(1)
    emit(form, as_json(place, run), *as_text(place, run))
    if _state(run) != "ready":
        raise typer.Exit(1)


def kubeconfig(home: HomeOption = None) -> None:
    """Print the path of the kubeconfig, for kubectl and everything else that speaks with Kubernetes.

    Example: export KUBECONFIG=$(meedge kubeconfig)
    """
    place = Home(home_path(home))
    if not place.kubeconfig.exists():
        raise NotFoundError("there is no kubeconfig yet", where=str(place.path), do="Run `meedge up`")
    sys.stdout.write(f"{place.kubeconfig}\n")


def as_json(home: Home, run: Run) -> dict[str, Any]:
    """Return all there is to know about what runs, for programs."""
    ports = home.ports()
    return {
        "home": str(home.path),
        "state": _state(run),
        "supervisor": {"pid": run.supervisor.pid, "running": run.supervisor.process() is not None},
        "startedAt": run.started_at,
        "kubeconfig": str(home.kubeconfig),
        "apiServer": api_url(ports),
        "dashboard": dashboard_url(ports),
        "rayAddress": f"{ray_address(run.host)}:{ports.ray}",
        "serve": f"http://{run.host}:{ports.serve}",
        "baseDir": run.base_dir,
        "join": _join_command(home, run),
        "parts": [
            {
                "name": part.name,
                "state": _part_state(part),
                "seconds": round(time.time() - part.since, 1),
                "restarts": part.restarts,
                "pid": part.process.pid if part.process else None,
                "message": part.message,
            }
            for part in run.parts
        ],
    }


def as_text(home: Home, run: Run) -> list[Table | str]:
    """Return the same for people."""
    ports = home.ports()
    where = {API_SERVER: api_url(ports), RAY: dashboard_url(ports), RECONCILER: ""}
    rows = [
        [
            part.name,
            _part_state(part),
            _age(part.since),
            str(part.restarts),
            str(part.process.pid) if part.process else "",
            part.message or where.get(part.name, ""),
        ]
        for part in run.parts
    ]
    shown: list[Table | str] = [table(["part", "state", "for", "restarts>", "pid>", "where"], rows), ""]
    if run.supervisor.process() is None:
        shown.append("its supervisor was killed, and nothing is started again: run `meedge up`\n")
    return [
        *shown,
        f"export KUBECONFIG={home.kubeconfig}",
        f"join an edge node, NAME being its own:\n  {_join_command(home, run)}",
        "stop with: meedge down",
    ]


def _state(run: Run) -> str:
    if run.supervisor.process() is None:
        return "unsupervised" if any(_part_state(part) == "ready" for part in run.parts) else "stopped"
    return "ready" if all(_part_state(part) == "ready" for part in run.parts) else "starting"


def _part_state(part: PartStatus) -> str:
    # What its supervisor wrote last may be some moments old.
    gone = part.process is not None and part.process.process() is None
    return "lost" if gone and part.state in ("ready", "starting") else part.state


def _age(since: float) -> str:
    return age(timedelta(seconds=max(0.0, time.time() - since)))


def _join_command(home: Home, run: Run) -> str:
    with extra("ray"):
        from meedge_ray.actors.cluster import DEVICE_LABEL, EDGE, ROLE_LABEL, Cluster, start_arguments
    from meedge_ray.operator.keeping.places import NODE_SETTINGS

    joined = Cluster(f"{ray_address(run.host)}:{home.ports().ray}", {**NODE_SETTINGS, **ray_environment(home)})
    variables = [f"{name}={value}" for name, value in joined.environment.items()]
    return " ".join([*variables, "ray", *start_arguments(joined, {ROLE_LABEL: EDGE, DEVICE_LABEL: "NAME"})])
