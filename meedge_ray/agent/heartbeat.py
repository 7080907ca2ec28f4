"""How a device without Ray comes to a service, says how it is, and is told what to do: over HTTPS alone."""

import json
import logging
import random
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

from pydantic import TypeAdapter

from meedge_ray.agent.problems import problem_of
from meedge_ray.agent.status import AgentStatus
from meedge_ray.api.agent import AgentProblem, AgentSettings, Mode
from meedge_ray.api.devices import CredentialBody, Desired, Registration
from meedge_ray.bundle.files import write_atomically
from meedge_ray.domain.errors import CredentialError, MeedgeError, UnavailableError
from meedge_ray.runtime.client import ServiceClient

_STATUS = TypeAdapter(AgentStatus)
_LONGEST_PAUSE_S = 60.0
_BUSY = 3  # heartbeats in a row that a service may fail to take before it counts as away

_log = logging.getLogger(__name__)


def first_pause_s(every_s: float) -> float:
    """Return when to say for the first time how the device is: those that came at once spread over their interval."""
    return random.uniform(0, every_s)  # noqa: S311 - nothing is to be kept secret


def pause_s(every_s: float, failures: int) -> float:
    """Return when to say next how the device is, in seconds, after so many failures in a row.

    After the first it is soon, for the service misses it; then ever later, up to a minute, or the interval where that
    is longer. So uneven that devices which came at once are apart after a few heartbeats.
    """
    mean_s = every_s
    if failures:
        mean_s = min(every_s * 2.0 ** (min(failures, 10) - 3), max(every_s, _LONGEST_PAUSE_S))
    return mean_s * random.uniform(0.5, 1.5)  # noqa: S311 - nothing is to be kept secret


class Steered(Protocol):
    """What says how it is, and can be told what to do."""

    def status(self) -> AgentStatus:
        """Return how it stands."""

    def set_memory(self, memory_bytes: int) -> AgentStatus:
        """Keep to another budget."""

    def set_latency(self, latency_ms: float | None) -> AgentStatus:
        """Set the deadline of inferences that name none."""

    def set_mode(self, mode: Mode) -> None:
        """Plan inferences in another mode."""

    def run_model(self, model: str) -> None:
        """Run another model."""

    def ask_service(self) -> None:
        """Ask for a placement anew."""


class Heartbeat:
    """Registers once, keeps its credential beside the units, renews it, and reports as often as it is asked to.

    The service away, the device goes on; it says how it is when the service is back.
    """

    def __init__(self, settings: AgentSettings, client: ServiceClient, agent: Steered, every_s: float) -> None:
        """Prepare; `start` begins."""
        self.problem: AgentProblem | None = None
        self._settings, self._client, self._agent = settings, client, agent
        self._every_s = every_s
        folder = Path(settings.cache_dir).expanduser() / "credentials"
        self._file = folder / f"{settings.device}.json"
        self._followed: Desired | None = None
        self._is_registered = False
        self._stop = Event()
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)

    def enter(self) -> None:
        """Bear the credential that is kept, or register.

        Raises:
            MeedgeError: the service is away, or refuses.
        """
        with suppress(OSError, ValueError, KeyError):
            kept = json.loads(self._file.read_text())
            if kept["service_url"] == self._settings.service_url:
                self._client.renew_token(kept["credential"])
                self._is_registered = True
                return
        self._register()

    def start(self) -> None:
        """Say how the device is from now on."""
        self._thread.start()

    def close(self) -> None:
        """Say no more."""
        self._stop.set()

    def beat(self) -> None:
        """Say once how the device is, and do what is asked.

        Raises:
            MeedgeError: the service is away, or refuses.
        """
        status = self._agent.status()
        answer = self._client.heartbeat(self._settings.device, _STATUS.dump_json(status).decode())
        self._every_s = answer.heartbeat_s
        desired = answer.desired
        is_for_another = status.running is not None and desired.model != status.running.model
        if answer.renew or is_for_another:
            self._keep(self._client.renew_credential(self._settings.device))
        if desired != self._followed:
            self._follow(desired)
            self._followed = desired
        elif status.running is not None and desired.bundle_sha256 not in (None, status.running.bundle_sha256):
            self._agent.ask_service()

    def _follow(self, desired: Desired) -> None:
        before = self._followed
        self._agent.run_model(desired.model)
        if desired.mode is not None:
            self._agent.set_mode(desired.mode)
        if desired.latency_ms is not None or (before is not None and before.latency_ms is not None):
            self._agent.set_latency(desired.latency_ms)
        if desired.memory_bytes is not None:
            self._agent.set_memory(desired.memory_bytes)
        self._agent.ask_service()

    def _run(self) -> None:
        failures, next_s = 0, first_pause_s(self._every_s)
        while not self._stop.wait(next_s):
            try:
                self._beat_or_register()
                failures, self.problem = 0, None
            except MeedgeError as error:
                failures += 1
                if failures >= _BUSY or not isinstance(error, UnavailableError):
                    self.problem = problem_of(error)
            except Exception:
                _log.exception("the device could not say how it is")
            next_s = pause_s(self._every_s, failures)

    def _beat_or_register(self) -> None:
        if not self._is_registered:
            self._register()
        try:
            self.beat()
        except CredentialError:
            # The credential has expired, or another took its place: the enrolment token lets in anew.
            self._register()
            self.beat()

    def _register(self) -> None:
        settings = self._settings
        self._is_registered = False
        self._client.renew_token(settings.token)
        self._keep(
            self._client.register(
                settings.device,
                Registration(
                    model=settings.model,
                    device_type=settings.device_type,
                    memory_bytes=settings.memory_bytes,
                    version=self._agent.status().version,
                ),
            )
        )

    def _keep(self, given: CredentialBody) -> None:
        self._client.renew_token(given.credential)
        self._every_s, self._is_registered = given.heartbeat_s, True
        kept = {"service_url": self._settings.service_url, "credential": given.credential}
        with suppress(MeedgeError):  # a full disk: it registers again when it starts again
            write_atomically(self._file, json.dumps(kept).encode(), private=True)
