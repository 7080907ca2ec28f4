"""Keeps the controllers alive: an actor that Ray starts again by itself, unless Ray has forgotten it."""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx

from meedge_ray.operator.keeping.home import Home
from meedge_ray.operator.keeping.places import RECONCILER, bearer, dashboard_url, ray_address, ray_environment
from meedge_ray.operator.keeping.processes import ProcessId, end_marked
from meedge_ray.operator.keeping.run_file import PartStatus, State, Told
from meedge_ray.operator.keeping.spawning import log_file, spawn

_PERIOD_S = 2.0
_PATIENCE_S = 30.0  # Ray is given so long to start the actor again
_START_TIMEOUT_S = 180.0
_ACTOR = {
    "detail": "true",
    "filter_keys": ["name", "state"],
    "filter_predicates": ["=", "="],
    "filter_values": [RECONCILER, "ALIVE"],
}


class ReconcilerKeeper:
    """Keeps the actor until `stop` is set; it goes with the Ray cluster. `has_ground` says what it needs is there."""

    def __init__(
        self,
        home: Home,
        *,
        told: Told,
        report: Callable[[PartStatus], None],
        has_ground: Callable[[], bool],
        stop: threading.Event,
    ) -> None:
        ports = home.ports()
        self._home, self._report, self._has_ground, self._stop = home, report, has_ground, stop
        self._command = [
            *(sys.executable, "-m", "meedge_ray.operator.reconciler", "--detached"),
            *(f"--kubeconfig={home.kubeconfig}", f"--home={home.path}", f"--base-dir={told.base_dir}"),
            *(f"--dashboard-url={dashboard_url(ports)}", f"--ray-address={ray_address(told.host)}:{ports.ray}"),
            *(f"--serve-host={told.host}", f"--serve-port={ports.serve}"),
        ]
        if told.tls is not None:
            self._command += [f"--serve-certificate={told.tls[0]}", f"--serve-key={told.tls[1]}"]
        self._actors_url = f"{dashboard_url(ports)}/api/v0/actors"
        self._http = httpx.Client(headers=bearer(home), timeout=10.0, trust_env=False)
        self._status = PartStatus(name=RECONCILER, state="waiting", since=time.time())

    def run(self) -> None:
        """Keep it; one that a killed supervisor left is told what it is told, and goes on."""
        is_told, seen_at = False, 0.0
        while not self._stop.wait(_PERIOD_S):
            if not self._has_ground():
                self._say("waiting", process=None, message="until the API server and Ray are ready")
                seen_at = 0.0
                continue
            if not is_told or time.monotonic() - seen_at > _PATIENCE_S:
                # Once in every supervisor's life in any case: what the actor is told may have changed.
                if self._status.state != "ready":
                    self._say("starting")
                is_told = self._start()
                seen_at = time.monotonic()
                if not is_told:
                    failures = self._status.never_ready + 1
                    message = f"it could not be started; its log is {log_file(self._home, RECONCILER)}"
                    self._say("failed", message=message, never_ready=failures)
                    self._stop.wait(min(30.0, 2.0**failures))
                    continue
            if (found := self._actor()) is not None:
                seen_at = time.monotonic()
                process, restarts = found
                self._say("ready", process=process, restarts=restarts)
            elif self._status.state == "ready" and time.monotonic() - seen_at > 2 * _PERIOD_S:
                self._say("starting", process=None)
        end_marked(self._home.path, RECONCILER, grace_s=1.0)
        self._say("stopped", process=None)

    def _start(self) -> bool:
        starter = spawn(self._home, RECONCILER, self._command, ray_environment(self._home))
        deadline = time.monotonic() + _START_TIMEOUT_S
        while starter.poll() is None and time.monotonic() < deadline and not self._stop.wait(0.2):
            pass
        if starter.poll() is None:
            starter.kill()
        return starter.wait() == 0

    def _actor(self) -> tuple[ProcessId | None, int] | None:
        # The process of the live actor, and how often Ray has started it again.
        with suppress(httpx.HTTPError, ValueError, KeyError, TypeError, IndexError):
            actors = self._http.get(self._actors_url, params=_ACTOR).json()["data"]["result"]["result"]
            return ProcessId.of(int(actors[0]["pid"])), int(actors[0]["num_restarts"])
        return None

    def _say(self, state: State, **changes: Any) -> None:  # noqa: ANN401 - fields of the status
        status = self._status.then(state, **changes)
        if status != self._status:
            self._status = status
            self._report(status)
