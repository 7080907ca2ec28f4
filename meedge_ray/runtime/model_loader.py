"""From a bundle to its backbone in memory, and to what chooses, loads and plans its branches."""

from collections.abc import Collection
from functools import partial
from typing import get_args

from meedge_ray.api.agent import Mode
from meedge_ray.api.time_distribution import UNIFORM, TimeDistribution
from meedge_ray.domain.elastic import Branch, Bundle, Unit
from meedge_ray.domain.errors import InvalidInputError, NotFoundError, UnavailableError
from meedge_ray.domain.quantity import format_bytes
from meedge_ray.runtime.cache import Cache
from meedge_ray.runtime.engine import Engine, Planner
from meedge_ray.runtime.exit_planning import FiniteTimePlanner, Planning, planner_for
from meedge_ray.runtime.latency import LatencyMonitor
from meedge_ray.runtime.loading import read_predictor
from meedge_ray.runtime.memory import release_to_os
from meedge_ray.runtime.memory_budget import MemoryBudget
from meedge_ray.runtime.placing import Placer
from meedge_ray.runtime.sbran import Sbran
from meedge_ray.runtime.sessions import loading_bytes
from meedge_ray.search.predictor import ConfidencePredictor


class NoRoomError(UnavailableError):
    """A unit takes more while it is loaded than the memory there is has left."""

    def __init__(self, unit: Unit, needed_bytes: int) -> None:
        """Say so of this unit."""
        super().__init__(
            f"the memory there is cannot take {needed_bytes} bytes ({format_bytes(needed_bytes)}) for a moment",
            where=f"unit {unit.sha256[:12]}",
            do="Give the process more memory, or wait: it is tried again",
        )
        self.unit = unit


class ModelLoader:
    """Loads the models of one device, each unit only where the memory there is holds what loading takes."""

    def __init__(
        self,
        cache: Cache,
        *,
        device_type: str | None = None,
        horizon_ms: float | None = None,
        distribution: TimeDistribution = UNIFORM,
        planning: Planning = "auto",
        mode: Mode = "anytime",
        threads: int = 1,
        memory: MemoryBudget | None = None,
    ) -> None:
        """Take what all its models have in common; see `Device`.

        Raises:
            InvalidInputError: there is no such planning.
        """
        if planning not in get_args(Planning):
            raise InvalidInputError(
                f"{planning!r} is no way to plan", where="planning", do=f"Give one of {', '.join(get_args(Planning))}"
            )
        self.device_type, self.horizon_ms, self.distribution = device_type, horizon_ms, distribution
        self.planning: Planning = planning
        self.mode: Mode = mode
        self.monitor = LatencyMonitor()
        self._cache, self._threads, self._memory = cache, threads, memory

    def load(self, bundle: Bundle) -> Sbran:
        """Return the bundle with its backbone in memory, fetched where it is not held.

        Raises:
            NoRoomError: the memory there is does not hold a block while it is loaded.
            UnavailableError: the service is away and the cache does not hold the backbone.
            MeedgeError: the service refuses, or the model cannot be run.
        """
        placer = Placer(
            bundle, device_type=self.device_type, horizon_ms=self.horizon_ms, distribution=self.distribution
        )
        units = [block.unit for block in bundle.blocks]
        if len(self._cache.held(units)) < len(units):
            self._cache.ensure_all(units)
        engine = Engine(
            bundle.input,
            map(self._block, units),
            final_accuracy=bundle.final_accuracy,
            threads=self._threads,
        )
        planner_of = partial(self._planner, bundle, placer, self._predictor(bundle))
        planner_of(())  # what cannot be planned is refused here and now
        self._cache.release()
        return Sbran(bundle, placer, engine, self._stored, planner_of)

    def _block(self, unit: Unit) -> bytes:
        # Without its backbone a device does not answer at all: the head-room may be used for that.
        self._check_room(unit, within_headroom=True)
        return self._cache.ensure(unit)

    def _stored(self, unit: Unit) -> bytes:
        self._check_room(unit, within_headroom=False)
        return self._cache.stored(unit)

    def _check_room(self, unit: Unit, *, within_headroom: bool) -> None:
        needed_bytes = loading_bytes(unit.size_bytes)
        if self._memory is None or self._memory.has_room(needed_bytes, within_headroom=within_headroom):
            return
        release_to_os()  # what loading the ones before has left may be all that lacks
        if not self._memory.has_room(needed_bytes, within_headroom=within_headroom):
            raise NoRoomError(unit, needed_bytes)

    def _predictor(self, bundle: Bundle) -> ConfidencePredictor | None:
        described = bundle.predictor
        if described is None or self.planning == "static" or (self.planning == "auto" and not described.pays):
            return None
        try:
            return read_predictor(self._cache.ensure(described.unit), bundle)
        except (NotFoundError, UnavailableError):
            if self.planning == "auto":
                return None  # a fixed plan does without
            raise

    def _planner(
        self, bundle: Bundle, placer: Placer, predictor: ConfidencePredictor | None, branches: Collection[Branch]
    ) -> Planner | None:
        planner = planner_for(
            self.planning,
            bundle,
            placer.profile,
            branches,
            predictor,
            horizon_ms=placer.horizon_ms,
            law=placer.law,
        )
        if self.mode == "anytime":
            return planner
        return FiniteTimePlanner(bundle, placer.profile, branches, otherwise=planner, monitor=self.monitor)
