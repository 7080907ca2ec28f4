"""One model kept answering under a changing memory budget."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import perf_counter
from typing import Any

from meedge_ray.api.agent import Mode
from meedge_ray.api.serving import PlacementRequest, PlacementResponse
from meedge_ray.api.time_distribution import UNIFORM, TimeDistribution
from meedge_ray.domain.answer import Answer
from meedge_ray.domain.device_status import DeviceStatus, Source
from meedge_ray.domain.errors import (
    BudgetError,
    IntegrityError,
    MeedgeError,
    NotFoundError,
    UnavailableError,
)
from meedge_ray.runtime.cache import Cache
from meedge_ray.runtime.exit_planning import Planning, learn_pace
from meedge_ray.runtime.memory import rss_bytes
from meedge_ray.runtime.memory_budget import MemoryBudget
from meedge_ray.runtime.model_loader import ModelLoader, NoRoomError
from meedge_ray.runtime.overruns import Overruns
from meedge_ray.runtime.placing import Placer
from meedge_ray.runtime.preemption import Preemption
from meedge_ray.runtime.sbran import Sbran


@dataclass(frozen=True, slots=True)
class _Decision:
    source: Source
    problem: str


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Branches whose units are held, for a budget that is to come."""

    sha256: str
    memory_bytes: int
    branches: tuple[str, ...]


