"""What a device lacks, and what of it can be sent in the time it gives (MEEdge 3.3.2, equation 1)."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from time import perf_counter

from meedge_ray.domain.elastic import Bundle, Unit, distinct_units, units_of
from meedge_ray.domain.errors import BudgetError


class Fetching:
    """The units of a bundle, and which of them a device holds; held units cost nothing."""

    def __init__(self, bundle: Bundle, held: Collection[str] = ()) -> None:
        self._held = frozenset(held)
        self._branches = {branch.name: branch for branch in bundle.branches}
        self.blocks = distinct_units(block.unit for block in bundle.blocks)

    def units(self, names: Iterable[str]) -> tuple[Unit, ...]:
        """Return the units of these branches, each once."""
        return units_of(self._branches[name] for name in names)

    def lacking(self, units: Iterable[Unit]) -> tuple[Unit, ...]:
        """Return those of the units that are not held."""
        return tuple(unit for unit in units if unit.sha256 not in self._held)

    def lacking_bytes(self, units: Iterable[Unit]) -> int:
        """Return the bytes of those that are not held."""
        return sum(unit.size_bytes for unit in self.lacking(units))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """A latency budget L and a link of rate R.

    A placement is in time if bits(request) / R + bits(lacking units) / R + search time <= L.

    The search's time counts from `start_s`, a reading of `perf_counter`.
    """

    fetching: Fetching
    latency_budget_ms: float
    rate_bps: float
    request_bytes: int = 0
    start_s: float = field(default_factory=perf_counter)

    def left_ms(self) -> float:
        """Return the time left now for the search and for branches; the request and missing blocks come first."""
        first_bytes = self.request_bytes + self.fetching.lacking_bytes(self.fetching.blocks)
        return self.latency_budget_ms - self._takes_ms(first_bytes) - self._spent_ms()

    def limit_bytes(self, *, search_ms: float = 0.0) -> float:
        """Return the bytes of branches that can be sent after `search_ms` more of search; below 0 it is too late."""
        return (self.left_ms() - search_ms) * self.rate_bps / 8e3

    def branch_bytes(self, names: Iterable[str]) -> int:
        """Return the bytes to send for these branches."""
        return self.fetching.lacking_bytes(self.fetching.units(names))

    def check(self) -> None:
        """Refuse what no search can help.

        Raises:
            BudgetError: there is no time for the request itself, or for the backbone's missing blocks.
        """
        if self.left_ms() >= 0:
            return
        what = f"{self.latency_budget_ms:.6g} ms are over before any unit can be sent"
        blocks_ms = self.latency_budget_ms - self._takes_ms(self.request_bytes) - self._spent_ms()
        if blocks_ms > 0:
            missing, limit = self.fetching.lacking_bytes(self.fetching.blocks), blocks_ms * self.rate_bps / 8e3
            what = f"the backbone's missing blocks are {missing} bytes, {limit:.0f} can be sent in time"
        raise BudgetError(
            what, where="latency_budget_ms", do="Allow more time, use a faster link, or fetch the blocks before"
        )

    def _takes_ms(self, size_bytes: int) -> float:
        return size_bytes * 8e3 / self.rate_bps

    def _spent_ms(self) -> float:
        return (perf_counter() - self.start_s) * 1e3
