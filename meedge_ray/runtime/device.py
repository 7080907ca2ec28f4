"""One model kept answering under a changing memory budget."""

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, get_args

from meedge_ray.api.serving import PlacementRequest, PlacementResponse
from meedge_ray.api.time_distribution import UNIFORM, TimeDistribution
from meedge_ray.bundle.manifest import bundle_sha256, bundle_units
from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.answer import Answer
from meedge_ray.domain.elastic import Branch, Bundle, bytes_of, units_of
from meedge_ray.domain.errors import (
    BudgetError,
    IntegrityError,
    InvalidInputError,
    MeedgeError,
    NotFoundError,
    UnavailableError,
)
from meedge_ray.runtime.cache import Cache
from meedge_ray.runtime.client import ServiceClient
from meedge_ray.runtime.engine import Engine, Planner
from meedge_ray.runtime.exit_planning import Planning, planner_for
from meedge_ray.runtime.loading import read_predictor
from meedge_ray.runtime.memory import rss_bytes
from meedge_ray.runtime.placing import Placer
from meedge_ray.runtime.preemption import Preemption
from meedge_ray.search.predictor import ConfidencePredictor

Source = Literal["service", "local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """What a device does now.

    `memory_bytes` is the budget, None before the first; `resident_bytes` counts the units loaded. `source` says
    who chose the resident branches; where the service did not, `problem` says why. `planning` is what was asked for,
    `planner` what chooses among the resident branches now: "static", "samplewise", or "none", which runs all of them.
    """

    model: str
    bundle_sha256: str
    device_type: str
    memory_bytes: int | None
    resident_bytes: int
    process_rss_bytes: int
    branches: tuple[str, ...]
    planning: Planning
    planner: str
    expectation: float
    units_held: int
    fetched_bytes: int
    source: Source
    problem: str


@dataclass(frozen=True, slots=True)
class _Running:
    bundle: Bundle
    sha256: str
    placer: Placer
    engine: Engine
    predictor: ConfidencePredictor | None


@dataclass(frozen=True, slots=True)
class _Decision:
    memory_bytes: int | None
    source: Source
    problem: str


class Device:
    """Keeps one model answering under a changing memory budget.

    The service chooses the branches; while it is away the device chooses among the units it holds. Inferences
    go on from any thread while branches are exchanged.
    """

    def __init__(
        self,
        client: ServiceClient,
        store: UnitStore,
        model: str,
        *,
        device_type: str | None = None,
        horizon_ms: float | None = None,
        distribution: TimeDistribution = UNIFORM,
        latency_budget_ms: float | None = None,
        planning: Planning = "auto",
        threads: int = 1,
    ) -> None:
        """Load the backbone; the first `set_memory` adds branches.

        Args:
            client: the placement service.
            store: the device's own cache of units, kept across restarts.
            model: the served model's name.
            device_type: whose profile counts; None takes the only one there is.
            horizon_ms: the span in which the kill may come; None takes the default.
            distribution: the law of the kill's time, which placements and plans are chosen for.
            latency_budget_ms: time until a new placement must be complete, asked for once the link's rate is known.
            planning: which resident branches an inference runs, see `planner_for`.
            threads: threads one unit may use.

        Raises:
            UnavailableError: the service is away and the cache does not hold the backbone.
            MeedgeError: the service refuses, or the model cannot be run.
        """
        if planning not in get_args(Planning):
            raise InvalidInputError(
                f"{planning!r} is no way to plan", where="planning", do=f"Give one of {', '.join(get_args(Planning))}"
            )
        self.model = model
        self._cache = Cache(client, store)
        self._device_type, self._horizon_ms = device_type, horizon_ms
        self._distribution, self._latency_budget_ms = distribution, latency_budget_ms
        self._planning: Planning = planning
        self._threads = threads
        self._control = Lock()
        self._running = self._loaded(self._cache.bundle(model))
        self._decision = _Decision(None, "local", "no memory budget was set yet")

    def infer(
        self,
        sample: Any,  # noqa: ANN401 - whatever a user hands over
        *,
        deadline_ms: float | None = None,
        preemption: Preemption | None = None,
    ) -> Answer:
        """Answer for one raw sample; see `Engine.infer`."""
        return self._running.engine.infer(sample, deadline_ms=deadline_ms, preemption=preemption)

    def set_memory(self, memory_bytes: int) -> DeviceStatus:
        """Place anew for a budget of units in memory, backbone included.

        A smaller budget is met at once with what is resident, before the service is asked. The units loaded
        never exceed the budget, with one exception: when the model was rebuilt, the old backbone answers
        until the new one is loaded beside it.

        Raises:
            BudgetError: the budget is below the backbone. The bare backbone stays and goes on answering:
                less cannot run, and stopping is for the one who set the budget to decide.
            MeedgeError: a held unit cannot be loaded; the resident branches fit the budget.
        """
        with self._control:
            self._shrink(memory_bytes)
            try:
                self._follow_service(memory_bytes)
                self._decision = _Decision(memory_bytes, "service", "")
            except MeedgeError as error:
                self._place_locally(memory_bytes, problem=str(error))
        return self.status()

    def status(self) -> DeviceStatus:
        """Return what the device does now."""
        running, decision = self._running, self._decision
        branches = running.engine.branches
        return DeviceStatus(
            model=self.model,
            bundle_sha256=running.sha256,
            device_type=running.placer.device_type,
            memory_bytes=decision.memory_bytes,
            resident_bytes=running.engine.resident_bytes,
            process_rss_bytes=rss_bytes(),
            branches=branches,
            planning=self._planning,
            planner=running.engine.planner,
            expectation=running.placer.expectation(branches),
            units_held=len(self._held(running.bundle)),
            fetched_bytes=self._cache.fetched_bytes,
            source=decision.source,
            problem=decision.problem,
        )

    def _loaded(self, bundle: Bundle) -> _Running:
        placer = Placer(
            bundle, device_type=self._device_type, horizon_ms=self._horizon_ms, distribution=self._distribution
        )
        engine = Engine(
            bundle.input,
            [self._cache.ensure(block.unit) for block in bundle.blocks],
            final_accuracy=bundle.final_accuracy,
            threads=self._threads,
        )
        return _Running(bundle, bundle_sha256(bundle), placer, engine, self._predictor(bundle))

    def _predictor(self, bundle: Bundle) -> ConfidencePredictor | None:
        described = bundle.predictor
        if described is None or self._planning == "static" or (self._planning == "auto" and not described.pays):
            return None
        try:
            return read_predictor(self._cache.ensure(described.unit), bundle)
        except (NotFoundError, UnavailableError):
            if self._planning == "auto":
                return None  # a fixed plan does without
            raise

    def _shrink(self, memory_bytes: int) -> None:
        engine = self._running.engine
        if engine.resident_bytes <= memory_bytes:
            return
        units = {unit.sha256 for unit in units_of(self._branches(engine.branches))}
        self._load(self._local_choice(memory_bytes, units), memory_bytes)
        self._decision = _Decision(memory_bytes, "local", "the memory shrank; the service was not asked yet")

    def _follow_service(self, memory_bytes: int) -> None:
        response = self._ask(memory_bytes)
        if response.bundle_sha256 != self._running.sha256:
            self._rebuild()
        running = self._running
        if not set(response.branches) <= {branch.name for branch in running.bundle.branches}:
            raise UnavailableError("the service placed branches of another bundle", do="Try again later")
        wanted = self._branches(response.branches)
        if running.bundle.backbone_bytes + bytes_of(wanted) > memory_bytes:
            raise UnavailableError("the service placed more than fits the memory", do="Upgrade the service")
        for unit in units_of(branch for branch in wanted if branch.name not in running.engine.branches):
            self._cache.ensure(unit)
        self._load(response.branches, memory_bytes)

    def _rebuild(self) -> None:
        bundle = self._cache.bundle(self.model)
        for block in bundle.blocks:
            self._cache.ensure(block.unit)
        self._running.engine.place((), self._cache.stored)
        self._running = self._loaded(bundle)

    def _ask(self, memory_bytes: int) -> PlacementResponse:
        rate_bps = self._cache.rate_bps
        return self._cache.client.place(
            self.model,
            PlacementRequest(
                memory_bytes=memory_bytes,
                latency_budget_ms=self._latency_budget_ms if rate_bps else None,
                rate_bps=rate_bps,
                held=sorted(self._held(self._running.bundle)),
                horizon_ms=self._horizon_ms,
                distribution=self._distribution,
                device_type=self._device_type,
            ),
        )

    def _place_locally(self, memory_bytes: int, *, problem: str) -> None:
        self._decision = _Decision(memory_bytes, "local", problem)
        while True:
            held = self._held(self._running.bundle)
            try:
                self._load(self._local_choice(memory_bytes, held), memory_bytes)
            except (NotFoundError, IntegrityError):
                continue  # a damaged unit is held no more: choose among the rest
            return

    def _local_choice(self, memory_bytes: int, units: Iterable[str]) -> tuple[str, ...]:
        try:
            return self._running.placer.restricted(frozenset(units)).place(memory_bytes).branches
        except BudgetError as error:
            self._running.engine.place((), self._cache.stored)
            self._decision = _Decision(memory_bytes, "local", str(error))
            raise

    def _load(self, names: Iterable[str], memory_bytes: int) -> None:
        running = self._running
        wanted, resident = self._branches(names), self._branches(running.engine.branches)
        if running.bundle.backbone_bytes + bytes_of((*resident, *wanted)) > memory_bytes:
            # Old and new would not fit side by side.
            kept = [branch for branch in wanted if branch in resident]
            running.engine.place(kept, self._cache.stored, self._planner(kept))
        running.engine.place(wanted, self._cache.stored, self._planner(wanted))

    def _planner(self, branches: list[Branch]) -> Planner | None:
        running = self._running
        placer = running.placer
        return planner_for(
            self._planning,
            running.bundle,
            placer.profile,
            branches,
            running.predictor,
            horizon_ms=placer.horizon_ms,
            law=placer.law,
        )

    def _branches(self, names: Iterable[str]) -> list[Branch]:
        chosen = set(names)
        return [branch for branch in self._running.bundle.branches if branch.name in chosen]

    def _held(self, bundle: Bundle) -> frozenset[str]:
        return self._cache.store.held() & {unit.sha256 for unit in bundle_units(bundle)}
