"""What the placement service answers: bundles and placements put into its bodies."""

from collections.abc import Iterable
from time import perf_counter

from meedge_ray.actors.catalog import Catalog, ServedModel
from meedge_ray.api.serving import (
    FrontierPoint,
    FrontierResponse,
    ModelSummary,
    PlacementRequest,
    PlacementResponse,
    UnitBody,
)
from meedge_ray.domain.elastic import Bundle, Unit
from meedge_ray.domain.errors import BudgetError, InvalidInputError
from meedge_ray.domain.placement import Placement


def summary(served: ServedModel) -> ModelSummary:
    """Return a model for the list."""
    bundle = served.bundle
    return ModelSummary(
        name=bundle.model,
        architecture=bundle.architecture,
        blocks=len(bundle.blocks),
        branches=len(bundle.branches),
        classes=len(bundle.classes),
        final_accuracy=bundle.final_accuracy,
        backbone_bytes=bundle.backbone_bytes,
        device_types=sorted(bundle.profiles),
        bundle_sha256=served.sha256,
    )


def frontier(catalog: Catalog, model: str, device_type: str | None, horizon_ms: float | None) -> FrontierResponse:
    """Return the best placement for every memory budget.

    Raises:
        NotFoundError: no such model, or no such profile.
        InvalidInputError: several profiles and none named, or too short a horizon.
    """
    points = catalog.points(model, device_type, horizon_ms)
    return FrontierResponse(
        model=model,
        device_type=points[0].device_type,
        horizon_ms=points[0].horizon_ms,
        points=[
            FrontierPoint(size_bytes=point.size_bytes, expectation=point.expectation, branches=list(point.branches))
            for point in points
        ],
    )


def place(catalog: Catalog, model: str, request: PlacementRequest, request_bytes: int) -> PlacementResponse:
    """Choose the units for a device's budgets (MEEdge 3.3.2).

    With a latency budget L the choice is the best point of the frontier for which, equation 1,
    (bits of the request + bits of the units to fetch) / rate + search time is at most L. Units held already
    cost nothing.

    Raises:
        NotFoundError: no such model, or no such profile.
        BudgetError: not even the bare backbone meets the budgets.
        InvalidInputError: a latency budget without a rate, and what `frontier` raises.
    """
    start = perf_counter()
    served = catalog.model(model)
    fetching = _Fetching(served.bundle, frozenset(request.held))
    chosen = catalog.placer(model, request.device_type, request.horizon_ms).place(request.memory_bytes)
    if request.latency_budget_ms is not None:
        if request.rate_bps is None:
            raise InvalidInputError(
                "a latency budget needs the link's rate",
                where="body.rate_bps",
                do="Measure it and send it along",
            )
        points = catalog.points(model, request.device_type, request.horizon_ms)
        left_ms = request.latency_budget_ms - (perf_counter() - start) * 1e3
        limit_bytes = left_ms * request.rate_bps / 8e3 - request_bytes
        chosen = _best_in_time(points, request.memory_bytes, fetching, limit_bytes)
    units = fetching.units(chosen.branches)
    fetch = [unit for unit in units if unit.sha256 not in fetching.held]
    sent_bytes = request_bytes + sum(unit.size_bytes for unit in fetch)
    return PlacementResponse(
        model=model,
        bundle_sha256=served.sha256,
        branches=list(chosen.branches),
        size_bytes=chosen.size_bytes,
        expectation=chosen.expectation,
        horizon_ms=chosen.horizon_ms,
        device_type=chosen.device_type,
        units=_bodies(units),
        fetch=_bodies(fetch),
        transmission_ms=None if request.rate_bps is None else sent_bytes * 8e3 / request.rate_bps,
        search_ms=(perf_counter() - start) * 1e3,
    )


class _Fetching:
    def __init__(self, bundle: Bundle, held: frozenset[str]) -> None:
        self.held = held
        self._blocks = [block.unit for block in bundle.blocks]
        self._branches = {branch.name: branch.unit for branch in bundle.branches}

    def units(self, branches: Iterable[str]) -> list[Unit]:
        """Return blocks first, then branches, each unit once."""
        named = [*self._blocks, *(self._branches[name] for name in branches)]
        return list({unit.sha256: unit for unit in named}.values())

    def missing_bytes(self, branches: Iterable[str]) -> int:
        return sum(unit.size_bytes for unit in self.units(branches) if unit.sha256 not in self.held)


def _best_in_time(
    points: tuple[Placement, ...], memory_bytes: int, fetching: _Fetching, limit_bytes: float
) -> Placement:
    for point in reversed(points):
        if point.size_bytes <= memory_bytes and fetching.missing_bytes(point.branches) <= limit_bytes:
            return point
    raise BudgetError(
        f"the backbone's missing blocks are {fetching.missing_bytes(())} bytes, "
        f"{max(0.0, limit_bytes):.0f} can be sent in time",
        where="body.latency_budget_ms",
        do="Allow more time, use a faster link, or fetch the blocks before",
    )


def _bodies(units: Iterable[Unit]) -> list[UnitBody]:
    return [UnitBody(sha256=unit.sha256, size_bytes=unit.size_bytes) for unit in units]
