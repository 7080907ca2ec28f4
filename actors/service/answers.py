"""What the placement service answers: bundles and placements put into its bodies."""

from collections.abc import Iterable
from time import perf_counter

from meedge_ray.actors.service.catalog import Catalog, ServedModel
from meedge_ray.api.serving import (
    FrontierPoint,
    FrontierResponse,
    ModelSummary,
    PlacementRequest,
    PlacementResponse,
    UnitBody,
)
from meedge_ray.api.time_distribution import UNIFORM
from meedge_ray.domain.elastic import Unit, distinct_units
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.domain.placement import Placement
from meedge_ray.runtime.placing import Placer
from meedge_ray.runtime.sending import Fetching, Sending


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
    placer = catalog.placer(model, device_type, horizon_ms)
    return FrontierResponse(
        model=model,
        device_type=placer.device_type,
        horizon_ms=placer.horizon_ms,
        points=[
            FrontierPoint(size_bytes=point.size_bytes, expectation=point.expectation, branches=list(point.branches))
            for point in placer.points()
        ],
    )


def is_looked_up(request: PlacementRequest) -> bool:
    """Return whether a placement is a mere look-up, for the frontier it is on was computed with the catalog."""
    is_default = request.horizon_ms is None and request.distribution == UNIFORM
    return is_default and request.method == "frontier" and request.latency_budget_ms is None


def place(catalog: Catalog, model: str, request: PlacementRequest, request_bytes: int) -> PlacementResponse:
    """Choose the units for a device's budgets (MEEdge 3.3.2).

    Raises:
        NotFoundError: no such model, or no such profile.
        BudgetError: not even the bare backbone meets the budgets.
        InvalidInputError: a latency budget without a rate, HPF for a law that is not uniform, and what `frontier`
            raises. Of a field of the request, `where` is its path.
    """
    start = perf_counter()
    served = catalog.model(model)
    fetching = Fetching(served.bundle, request.held)
    try:
        placer = catalog.placer(model, request.device_type, request.horizon_ms, request.distribution)
        chosen = _chosen(placer, request, _sending(fetching, request, request_bytes, start))
    except InvalidInputError as error:
        if error.where.partition(".")[0] not in PlacementRequest.model_fields:
            raise
        raise type(error)(error.what, where=f"body.{error.where}", do=error.do) from None
    units = distinct_units((*fetching.blocks, *fetching.units(chosen.branches)))
    fetch = fetching.lacking(units)
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


def _sending(fetching: Fetching, request: PlacementRequest, request_bytes: int, start_s: float) -> Sending | None:
    if request.latency_budget_ms is None:
        return None
    if request.rate_bps is None:
        raise InvalidInputError(
            "a latency budget needs the link's rate", where="rate_bps", do="Measure it and send it along"
        )
    return Sending(
        fetching=fetching,
        latency_budget_ms=request.latency_budget_ms,
        rate_bps=request.rate_bps,
        request_bytes=request_bytes,
        start_s=start_s,
    )


def _chosen(placer: Placer, request: PlacementRequest, sending: Sending | None) -> Placement:
    if request.method == "hpf":
        return placer.place_hpf(request.memory_bytes, score=request.score or "m7", sending=sending)
    if sending is None:
        return placer.place(request.memory_bytes)
    return placer.place_in_time(request.memory_bytes, sending)


def _bodies(units: Iterable[Unit]) -> list[UnitBody]:
    return [UnitBody(sha256=unit.sha256, size_bytes=unit.size_bytes) for unit in units]
