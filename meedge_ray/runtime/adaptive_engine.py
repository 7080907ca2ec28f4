"""Keeps to a latency budget while the device's speed changes (AdaptiveNet 5.3)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf, isfinite
from threading import Lock, Thread
from typing import Any

from meedge_ray.domain.answer import Answer
from meedge_ray.domain.elastic import Bundle, Unit, distinct_units
from meedge_ray.domain.errors import InvalidInputError, MeedgeError
from meedge_ray.runtime.engine import Body, Engine
from meedge_ray.runtime.latency import LatencyMonitor
from meedge_ray.runtime.preemption import Preemption
from meedge_ray.runtime.subnet_pool import SubnetPool
from meedge_ray.runtime.subnets import subnet_blocks
from meedge_ray.search.subnet_search import Measured

SearchAgain = Callable[[float], Iterable[Measured]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveStatus:
    """What an adaptive engine does now.

    `active` is the subnet that runs, with the latency estimated; `ratio` by what factor inferences take longer than
    that. `shortfall_ms` is by how much even the fastest of the pool exceeds the budget at this ratio, 0 where one keeps
    to it. `problem` says what went wrong in the last adaptation: a subnet that cannot be loaded is passed over.
    """

    active: Measured
    latency_ms: float
    ratio: float
    shortfall_ms: float
    switches: int
    searching: bool
    resident_bytes: int
    problem: str


@dataclass(slots=True)
class _Active:
    subnet: Measured
    stays: bool = True  # until a switch begins


class AdaptiveEngine:
    """Runs the most accurate subnet of a pool that keeps to a latency budget, whatever the device's speed is.

    The time of every inference goes to the monitor. When r = actual / estimated says that the budget is exceeded, or
    that there is room for a more accurate subnet, another thread loads that one's units and switches: no inference
    waits or fails. Where none of the pool fits, the fastest runs, and a new search is asked for. Thread-safe.
    """

    def __init__(
        self,
        engine: Engine,
        bundle: Bundle,
        pool: SubnetPool,
        read: Callable[[Unit], bytes],
        *,
        latency_ms: float,
        monitor: LatencyMonitor | None = None,
        look_ahead: int = 0,
        search_again: SearchAgain | None = None,
    ) -> None:
        """Place the subnet for the budget, and no branches.

        Args:
            engine: with any body of this bundle; from now on nothing else may place on it.
            bundle: with the variants.
            pool: subnets with their latencies on this device when nothing else runs.
            read: returns a unit's verified bytes.
            latency_ms: budget of one inference.
            monitor: None takes one with the default settings.
            look_ahead: so many faster and so many slower neighbours in the pool keep their units loaded, so that a
                switch to them needs no loading; `resident_bytes` counts them.
            search_again: asked for measured subnets, in a thread of its own, when none of the pool fits. Its argument
                is the budget in terms of the pool's latencies, budget / r.

        Raises:
            InvalidInputError: the budget is not above 0, the look-ahead below 0, or a subnet not one of the bundle.
            MeedgeError: a unit cannot be had, or does not fit.
        """
        if look_ahead < 0:
            raise InvalidInputError(f"{look_ahead} neighbours cannot be kept", where="look_ahead", do="Give 0 or more")
        for member in pool.members:
            subnet_blocks(bundle, member.subnet)
        self.monitor = LatencyMonitor() if monitor is None else monitor
        self._engine, self._bundle, self._read = engine, bundle, read
        self._pool, self._look_ahead, self._search_again = pool, look_ahead, search_again
        self._budget_ms = _checked_budget(latency_ms)
        self._control = Lock()
        self._busy = {"switch": Lock(), "search": Lock()}
        self._threads: dict[str, Thread] = {}
        self._asked_ms = inf  # the lowest budget that a search was asked for
        self._held: frozenset[Unit] = frozenset()
        self._switches, self._problem = 0, ""
        first = self._fitting()
        self._place(first)
        self._active = _Active(first)
        self._hold_neighbours()
        self._search_if_none_fits()

    def infer(
        self,
        sample: Any,  # noqa: ANN401 - whatever a user hands over
        *,
        deadline_ms: float | None = None,
        preemption: Preemption | None = None,
    ) -> Answer:
        """Answer for one raw sample; see `Engine.infer`."""
        active = self._active
        answer = self._engine.infer(sample, deadline_ms=deadline_ms, preemption=preemption)
        if active.stays:  # else it may have run on either body
            self._observe(active.subnet, answer)
        return answer

    def set_budget(self, latency_ms: float) -> AdaptiveStatus:
        """Keep to another budget of one inference: switch before returning, where another subnet is better for it.

        A budget below the fastest subnet is no error: that one runs, and `shortfall_ms` says what is missing.

        Raises:
            InvalidInputError: it is not above 0, or not finite.
        """
        self._budget_ms, self._asked_ms = _checked_budget(latency_ms), inf
        self._adapt(self._fitting)
        return self.status()

    def status(self) -> AdaptiveStatus:
        """Return what is done now."""
        ratio = self.monitor.ratio
        return AdaptiveStatus(
            active=self._active.subnet,
            latency_ms=self._budget_ms,
            ratio=ratio,
            shortfall_ms=max(0.0, self._pool.fastest.latency_ms * ratio - self._budget_ms),
            switches=self._switches,
            searching=self._busy["search"].locked(),
            resident_bytes=self._engine.resident_bytes,
            problem=self._problem,
        )

    def settle(self) -> None:
        """Wait until no switch and no search is under way."""
        for name in self._busy:
            thread = self._threads.get(name)
            if thread is not None:
                thread.join()

    def _observe(self, subnet: Measured, answer: Answer) -> None:
        if answer.outputs:
            actual_ms = answer.outputs[-1].at_ms
        elif answer.elapsed_ms > self.monitor.ratio * subnet.latency_ms:
            actual_ms = answer.elapsed_ms  # cut off when it was late already: it takes this long at least
        else:
            return
        if not self.monitor.observe(actual_ms, subnet.latency_ms):
            return
        if self._steady_choice() is subnet:
            self._search_if_none_fits()
        else:
            self._in_background("switch", lambda: self._adapt(self._steady_choice))

    def _fitting(self) -> Measured:
        return self._pool.best(self.monitor.within_ms(self._budget_ms)) or self._pool.fastest

    def _steady_choice(self) -> Measured:
        # Down as soon as the budget is exceeded, up only where there is room.
        active, fitting = self._active.subnet, self._fitting()
        if fitting.latency_ms <= active.latency_ms:
            return fitting
        roomy = self._pool.best(self.monitor.room_ms(self._budget_ms))
        return roomy if roomy is not None and roomy.latency_ms > active.latency_ms else active

    def _adapt(self, choose: Callable[[], Measured]) -> None:
        with self._control:
            self._problem = ""
            while (target := choose()) is not self._active.subnet:
                self._switch(target)
            self._hold_neighbours()
        self._search_if_none_fits()

    def _switch(self, target: Measured) -> None:
        subnet = self._active.subnet
        self._active.stays = False
        try:
            self._place(target)
            subnet = target
            self._switches += 1
        except MeedgeError as error:
            self._problem = str(error)
            self._pool = SubnetPool([member for member in self._pool.members if member is not target] or [subnet])
        finally:
            self.monitor.restart()
            self._active = _Active(subnet)

    def _place(self, target: Measured) -> None:
        # What is held already of the neighbours stays; the rest of them must not delay the switch.
        near = self._near(target)
        body = Body(subnet_blocks(self._bundle, target.subnet), target.accuracy)
        kept = self._held.intersection(near)
        self._engine.place((), self._read, body=body, keep=kept)
        self._held = kept.union(block.unit for block in body.blocks)

    def _hold_neighbours(self) -> None:
        near = self._near(self._active.subnet)
        if self._held.issuperset(near):
            return
        try:
            self._engine.place((), self._read, keep=near)
            self._held = self._held.union(near)
        except MeedgeError as error:
            self._problem = str(error)

    def _near(self, subnet: Measured) -> tuple[Unit, ...]:
        if subnet not in self._pool.members:
            return ()
        near = self._pool.neighbours(subnet, self._look_ahead)
        return distinct_units(block.unit for member in near for block in subnet_blocks(self._bundle, member.subnet))

    def _search_if_none_fits(self) -> None:
        budget_ms = self.monitor.within_ms(self._budget_ms)
        # Asking again for nearly the same would find nearly the same.
        asked = budget_ms >= self._asked_ms * (1 - self.monitor.hysteresis)
        if self._search_again is None or asked or self._pool.best(budget_ms) is not None:
            return
        search_again = self._search_again
        self._in_background("search", lambda: self._search(search_again, budget_ms))

    def _search(self, search_again: SearchAgain, budget_ms: float) -> None:
        self._asked_ms = budget_ms
        try:
            found = tuple(search_again(budget_ms))
            for measured in found:
                subnet_blocks(self._bundle, measured.subnet)
            with self._control:
                self._pool = SubnetPool((*self._pool.members, *found))
        except MeedgeError as error:
            self._problem = str(error)
            return
        finally:
            self.monitor.restart()  # the search itself made inferences slow
        self._adapt(self._steady_choice)

    def _in_background(self, name: str, work: Callable[[], None]) -> None:
        # One of a name at a time: what comes meanwhile comes again with the next inference.
        busy = self._busy[name]
        if not busy.acquire(blocking=False):
            return

        def run() -> None:
            try:
                work()
            finally:
                busy.release()

        thread = Thread(target=run, name=name, daemon=True)
        thread.start()
        self._threads[name] = thread


def _checked_budget(latency_ms: float) -> float:
    if not (isfinite(latency_ms) and latency_ms > 0):
        raise InvalidInputError(f"{latency_ms} ms is no latency", where="latency_ms", do="Give more than 0")
    return latency_ms
