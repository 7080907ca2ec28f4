"""The agent: one model, loaded as soon as it can be had, and kept answering from then on."""

import logging
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from threading import Condition, Event, Lock, Thread
from time import monotonic
from typing import Any

from meedge_ray.agent.heartbeat import Heartbeat
from meedge_ray.agent.metrics import Histogram
from meedge_ray.agent.problems import error_of, problem_of
from meedge_ray.agent.scheduler import PARTING_S, Scheduler
from meedge_ray.agent.status import AgentStatus, Counts, ForeseenBudget, MemoryState
from meedge_ray.api.agent import AgentProblem, AgentSettings, Mode
from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.answer import Answer
from meedge_ray.domain.errors import BudgetError, MeedgeError, UnavailableError
from meedge_ray.domain.quantity import format_bytes
from meedge_ray.runtime.cache import Cache
from meedge_ray.runtime.client import ServiceClient
from meedge_ray.runtime.device import Device
from meedge_ray.runtime.latency_budget import LatencyBudget
from meedge_ray.runtime.memory import rss_bytes
from meedge_ray.runtime.memory_budget import MemoryBudget
from meedge_ray.runtime.memory_sources import MemorySources

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_PATIENCE_S = 30.0  # with a model that is being loaded

_log = logging.getLogger(__name__)


