"""`meedge logs`: what the jobs that build a model say."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer

from meedge_ray.api.stages import STAGES
from meedge_ray.cli.objects import Kubeconfig, Namespace, connected, named
from meedge_ray.domain.errors import InvalidInputError, MeedgeError, NotFoundError, UnavailableError
from meedge_ray.operator.client.api_client import ApiClient, Object
from meedge_ray.operator.client.resources import MODELS
from meedge_ray.operator.keeping.home import Home, home_path
from meedge_ray.operator.keeping.places import bearer, dashboard_url

_POLL_S = 1.0
_TIMEOUT_S = 30.0
_OVER = ("STOPPED", "SUCCEEDED", "FAILED")


def logs(
    model: Annotated[list[str], typer.Argument(metavar="elasticmodel/NAME", help="such as em/digits, or em digits")],
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="go on with what is said, stage after stage, until all is done")
    ] = False,
    stage: Annotated[
        str | None, typer.Option(metavar="STAGE", help=f"{', '.join(STAGES)} [default: the one at work, or the last]")
    ] = None,
    namespace: Namespace = None,
    home: Annotated[
        Path | None, typer.Option(help="folder of `meedge up` [default: MEEDGE_HOME, else ~/.meedge]")
    ] = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the log of the Ray job that builds a model, or built it last.

    The Ray cluster is that of `meedge up`; of another one RAY_API_SERVER_ADDRESS names the dashboard's URL, and
    RAY_AUTH_TOKEN its token.

    Example: meedge logs em/digits -f
    """
    chosen = named(model)
    if len(chosen) != 1 or chosen[0][0] != MODELS:
        raise InvalidInputError("only an ElasticModel has a log", where=" ".join(model), do="Write em/NAME")
    if stage is not None and stage not in STAGES:
        raise InvalidInputError(f"{stage!r} is no stage", where="--stage", do=f"There are: {', '.join(STAGES)}")
    name = chosen[0][1]
    with (
        suppress(KeyboardInterrupt),
        connected(kubeconfig, namespace) as (client, default),
        _jobs(Home(home_path(home))) as jobs,
    ):
        seen: set[str] = set()
        while True:
            content = client.get(MODELS, default, name)
            found = _stage(content, stage, seen)
            if found is None and not seen and not follow:
                raise _no_job(name, stage)
            if found is not None:
                if follow and stage is None:
                    sys.stdout.write(f"==> {found['name']}: job {found['jobId']} <==\n")
                seen.add(found["jobId"])
                _print(jobs, found["jobId"], follow=follow)
            if not follow or (stage is not None and found is not None) or _is_settled(client, default, name, seen):
                return
            time.sleep(_POLL_S)


def _stage(content: Object, stage: str | None, seen: set[str]) -> dict[str, Any] | None:
    # The stage that is asked for; else the one at work, else the last that has a job; none that was seen.
    stages = [each for each in (content.get("status") or {}).get("stages") or () if each.get("jobId")]
    if stage is not None:
        stages = [each for each in stages if each["name"] == stage]
    running = [each for each in stages if each["state"] == "Running"]
    chosen = (running or stages or [None])[-1]
    return chosen if chosen is None or chosen["jobId"] not in seen else None


def _is_settled(client: ApiClient, namespace: str, name: str, seen: set[str]) -> bool:
    content = client.get(MODELS, namespace, name)
    status = content.get("status") or {}
    if status.get("observedGeneration") != content["metadata"]["generation"]:
        return False
    ready: dict[str, Any] = next((each for each in status.get("conditions") or () if each["type"] == "Ready"), {})
    over = ready.get("status") == "True" or ready.get("reason") in ("Failed", "Suspended")
    return over and _stage(content, None, seen) is None


def _print(jobs: httpx.Client, job_id: str, *, follow: bool) -> None:
    printed = 0
    while True:
        path = f"/api/jobs/{quote(job_id, safe='')}"
        # The state first: what is said until then is in the log that is read after it.
        is_over = _asked(jobs, path, job_id)["status"] in _OVER
        text = str(_asked(jobs, f"{path}/logs", job_id)["logs"])
        sys.stdout.write(text[printed:])
        sys.stdout.flush()
        printed = len(text)
        if is_over or not follow:
            if text and not text.endswith("\n"):
                sys.stdout.write("\n")
            return
        time.sleep(_POLL_S)


def _asked(jobs: httpx.Client, path: str, job_id: str) -> dict[str, Any]:
    try:
        response = jobs.get(path)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise NotFoundError("the cluster knows no such job any more", where=f"job {job_id}")
        response.raise_for_status()
        return dict(response.json())
    except (httpx.HTTPError, ValueError) as error:
        raise UnavailableError(
            f"the Ray cluster's dashboard does not answer ({error})",
            where=str(jobs.base_url),
            do="See `meedge status`, or name it with RAY_API_SERVER_ADDRESS and RAY_AUTH_TOKEN",
        ) from error


def _jobs(home: Home) -> httpx.Client:
    url, headers = os.environ.get("RAY_API_SERVER_ADDRESS"), {}
    if url is None:
        with suppress(MeedgeError, OSError):
            if home.run_file.exists():
                url, headers = dashboard_url(home.ports()), bearer(home)
    elif token := os.environ.get("RAY_AUTH_TOKEN"):
        headers = {"Authorization": f"Bearer {token}"}
    if url is None:
        raise UnavailableError(
            "no Ray cluster runs in this home",
            where=str(home.path),
            do="Run `meedge up`, or name one with RAY_API_SERVER_ADDRESS and RAY_AUTH_TOKEN",
        )
    return httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)


def _no_job(name: str, stage: str | None) -> NotFoundError:
    what = f"the stage {stage} has" if stage else "it has"
    return NotFoundError(f"{what} no job yet", where=f"elasticmodel/{name}", do=f"See `meedge describe em {name}`")