class Device:
    """Keeps one model answering under a changing memory budget.

    The service chooses the branches; while it is away the device chooses among the units it holds. Inferences
    go on from any thread while branches are exchanged, and no budget waits for the network.
    """

    def __init__(
        self,
        cache: Cache,
        model: str,
        *,
        device_type: str | None = None,
        horizon_ms: float | None = None,
        distribution: TimeDistribution = UNIFORM,
        latency_budget_ms: float | None = None,
        planning: Planning = "auto",
        mode: Mode = "anytime",
        threads: int = 1,
        memory: MemoryBudget | None = None,
    ) -> None:
        """Load the backbone; the first budget adds branches.

        Args:
            cache: the units it holds, and the service they come from.
            model: the served model's name.
            device_type: whose profile counts; None takes the only one there is.
            horizon_ms: the span in which the kill may come; None takes the default.
            distribution: the law of the kill's time, which placements and plans are chosen for.
            latency_budget_ms: time until a new placement must be complete, asked for once the link's rate is known.
            planning: which resident branches an inference runs, see `planner_for`.
            mode: whether an inference is planned for its deadline, where it has one (MEEdge 3.4: MODE).
            threads: threads one unit may use.
            memory: what tells whether there is room to load a unit; None loads whatever the budget holds.

        Raises:
            UnavailableError: the service is away and the cache does not hold the backbone, or the memory there is
                does not hold it while it is loaded.
            MeedgeError: the service refuses, or the model cannot be run.
        """
        self.model = model
        self._cache, self._latency_budget_ms = cache, latency_budget_ms
        self._loader = ModelLoader(
            cache,
            device_type=device_type,
            horizon_ms=horizon_ms,
            distribution=distribution,
            planning=planning,
            mode=mode,
            threads=threads,
            memory=memory,
        )
        self._control, self._following = Lock(), Lock()  # of what is resident, and of who speaks with the service
        self._memory_bytes: int | None = None
        self._prepared: _Prepared | None = None
        self._overruns = Overruns()
        self._running = self._loader.load(cache.bundle_at_hand(model))
        self._decision = _Decision("local", "no memory budget was set yet")

    @property
    def mode(self) -> Mode:
        """How inferences are planned."""
        return self._loader.mode

    @property
    def resident_bytes(self) -> int:
        """Bytes of the units loaded now."""
        return self._running.engine.resident_bytes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a raw sample."""
        return self._running.bundle.input.shape

    @property
    def can_unload(self) -> bool:
        """Whether anything but the backbone is in memory."""
        return bool(self._running.engine.branches)

    @property
    def placer(self) -> Placer:
        """What knows the best placement for every budget, the service away or not."""
        return self._running.placer

    @property
    def bundle_sha256(self) -> str:
        """Hash of the manifest of the bundle that runs."""
        return self._running.sha256

    @property
    def follows_service(self) -> bool:
        """Whether the service chose what is resident."""
        return self._decision.source == "service"

    def infer(
        self,
        sample: Any,  # noqa: ANN401 - whatever a user hands over
        *,
        deadline_ms: float | None = None,
        preemption: Preemption | None = None,
    ) -> Answer:
        """Answer for one raw sample; see `Engine.infer`."""
        running = self._running
        answer = running.engine.infer(sample, deadline_ms=deadline_ms, preemption=preemption)
        if self.mode == "finiteTime":
            learn_pace(self._loader.monitor, running.placer.profile, answer, deadline_ms)
        return answer

    def set_memory(self, memory_bytes: int) -> DeviceStatus:
        """Place anew for a budget of units in memory, backbone included: `limit`, then `follow`.

        Raises:
            BudgetError: the budget is below the backbone, which goes on alone.
            MeedgeError: a held unit cannot be loaded; the resident branches fit the budget.
        """
        self.limit(memory_bytes)
        self.follow()
        return self.status()

    def limit(self, memory_bytes: int) -> None:
        """Keep to a budget from now on, at once and whatever the service does.

        What was prepared for such a budget is taken; else the best of what is resident stays. The units loaded never
        exceed the budget, with one exception: when the model was rebuilt, the old backbone answers until the new one
        is loaded beside it.

        Raises:
            BudgetError: the budget is below the backbone. The bare backbone stays and goes on answering:
                less cannot run, and stopping is for the one who set the budget to decide.
        """
        with self._control:
            self._memory_bytes = memory_bytes
            self._fit()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Exchange nothing while the context lasts, so that what is resident and what is used agree."""
        with self._control:
            yield

    def prepare(self, memory_bytes: int, *, within_ms: float) -> None:
        """Fetch ahead what a budget that begins so soon will want, for `limit` to take (MEEdge 3.4).

        Raises:
            MeedgeError: the service is away or refuses, or a unit cannot be had; nothing else has changed.
        """
        with self._following:
            response = self._ask(memory_bytes, latency_budget_ms=within_ms)
            sbran = self._running
            if response.bundle_sha256 != sbran.sha256:
                return  # the next `follow` takes the rebuilt model over
            self._cache.ensure_all(sbran.lacking(response.branches))
            with self._control:
                self._prepared = _Prepared(response.bundle_sha256, memory_bytes, tuple(response.branches))

    def set_mode(self, mode: Mode) -> None:
        """Plan inferences in this mode from now on."""
        with self._control:
            self._loader.mode = mode
            engine = self._running.engine
            self._running.arrange(engine.branches, engine.resident_bytes)

    def make_do(self) -> None:
        """Place the best of what is held, as the service may never answer; with the errors of `follow`."""
        with self._following:
            if self._memory_bytes is not None:
                self._make_do()

    def follow(self) -> None:
        """Ask the service which branches are best for the budget, fetch what is lacking, and exchange them.

        Where that cannot be done, the best of what is held is placed; `status` says why.

        Raises:
            BudgetError: the budget is below the backbone.
            MeedgeError: a held unit cannot be loaded; the resident branches fit the budget.
        """
        with self._following:
            memory_bytes = self._memory_bytes
            if memory_bytes is None:
                return
            try:
                self._follow_service(memory_bytes)
                self._decision = _Decision("service", "")
            except MeedgeError as error:
                self._decision = _Decision("local", str(error))
                self._make_do()
            if self._prepared is None:
                self._cache.release()

    def status(self, *, declared_bytes: int | None = None) -> DeviceStatus:
        """Return what the device does now; its budget is said to be the declared one, where that is given."""
        running, decision = self._running, self._decision
        branches = running.engine.branches
        return DeviceStatus(
            model=self.model,
            bundle_sha256=running.sha256,
            device_type=running.placer.device_type,
            memory_bytes=self._memory_bytes if declared_bytes is None else declared_bytes,
            resident_bytes=running.engine.resident_bytes,
            process_rss_bytes=rss_bytes(),
            branches=branches,
            planning=self._loader.planning,
            planner=running.engine.planner,
            expectation=running.placer.expectation(branches),
            units_held=len(self._held()),
            fetched_bytes=self._cache.fetched_bytes,
            source=decision.source,
            problem=decision.problem,
        )

    def _fit(self) -> None:
        sbran, prepared, memory_bytes = self._running, self._prepared, self._budget()
        # Before a drop that it was prepared for there is room for more.
        if prepared is not None and sbran.size_bytes(prepared.branches) <= memory_bytes <= prepared.memory_bytes:
            self._prepared = None
            if prepared.sha256 == sbran.sha256:
                try:
                    sbran.arrange(prepared.branches, memory_bytes)
                    self._decision = _Decision("service", "")
                    return
                except MeedgeError as error:
                    self._decision = _Decision("local", str(error))
        try:
            if sbran.shrink(memory_bytes):
                self._decision = _Decision("local", "the memory shrank; the service was not asked yet")
        except BudgetError as error:
            self._decision = _Decision("local", str(error))
            raise

    def _follow_service(self, memory_bytes: int) -> None:
        start = perf_counter()
        budget_ms = self._latency_budget_ms
        left_ms = None if budget_ms is None else self._overruns.left_ms(budget_ms)
        response = self._ask(memory_bytes, latency_budget_ms=left_ms)
        if response.bundle_sha256 != self._running.sha256:
            self._rebuild()
        sbran = self._running
        if not set(response.branches) <= {branch.name for branch in sbran.bundle.branches}:
            raise UnavailableError("the service placed branches of another bundle", do="Try again later")
        size_bytes = sbran.size_bytes(response.branches)
        if size_bytes > memory_bytes:
            raise UnavailableError("the service placed more than fits the memory", do="Upgrade the service")
        self._fetch(sbran, response.branches, size_bytes)
        with self._control:
            self._check(size_bytes)
            sbran.arrange(response.branches, self._budget())
        if response.fetch and response.transmission_ms is not None:
            foretold_ms = response.search_ms + response.transmission_ms
            self._overruns.add((perf_counter() - start) * 1e3, foretold_ms)

    def _fetch(self, sbran: Sbran, names: Collection[str], size_bytes: int) -> None:
        lacking = sbran.lacking(names)
        if len(self._cache.held(lacking)) < len(lacking):
            self._make_do()  # while they travel
        self._cache.ensure_all(lacking, lambda _: self._check(size_bytes))

    def _budget(self) -> int:
        assert self._memory_bytes is not None  # it is set before anything is placed
        return self._memory_bytes

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._budget():
            raise UnavailableError("the memory shrank while units were fetched", do="The next placement is for that")

    def _rebuild(self) -> None:
        bundle = self._cache.bundle(self.model)
        self._cache.ensure_all(block.unit for block in bundle.blocks)
        with self._control:
            self._running.shed()
            self._running, self._prepared = self._loader.load(bundle), None

    def _ask(self, memory_bytes: int, *, latency_budget_ms: float | None) -> PlacementResponse:
        rate_bps = self._cache.rate_bps
        return self._cache.client.place(
            self.model,
            PlacementRequest(
                memory_bytes=max(1, memory_bytes),  # nothing may be left: that is the service's to refuse
                latency_budget_ms=latency_budget_ms if rate_bps else None,
                rate_bps=rate_bps,
                held=sorted(self._held()),
                horizon_ms=self._loader.horizon_ms,
                distribution=self._loader.distribution,
                device_type=self._loader.device_type,
            ),
        )

    def _make_do(self) -> None:
        """Place the best of what is held."""
        sbran = self._running
        too_large = set[str]()
        while True:
            memory_bytes = self._budget()
            # Before the lock: a new budget must not wait for the search.
            names = sbran.best_of(self._held() - too_large, memory_bytes)
            with self._control:
                if sbran.size_bytes(names) > self._budget():
                    continue
                try:
                    return sbran.arrange(names, memory_bytes)
                except (NotFoundError, IntegrityError):
                    continue  # a damaged unit is held no more: choose among the rest
                except NoRoomError as error:
                    too_large.add(error.unit.sha256)

    def _held(self) -> frozenset[str]:
        # What is resident is at hand even where the disk did not take it.
        sbran = self._running
        return self._cache.held(sbran.units) | {unit.sha256 for unit in sbran.resident}