class Agent:
    """Owns a device's scheduler, engine and units. Thread-safe; `close` it or use it as a context manager.

    It is there at once. Its model comes when the service, or the cache, gives it; until then inferences are refused.
    """

    def __init__(self, settings: AgentSettings) -> None:
        """Begin to load the model.

        Raises:
            InvalidInputError: the settings name no service, or a certificate that cannot be read.
            MeedgeError: the memory budget cannot be kept.
        """
        self.settings = settings
        self.latencies = Histogram()
        ca_file = None if settings.ca_file is None else Path(settings.ca_file)
        self.client = ServiceClient(settings.service_url, settings.token, ca_file=ca_file)
        store = UnitStore(Path(settings.cache_dir).expanduser())
        self._cache = Cache(self.client, store, rate_limit_bps=settings.rate_limit_bps)
        self._sources = MemorySources()
        self._memory = MemoryBudget(
            settings.memory_bytes, settings.memory_policy, self._sources, schedule=settings.schedule
        )
        self._latency = LatencyBudget(settings.latency_ms)
        self._model, self._mode = settings.model, settings.mode
        self._heartbeat: Heartbeat | None = None
        if settings.heartbeat_s is not None:
            self._heartbeat = Heartbeat(settings, self.client, self, settings.heartbeat_s)
        self._started_at = time.time()
        self._counting, self._counts = Lock(), Counter[str]()
        self._state = Condition()
        self._scheduler: Scheduler | None = None
        self._at_work, self._tries = 0, 0
        self._entered = False
        self._problem: AgentProblem | None = None
        self._stop, self._retry = Event(), Event()
        self._loading = Thread(target=self._load, name="loading", daemon=True)
        self._loading.start()

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End its threads and connections; inferences under way return the best they have.

        A thread that waits for the service is left behind: it ends when it learns that its connection has.
        """
        self._stop.set()
        self._retry.set()
        if self._heartbeat is not None:
            self._heartbeat.close()
        self._latency.end(for_memory=False)
        self._loading.join(PARTING_S)
        if self._scheduler is not None:
            self._scheduler.close()
        self.client.close()
        self._sources.close()

    @property
    def sample_bytes(self) -> int:
        """The bytes of a sample at 8 a number, 0 before the model is known."""
        return 0 if self._scheduler is None else 8 * math.prod(self._scheduler.device.input_shape)

    def infer(self, sample: Any, *, deadline_ms: float | None = None) -> Answer:  # noqa: ANN401 - as Device.infer
        """Answer for one raw sample; see `Scheduler.infer`.

        Raises:
            UnavailableError: the model is not there yet.
            InvalidInputError: the sample or the deadline cannot be used.
        """
        try:
            answer = self._ready().infer(sample, deadline_ms=deadline_ms)
        except MeedgeError:
            self._count("failed")
            raise
        self.latencies.observe(answer.elapsed_ms / 1e3)
        self._count("inferences", answer.ending, *(["empty"] if answer.label is None else []))
        return answer

    def preempt(self) -> int:
        """Tell all inferences under way to return the best they have; return how many there were."""
        return len(self._latency.end(for_memory=False))

    def set_latency(self, latency_ms: float | None) -> AgentStatus:
        """Set the deadline of inferences that name none."""
        self._latency.latency_ms = latency_ms
        return self.status()

    def set_memory(self, memory_bytes: int, *, in_ms: float = 0.0) -> AgentStatus:
        """Set the declared budget, at once or as it is foreseen; see `Scheduler`.

        One at once is met before the service is asked, and the service has answered, or is away, when this returns.

        Raises:
            BudgetError: it is below the backbone, which goes on alone.
            UnavailableError: the model is not there yet; the budget is kept for when it is.
        """
        if in_ms > 0:
            if self._scheduler is None:
                self._memory.foresee(memory_bytes, monotonic() + in_ms / 1e3)
            else:
                self._scheduler.foresee(memory_bytes, in_ms / 1e3)
            return self.status()
        if self._scheduler is None:
            self._memory.declare(memory_bytes)
            self._try_now()
            return self.status()
        self._work(lambda: self._ready().set_memory(memory_bytes))
        return self.status()

    def set_mode(self, mode: Mode) -> None:
        """Plan inferences in another mode."""
        self._mode = mode
        if self._scheduler is not None:
            self._scheduler.device.set_mode(mode)

    def run_model(self, model: str) -> None:
        """Run another model; the one before answers until it is loaded beside it.

        Raises:
            MeedgeError: it cannot be had, or run; the one before stays.
        """
        if model == self._model:
            return
        before, self._model = self._model, model
        if self._scheduler is None:
            self._retry.set()
            return
        try:
            self._work(self._begin)
        except MeedgeError:
            self._model = before
            raise

    def renew_token(self, token: str) -> None:
        """Bear another token towards the service from now on."""
        self.client.renew_token(token)

    def ask_service(self) -> None:
        """Ask the service for a placement anew, soon: something is known to have changed."""
        if self._scheduler is not None:
            self._scheduler.ask_service()

    def status(self) -> AgentStatus:
        """Return how the agent stands, without waiting for anything."""
        scheduler, memory = self._scheduler, self._memory.state()
        running = None if scheduler is None else scheduler.device.status(declared_bytes=memory.declared_bytes)
        now = monotonic()
        with self._counting:
            counts = dict(self._counts)
        return AgentStatus(
            device=self.settings.device,
            pid=os.getpid(),
            version=version("meedge-ray"),
            started_at=self._started_at,
            settings_sha256=self.settings.sha256,
            busy=self._at_work > 0,
            problem=self._problem,
            running=running,
            mode=self._mode,
            latency_ms=self._latency.latency_ms,
            memory=MemoryState(
                source=memory.source,
                limit_bytes=memory.limit_bytes,
                used_bytes=memory.used_bytes,
                pressure=memory.pressure,
                allowed_bytes=memory.allowed_bytes,
                rss_bytes=rss_bytes(),
                problem=memory.problem,
            ),
            counts=Counts(
                **counts,
                drops=0 if scheduler is None else scheduler.drops,
                fetched_bytes=self._cache.fetched_bytes,
            ),
            heartbeat_problem=None if self._heartbeat is None else self._heartbeat.problem,
            foreseen=tuple(
                ForeseenBudget(memory_bytes=each.memory_bytes, in_s=each.at_s - now) for each in self._memory.foreseen()
            ),
        )

    def _ready(self) -> Scheduler:
        if self._scheduler is None:
            if self._problem is not None:
                raise error_of(self._problem)
            raise UnavailableError("the model is being loaded", where=self._model, do="Try again in a moment")
        return self._scheduler

    def _count(self, *names: str) -> None:
        with self._counting:
            self._counts.update(names)

    def _try_now(self) -> None:
        """Let the model be loaded now, and wait for what comes of it."""
        with self._state:
            # What is tried already may not know yet what has changed.
            wanted = self._tries + (2 if self._at_work else 1)
            self._retry.set()
            self._state.wait_for(lambda: self._tries >= wanted or self._scheduler is not None, _PATIENCE_S)
        self._ready()

    def _load(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stop.is_set() and self._scheduler is None:
            self._retry.clear()
            with suppress(MeedgeError):
                self._work(self._enter)
                self._work(self._begin)
            with self._state:
                self._tries += 1
                self._state.notify_all()
            if self._scheduler is None:
                self._retry.wait(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - others began at the same moment
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _enter(self) -> None:
        if self._heartbeat is not None and not self._entered:
            with suppress(UnavailableError):  # it may have all it needs in its cache
                self._heartbeat.enter()
            self._heartbeat.start()
            self._entered = True

    def _begin(self) -> None:
        settings = self.settings
        need = self._cache.bundle_at_hand(self._model).backbone_bytes
        budget = self._memory.declared_bytes
        if need > budget:
            raise BudgetError(
                f"the backbone alone needs {need} bytes ({format_bytes(need)}), the budget is {budget}",
                where="memory_bytes",
                do="Give the model more memory, or serve this device a smaller model",
            )
        device = Device(
            self._cache,
            self._model,
            device_type=settings.device_type,
            horizon_ms=settings.horizon_ms,
            distribution=settings.distribution,
            latency_budget_ms=settings.transfer_ms,
            planning=settings.planning,
            mode=self._mode,
            threads=settings.threads,
            memory=self._memory,
        )
        former, scheduler = self._scheduler, Scheduler(device, self._memory, self._latency)
        scheduler.look()
        self._scheduler = scheduler  # the backbone answers while branches travel
        if former is not None:
            former.close()
        scheduler.start()

    def _work(self, work: Callable[[], None]) -> None:
        with self._counting:
            self._at_work += 1
        problem: AgentProblem | None = None
        try:
            work()
        except MeedgeError as error:
            problem = problem_of(error)
            raise
        except Exception as error:
            if not self._stop.is_set():
                _log.exception("the agent failed")
            failed = UnavailableError(f"the agent failed ({error!r})", do="See its log; please report it")
            problem = problem_of(failed)
            raise failed from error
        finally:
            with self._counting:
                self._at_work -= 1
                self._problem = problem
