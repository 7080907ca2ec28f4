"""The subnets to choose from while the device's speed changes."""

from bisect import bisect_right
from collections.abc import Iterable
from math import isfinite

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.subnet_search import Measured


class SubnetPool:
    """The most accurate subnets at different latencies (AdaptiveNet 5.3).

    `members` are the fastest first; each is more accurate than all before it.
    """

    def __init__(self, measured: Iterable[Measured]) -> None:
        """Take those of any measured ones that no other is as fast and as accurate as.

        Raises:
            InvalidInputError: there is none, a latency is not above 0, or an accuracy not 0..1.
        """
        frontier: list[Measured] = []
        for each in sorted(measured, key=lambda each: (each.latency_ms, -each.accuracy)):
            if not (isfinite(each.latency_ms) and each.latency_ms > 0 and 0 <= each.accuracy <= 1):
                raise InvalidInputError(
                    f"subnet {each.subnet}: {each.latency_ms} ms and accuracy {each.accuracy} are not measured",
                    where="pool",
                )
            if not frontier or each.accuracy > frontier[-1].accuracy:
                frontier.append(each)
        if not frontier:
            raise InvalidInputError("there is no subnet to choose from", where="pool", do="Search for subnets first")
        self.members = tuple(frontier)

    @property
    def fastest(self) -> Measured:
        """The one of the lowest latency."""
        return self.members[0]

    def best(self, latency_ms: float) -> Measured | None:
        """Return the most accurate within a latency; None where even the fastest takes longer."""
        fitting = bisect_right(self.members, latency_ms, key=lambda member: member.latency_ms)
        return self.members[fitting - 1] if fitting else None

    def neighbours(self, member: Measured, reach: int) -> tuple[Measured, ...]:
        """Return the members at most so many places before and after one of them, the nearest first."""
        places = enumerate(self.members)
        own = self.members.index(member)
        near = sorted((abs(place - own), each) for place, each in places if 0 < abs(place - own) <= reach)
        return tuple(each for _, each in near)
