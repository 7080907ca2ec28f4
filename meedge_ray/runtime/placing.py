"""From a bundle and its profile to placements: the numbers that the search works on, and names for its answers."""

from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np

from meedge_ray.domain.elastic import Branch, Bundle, Profile
from meedge_ray.domain.errors import BudgetError, InvalidInputError, NotFoundError
from meedge_ray.domain.placement import Placement
from meedge_ray.domain.quantity import format_bytes
from meedge_ray.search.hpf import hpf_placement
from meedge_ray.search.placement import PlacementFrontier, placement_expectation, placement_frontier

# Methods can be compared over one fixed span only, and it must leave the single exit a time to be at hand:
# over exactly its own time the backbone without branches would count for nothing.
HORIZON_FACTOR = 1.25


class Placer:
    """Chooses the branches of one bundle for one device type. Thread-safe."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device_type: str | None = None,
        horizon_ms: float | None = None,
        held: Collection[str] | None = None,
    ) -> None:
        """Prepare for placing.

        Args:
            bundle: the model and its profiles.
            device_type: whose profile counts; None takes the only one there is.
            horizon_ms: the span in which the kill may come; None takes 1.25 times the single exit's time.
            held: SHA-256 of the only units that may be placed; None allows all.

        Raises:
            NotFoundError: no profile of that device type.
            InvalidInputError: several profiles and none named, or a horizon below the single exit's time.
        """
        self.bundle = bundle
        self.profile = _profile(bundle, device_type)
        single_exit_ms = self.profile.single_exit_ms
        self.horizon_ms = HORIZON_FACTOR * single_exit_ms if horizon_ms is None else horizon_ms
        if not self.horizon_ms >= single_exit_ms:
            raise InvalidInputError(
                f"a horizon of {horizon_ms} ms is shorter than the single exit's {single_exit_ms:.3g} ms",
                where="horizon_ms",
                do="Give a longer one, or leave it out",
            )
        self._candidates = [branch for branch in bundle.branches if held is None or branch.unit.sha256 in held]

    @property
    def device_type(self) -> str:
        """The device type whose profile counts."""
        return self.profile.device_type

    def restricted(self, held: Collection[str]) -> "Placer":
        """Return a placer that places only branches whose unit is in `held`: what can be done without a server."""
        return Placer(self.bundle, device_type=self.device_type, horizon_ms=self.horizon_ms, held=held)

    def frontier(self) -> PlacementFrontier:
        """Return the best placement for every budget, computed once.

        Its sizes count branches alone; `points` says the same in names.
        """
        return self._frontier

    def points(self) -> list[Placement]:
        """Return the frontier as placements, the smallest first."""
        return [self._at(point, search_ms=0.0) for point in range(len(self._frontier.size_bytes))]

    def place(self, memory_bytes: int) -> Placement:
        """Return the best placement whose backbone and branches fit in `memory_bytes`.

        Raises:
            BudgetError: not even the backbone fits.
        """
        start = perf_counter()
        point = self._frontier.at(self._branch_budget(memory_bytes))
        assert point is not None  # the empty placement fits every budget from 0 on
        return self._at(point, search_ms=(perf_counter() - start) * 1e3)

    def place_hpf(self, memory_bytes: int, *, search_ms: float = 10.0) -> Placement:
        """Return the placement of MEEdge's own heuristic (3.3.3), which may search for `search_ms`.

        It searches with the paper's independent timing; its expectation is given as the device will have it.

        Raises:
            BudgetError: not even the backbone fits.
        """
        start = perf_counter()
        found = hpf_placement(
            **self._arrays(self._candidates),
            size_bytes=_sizes(self._candidates),
            budget_bytes=self._branch_budget(memory_bytes),
            search_ms=search_ms,
        )
        taken_ms = (perf_counter() - start) * 1e3
        chosen = sorted((self._candidates[index] for index in found.members), key=_running_order)
        expectation = self._expectation(chosen)
        return self._placement(chosen, expectation, method="hpf", search_ms=taken_ms)

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
        return self._expectation(chosen)

    @cached_property
    def _frontier(self) -> PlacementFrontier:
        return placement_frontier(**self._arrays(self._candidates), size_bytes=_sizes(self._candidates))

    def _expectation(self, chosen: Sequence[Branch]) -> float:
        return placement_expectation(range(len(chosen)), **self._arrays(chosen))

    def _branch_budget(self, memory_bytes: int) -> int:
        need = self.bundle.backbone_bytes
        if memory_bytes < need:
            raise BudgetError(
                f"the backbone alone needs {need} bytes ({format_bytes(need)}), the budget is {memory_bytes}",
                where="memory_bytes",
                do="Give the model more memory, or serve this device a smaller model",
            )
        return memory_bytes - need

    def _at(self, point: int, *, search_ms: float) -> Placement:
        chosen = [self._candidates[index] for index in self._frontier.members(point)]
        expectation = float(self._frontier.expectation[point])
        return self._placement(chosen, expectation, method="frontier", search_ms=search_ms)

    def _placement(self, chosen: Sequence[Branch], expectation: float, *, method: str, search_ms: float) -> Placement:
        return Placement(
            branches=tuple(branch.name for branch in chosen),
            size_bytes=self.bundle.backbone_bytes + sum(_sizes(chosen)),
            expectation=expectation,
            horizon_ms=self.horizon_ms,
            device_type=self.device_type,
            method=method,
            search_ms=search_ms,
        )

    def _arrays(self, branches: Sequence[Branch]) -> dict[str, Any]:
        return {
            "exit_index": np.array([branch.exit_index for branch in branches], np.int64),
            "duration_ms": np.array([self.profile.branch_ms[branch.name] for branch in branches], np.float64),
            "accuracy": np.array([branch.accuracy for branch in branches], np.float64),
            "backbone_ms": np.cumsum(self.profile.block_ms)[:-1],
            "final_ms": self.profile.single_exit_ms,
            "final_accuracy": self.bundle.final_accuracy,
            "horizon_ms": self.horizon_ms,
        }


def _profile(bundle: Bundle, device_type: str | None) -> Profile:
    known = ", ".join(sorted(bundle.profiles)) or "none"
    where = f"bundle of {bundle.model}"
    if device_type is None:
        if len(bundle.profiles) != 1:
            raise InvalidInputError(
                "the device type must be named",
                where=where,
                do=f"Name one of the profiles there are: {known}",
            )
        [profile] = bundle.profiles.values()
        return profile
    if device_type not in bundle.profiles:
        raise NotFoundError(
            f"there is no profile of device type {device_type}",
            where=where,
            do=f"Profile the model on such a device, or name one of: {known}",
        )
    return bundle.profiles[device_type]


def _running_order(branch: Branch) -> tuple[int, float]:
    return branch.exit_index, branch.accuracy


def _sizes(branches: Iterable[Branch]) -> list[int]:
    return [branch.unit.size_bytes for branch in branches]


def _flat(groups: Iterable[tuple[Branch, ...]]) -> Iterable[Branch]:
    return (branch for group in groups for branch in group)
