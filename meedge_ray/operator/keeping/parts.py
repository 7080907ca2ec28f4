"""What the supervisor keeps alive, as processes: the API server and the head of the Ray cluster."""

import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from meedge_ray.actors.service.serve_options import proxy_environment
from meedge_ray.operator.keeping.certificate import make_certificate
from meedge_ray.operator.keeping.home import Home, check_free, private_folder
from meedge_ray.operator.keeping.places import (
    API_SERVER,
    NODE_SETTINGS,
    RAY,
    api_url,
    bearer,
    dashboard_url,
    ray_address,
    ray_environment,
)
from meedge_ray.operator.keeping.run_file import Told

_OBJECT_STORE_BYTES = 200_000_000  # bundles travel over HTTP, not through it
_PROBE_TIMEOUT_S = 5.0
_WIPE_AFTER = 2  # starts in vain, before Ray's memory of the cluster counts as what makes it fail
_VITAL = frozenset({"gcs_server", "raylet"})  # Ray goes on without those that were told to end, and is of no use
_HEAD_SETTINGS = {
    # What the cluster knows outlives its head: edge nodes stay, actors and Serve come back by themselves.
    "RAY_gcs_storage": "rocksdb",
    # A lost node is noticed after about 2 s where Ray's defaults take 14 s.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A process to keep.

    Args:
        prepare: is called before each start with how often in a row it failed before it was ready.
        answers: whether the process of that number works; asked again and again.
        vital: names of the processes it starts itself, and is nothing without.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str]
    prepare: Callable[[int], None]
    answers: Callable[[int], bool]
    vital: Collection[str] = ()
    start_timeout_s: float = 120.0
    silence_timeout_s: float = 60.0


def api_server(home: Home) -> Part:
    """Return the API server of a home, on loopback, with a certificate of its own."""
    ports = home.ports()
    certificate, key = home.path / "tls" / "certificate.pem", home.path / "tls" / "key.pem"

    def prepare(failures: int) -> None:  # noqa: ARG001
        check_free(ports.api_server, "the API server")
        if not certificate.exists():
            make_certificate(certificate, key)

    http = httpx.Client(verify=False, timeout=_PROBE_TIMEOUT_S, trust_env=False)  # noqa: S501 - nothing is told it

    def answers(pid: int) -> bool:  # noqa: ARG001
        with suppress(httpx.HTTPError):
            return http.get(f"{api_url(ports)}/readyz").is_success
        return False

    command = [sys.executable, "-m", "meedge_ray.operator.server", f"--home={home.path}", f"--port={ports.api_server}"]
    return Part(
        name=API_SERVER,
        command=[*command, f"--tls-cert={certificate}", f"--tls-key={key}"],
        environment={},
        prepare=prepare,
        answers=answers,
    )


def ray_head(home: Home, told: Told) -> Part:
    """Return the head of the Ray cluster, which edge nodes find at the address that is told."""
    ports = home.ports()

    def prepare(failures: int) -> None:
        for port, what in ((ports.ray, "Ray"), (ports.ray_client, "Ray's clients"), (ports.dashboard, "Ray's jobs")):
            check_free(port, what)
        if failures >= _WIPE_AFTER:
            home.forget_cluster()
        private_folder(home.temp)
        # Ray takes an edge node's process on this machine for the cluster still running, if it finds this note as well.
        (_ray_folder(home) / "ray_current_cluster").unlink(missing_ok=True)
        private_folder(home.ray_storage)

    http = httpx.Client(headers=bearer(home), timeout=_PROBE_TIMEOUT_S, trust_env=False)

    def answers(pid: int) -> bool:
        with suppress(httpx.HTTPError, psutil.Error):
            is_whole = {child.name() for child in psutil.Process(pid).children()} >= _VITAL
            return is_whole and http.get(f"{dashboard_url(ports)}/api/gcs_healthz").is_success
        return False

    return Part(
        name=RAY,
        command=[
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            f"--node-ip-address={ray_address(told.host)}",
            f"--port={ports.ray}",
            f"--ray-client-server-port={ports.ray_client}",
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={ports.dashboard}"),
            *("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"),
            *("--include-log-monitor=false", "--no-monitor", "--disable-usage-stats"),
            *("--log-style=record", "--log-color=false"),
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--temp-dir={_ray_folder(home)}",
        ],
        environment={
            **_HEAD_SETTINGS,
            **NODE_SETTINGS,
            "RAY_gcs_storage_path": str(home.ray_storage),
            **ray_environment(home),
            **({} if told.tls else proxy_environment(told.host)),  # HAProxy speaks no TLS here
        },
        prepare=prepare,
        answers=answers,
    )


def _ray_folder(home: Home) -> Path:
    # Ray opens its folder to everybody; the one around it is ours alone.
    return home.temp / "ray"
