"""A bundle on a device type as the numbers that the search works on, and its answers as placements."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from meedge_ray.api.time_distribution import TimeDistribution
from meedge_ray.domain.elastic import Branch, Bundle, Profile, bytes_of
from meedge_ray.domain.errors import InvalidInputError, NotFoundError
from meedge_ray.domain.placement import Placement
from meedge_ray.search.hpf import hpf_placement
from meedge_ray.search.inputs import Law
from meedge_ray.search.laws import histogram_law, normal_law
from meedge_ray.search.placement import PlacementFrontier, placement_expectation, placement_frontier


class Problem:
    """What placements of a bundle are judged by: a device type's times, a horizon, and the law of the kill's time."""

    def __init__(self, bundle: Bundle, profile: Profile, horizon_ms: float, distribution: TimeDistribution) -> None:
        """Prepare for searching.

        Raises:
            InvalidInputError: the horizon is below the single exit's time, or the law does not lie within it.
        """
        if not horizon_ms >= profile.single_exit_ms:
            raise InvalidInputError(
                f"a horizon of {horizon_ms} ms is shorter than the single exit's {profile.single_exit_ms:.3g} ms",
                where="horizon_ms",
                do="Give a longer one, or leave it out",
            )
        self.bundle, self.profile, self.horizon_ms = bundle, profile, horizon_ms
        self.law = time_law(distribution, horizon_ms)

    def frontier(self, branches: Sequence[Branch], sizes: Sequence[int]) -> PlacementFrontier:
        """Return the best placement of these branches for every budget of these sizes."""
        return placement_frontier(**self._arrays(branches), size_bytes=sizes, survival=self.law)

    def hpf(self, branches: Sequence[Branch], **options: Any) -> Placement:  # noqa: ANN401 - of hpf_placement
        """Return what HPF chooses of these branches; options as in `hpf_placement`.

        Raises:
            InvalidInputError: an option cannot be used.
        """
        sizes = [branch.size_bytes for branch in branches]
        found = hpf_placement(**self._arrays(branches), size_bytes=sizes, **options)
        return self.placement(sorted((branches[index] for index in found.members), key=_running_order), method="hpf")

    def expectation(self, chosen: Sequence[Branch]) -> float:
        """Return the mean accuracy expectation of branches that all run."""
        return placement_expectation(range(len(chosen)), **self._arrays(chosen), survival=self.law)

    def placement(self, chosen: Sequence[Branch], *, method: str, expectation: float | None = None) -> Placement:
        """Return branches, in the order they run, as a placement that took no search."""
        return Placement(
            branches=tuple(branch.name for branch in chosen),
            size_bytes=self.bundle.backbone_bytes + bytes_of(chosen),
            expectation=self.expectation(chosen) if expectation is None else expectation,
            horizon_ms=self.horizon_ms,
            device_type=self.profile.device_type,
            method=method,
            search_ms=0.0,
        )

    def points(self, frontier: PlacementFrontier, branches: Sequence[Branch]) -> tuple[Placement, ...]:
        """Return all points of a frontier of these branches as placements."""
        return tuple(
            self.placement(
                [branches[index] for index in frontier.members(point)],
                method="frontier",
                expectation=float(expectation),
            )
            for point, expectation in enumerate(frontier.expectation)
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


def time_law(distribution: TimeDistribution, horizon_ms: float) -> Law | None:
    """Return the law as the search takes it: None for the uniform one.

    Raises:
        InvalidInputError: it does not lie within the horizon; `where` is the field's path.
    """
    try:
        if distribution.histogram is not None:
            kind, law = "histogram", distribution.histogram
            return histogram_law(law.edges_ms, law.probabilities, horizon_ms=horizon_ms)
        if distribution.normal is not None:
            kind = "normal"
            return normal_law(
                distribution.normal.mean_ms, distribution.normal.standard_deviation_ms, horizon_ms=horizon_ms
            )
    except InvalidInputError as error:
        raise InvalidInputError(error.what, where=f"distribution.{kind}.{error.where}", do=error.do) from None
    return None


def find_profile(bundle: Bundle, device_type: str | None) -> Profile:
    """Return the profile of a device type, the only one there is if None.

    Raises:
        NotFoundError: no profile of that device type.
        InvalidInputError: several profiles and none named.
    """
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
