"""Which branches a device is to hold, for its memory and for the time there is to send them."""

from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import cached_property
from time import perf_counter

from meedge_ray.api.time_distribution import UNIFORM, TimeDistribution
from meedge_ray.domain.elastic import Branch, Bundle
from meedge_ray.domain.errors import BudgetError, InvalidInputError, NotFoundError
from meedge_ray.domain.placement import Placement
from meedge_ray.domain.quantity import format_bytes
from meedge_ray.runtime.problem import Problem, find_profile
from meedge_ray.runtime.sending import Sending
from meedge_ray.search.inputs import Law
from meedge_ray.search.placement import PlacementFrontier

# Methods can be compared over one fixed span only, and it must leave the single exit a time to be at hand:
# over exactly its own time the backbone without branches would count for nothing.
HORIZON_FACTOR = 1.25

# The most that a search may take of the time left for it and for branches: it finds early what it finds, and every ms
# of it is one less to send in. No more of the share is taken than helps: HPF gains next to nothing after 10 ms.
SEARCH_SHARE = 0.1
_SCORING_MS, _HPF_MS = 5.0, 10.0  # scoring a thousand branches takes 3 ms


class Placer:
    """Chooses the branches of one bundle for one device type. Thread-safe.

    The search charges every branch in full, so a placement whose branches share units takes less than it was charged.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device_type: str | None = None,
        horizon_ms: float | None = None,
        distribution: TimeDistribution = UNIFORM,
        held: Collection[str] | None = None,
    ) -> None:
        """Prepare for placing.

        Args:
            bundle: the model and its profiles.
            device_type: whose profile counts; None takes the only one there is.
            horizon_ms: the span in which the kill may come; None takes 1.25 times the single exit's time.
            distribution: the law of the kill's time.
            held: SHA-256 of the only units that may be placed; None allows all.

        Raises:
            NotFoundError: no profile of that device type.
            InvalidInputError: several profiles and none named, a horizon below the single exit's time, or a law
                that does not lie within the horizon.
        """
        self.bundle, self.distribution = bundle, distribution
        self.profile = find_profile(bundle, device_type)
        self.horizon_ms = HORIZON_FACTOR * self.profile.single_exit_ms if horizon_ms is None else horizon_ms
        self._problem = Problem(bundle, self.profile, self.horizon_ms, distribution)
        self._candidates = [
            branch for branch in bundle.branches if held is None or all(unit.sha256 in held for unit in branch.units)
        ]
        self._frontier_ms = 0.0  # that the frontier took

    @property
    def law(self) -> Law | None:
        """The law of the kill's time as the search takes it; None is the uniform one."""
        return self._problem.law

    @property
    def device_type(self) -> str:
        """The device type whose profile counts."""
        return self.profile.device_type

    def restricted(self, held: Collection[str]) -> "Placer":
        """Return a placer of only the branches whose units are all `held`: what can be done without a server."""
        return Placer(
            self.bundle,
            device_type=self.device_type,
            horizon_ms=self.horizon_ms,
            distribution=self.distribution,
            held=held,
        )

    def frontier(self) -> PlacementFrontier:
        """Return the best placement for every budget, computed once.

        Its sizes count branches alone, each in full; `points` says the same in names.
        """
        return self._frontier

    def points(self) -> tuple[Placement, ...]:
        """Return the frontier as placements, the smallest first, computed once."""
        return self._points

    def place(self, memory_bytes: int) -> Placement:
        """Return the best placement whose backbone and branches fit in `memory_bytes`.

        Raises:
            BudgetError: not even the backbone fits.
        """
        start = perf_counter()
        self._branch_budget(memory_bytes)
        # Not the frontier's look-up: what shares units takes less than it was charged.
        best = next(placement for placement in reversed(self._points) if placement.size_bytes <= memory_bytes)
        return _timed(best, start)

    def place_in_time(self, memory_bytes: int, sending: Sending) -> Placement:
        """Return the best placement found that fits and can be sent in time (MEEdge 3.3.2, equation 1).

        Where the best for the memory cannot be sent, a share of the time left is spent on a search under both
        limits. The answer is never worse than the best point of the frontier that can be sent after it.

        Raises:
            BudgetError: not even the backbone fits, or it cannot be sent in time.
        """
        start = perf_counter()
        budget_bytes = self._branch_budget(memory_bytes)
        sending.check()
        best = self.place(memory_bytes)
        if _can_send(best, sending):
            return best
        found = self._search(budget_bytes, memory_bytes, sending)
        return _timed(_best_in_time((*self._points, *found), memory_bytes, sending), start)

    def place_hpf(
        self, memory_bytes: int, *, search_ms: float = 10.0, score: str = "m7", sending: Sending | None = None
    ) -> Placement:
        """Return the placement of MEEdge's own heuristic (3.3.3), which may search for `search_ms`.

        It searches with the paper's independent timing; its expectation is given as the device will have it. With
        `sending` it can be sent in time besides, and the search is given at most its share of the time.

        Raises:
            BudgetError: not even the backbone fits, or it cannot be sent in time.
            InvalidInputError: no such priority score, or a law that is not uniform.
        """
        start = perf_counter()
        if not self.distribution.is_uniform:
            raise InvalidInputError(
                "HPF is defined for kills that are equally likely at any time",
                where="method",
                do="Use the frontier, which weighs any law, or leave the distribution out",
            )
        budget_bytes = self._branch_budget(memory_bytes)
        if sending is None:
            found = self._problem.hpf(self._candidates, budget_bytes=budget_bytes, search_ms=search_ms, score=score)
            return _timed(found, start)
        sending.check()
        search_ms = min(search_ms, max(0.0, SEARCH_SHARE * sending.left_ms() - _SCORING_MS))
        found = self._problem.hpf(
            self._candidates,
            budget_bytes=budget_bytes,
            fetch_bytes=[sending.fetching.lacking_bytes(branch.units) for branch in self._candidates],
            fetch_limit_bytes=max(0.0, sending.limit_bytes(search_ms=_SCORING_MS + search_ms)),
            search_ms=search_ms,
            score=score,
        )
        bare = self._problem.placement((), method="hpf")
        return _timed(_best_in_time((bare, found), memory_bytes, sending), start)

    def expectation(self, names: Iterable[str]) -> float:
        """Return the mAE of resident branches given by name, of the bundle or of its baselines.

        Raises:
            NotFoundError: the bundle has no such branch.
        """
        known = {branch.name: branch for branch in (*self.bundle.branches, *_flat(self.bundle.baselines.values()))}
        try:
            chosen = [known[name] for name in names]
        except KeyError as error:
            raise NotFoundError(
                f"there is no branch {error}",
                where=f"bundle of {self.bundle.model}",
                do="Ask for a placement again",
            ) from error
        return self._problem.expectation(chosen)

    @cached_property
    def _frontier(self) -> PlacementFrontier:
        start = perf_counter()
        frontier = self._problem.frontier(self._candidates, [branch.size_bytes for branch in self._candidates])
        self._frontier_ms = (perf_counter() - start) * 1e3
        return frontier

    @cached_property
    def _points(self) -> tuple[Placement, ...]:
        return self._problem.points(self._frontier, self._candidates)

    def _search(self, budget_bytes: int, memory_bytes: int, sending: Sending) -> tuple[Placement, ...]:
        """Return placements that may be better than the frontier's points, chosen for what can be sent after this."""
        share_ms = SEARCH_SHARE * sending.left_ms()
        if share_ms < _SCORING_MS:
            return ()
        hpf_ms = min(share_ms - _SCORING_MS, _HPF_MS)
        planned_ms = _SCORING_MS + hpf_ms
        is_time_for_frontier = planned_ms + self._frontier_ms <= share_ms
        if is_time_for_frontier:
            planned_ms += self._frontier_ms
        limit_bytes = sending.limit_bytes(search_ms=planned_ms)
        fetch_bytes = {branch.name: sending.fetching.lacking_bytes(branch.units) for branch in self._candidates}
        within = [
            branch
            for branch in self._candidates
            if branch.size_bytes <= budget_bytes and fetch_bytes[branch.name] <= limit_bytes
        ]
        fetches = [fetch_bytes[branch.name] for branch in within]
        by_fetch: tuple[Placement, ...] = ()
        if is_time_for_frontier:
            frontier = self._problem.frontier(within, fetches)
            by_fetch = self._problem.points(frontier, within)
            best = by_fetch[bisect_right(frontier.size_bytes, limit_bytes) - 1]
            if best.size_bytes <= memory_bytes:
                return by_fetch  # it is the best of all that can be sent, whatever its size
        found = self._problem.hpf(
            within,
            budget_bytes=budget_bytes,
            fetch_bytes=fetches,
            fetch_limit_bytes=limit_bytes,
            search_ms=hpf_ms,
            timing="cumulative",
        )
        return (*by_fetch, found)

    def _branch_budget(self, memory_bytes: int) -> int:
        need = self.bundle.backbone_bytes
        if memory_bytes < need:
            raise BudgetError(
                f"the backbone alone needs {need} bytes ({format_bytes(need)}), the budget is {memory_bytes}",
                where="memory_bytes",
                do="Give the model more memory, or serve this device a smaller model",
            )
        return memory_bytes - need


def _can_send(placement: Placement, sending: Sending) -> bool:
    return sending.branch_bytes(placement.branches) <= sending.limit_bytes()


def _best_in_time(choices: Iterable[Placement], memory_bytes: int, sending: Sending) -> Placement:
    limit_bytes = sending.limit_bytes()
    feasible = [
        placement
        for placement in choices
        if placement.size_bytes <= memory_bytes and sending.branch_bytes(placement.branches) <= limit_bytes
    ]
    if not feasible:
        sending.check()  # not even the bare backbone: the time is over
    return max(feasible, key=lambda placement: placement.expectation)


def _timed(placement: Placement, start_s: float) -> Placement:
    return replace(placement, search_ms=_since_ms(start_s))


def _since_ms(start_s: float) -> float:
    return (perf_counter() - start_s) * 1e3


def _flat(groups: Iterable[tuple[Branch, ...]]) -> Iterable[Branch]:
    return (branch for group in groups for branch in group)
