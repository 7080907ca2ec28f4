"""`meedge status` and `meedge kubeconfig`: what runs, and where."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from meedge_ray.cli.extras import extra
from meedge_ray.cli.joining import enrol_command, join_command
from meedge_ray.cli.output import Format, emit, table
from meedge_ray.domain.errors import MeedgeError, NotFoundError
from meedge_ray.operator.client.api_client import ApiClient
from meedge_ray.operator.client.resources import SERVICES
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

_ANSWER_TIMEOUT_S = 5.0

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
    tell(form, place, run)
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


def tell(form: Format, home: Home, run: Run) -> None:
    """Print all there is to know about what runs, and how devices come."""
    join, enrolments = _join_command(home, run), _enrolments(home, run)
    emit(form, _as_json(home, run, join, enrolments), *_as_text(home, run, join, enrolments))


def _as_json(home: Home, run: Run, join: str, enrolments: Mapping[str, str]) -> dict[str, Any]:
    ports = home.ports()
    return {
        "home": str(home.path),
        "state": _state(run),
        "supervisor": {"pid": run.supervisor.pid, "running": run.supervisor.process() is not None},
        "startedAt": run.started_at,
        "kubeconfig": str(home.kubeconfig),
        "apiServer": api_url(ports),
        "dashboard": dashboard_url(ports),
        "rayAddress": f"{ray_address(run.told.host)}:{ports.ray}",
        "serve": f"{'https' if run.told.tls else 'http'}://{run.told.host}:{ports.serve}",
        "baseDir": run.told.base_dir,
        "join": join,
        "enrol": dict(enrolments),
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


def _as_text(home: Home, run: Run, join: str, enrolments: Mapping[str, str]) -> list[Table | str]:
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
    enrol = [f"or a device without Ray, at ElasticService {name}:\n  {each}" for name, each in enrolments.items()]
    none_yet = "or a device without Ray: apply an ElasticService; `meedge status` then says how"
    return [
        *shown,
        f"export KUBECONFIG={home.kubeconfig}",
        f"join an edge node, NAME being its own:\n  {join}",
        *(enrol or [none_yet]),
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
        from meedge_ray.actors.cluster import Cluster
    from meedge_ray.operator.keeping.places import NODE_SETTINGS

    address = f"{ray_address(run.told.host)}:{home.ports().ray}"
    return join_command(Cluster(address, {**NODE_SETTINGS, **ray_environment(home)}))


def _enrolments(home: Home, run: Run) -> dict[str, str]:
    # The command of each ElasticService that has its URL, by namespace and name.
    certificate = run.told.tls[0] if run.told.tls else None
    commands = {}
    with suppress(MeedgeError), ApiClient(home.kubeconfig, timeout_s=_ANSWER_TIMEOUT_S) as client:
        for service in client.list(SERVICES)["items"]:
            metadata, status = service["metadata"], service.get("status", {})
            # A token that cannot be read is told in the service's own status.
            with suppress(KeyError, OSError):
                url, token_file = status["url"], Path(status["tokenFile"])
                model = service["spec"]["modelRefs"][0]["name"]
                name = f"{metadata['namespace']}/{metadata['name']}"
                commands[name] = enrol_command(url, token_file, model, certificate)
    return commands
