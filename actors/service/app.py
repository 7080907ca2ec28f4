"""The placement service's HTTP interface. It knows no Ray: any ASGI server can run it."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response, Security
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer

from meedge_ray.actors.service import answers
from meedge_ray.actors.service.admission import Gate, Served, bearer_of
from meedge_ray.actors.service.device_routes import device_routes
from meedge_ray.actors.service.refusals import add_handlers, error_response
from meedge_ray.actors.service.registry import Registry
from meedge_ray.actors.service.roster import InProcess, RegistryLink, Roster
from meedge_ray.actors.service.unit_stream import CHUNK_BYTES, UnitStream, unit_stream
from meedge_ray.api.serving import (
    ErrorBody,
    FrontierResponse,
    ModelList,
    PlacementRequest,
    PlacementResponse,
    UnitsRequest,
)

_BYTE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (401, 403, 404, 422, 500)}

_DESCRIPTION = """
A device asks which branches to hold in the memory it has now, and pulls the units it lacks.
Units are immutable: they are named by the SHA-256 of their bytes and can be cached for ever.
Every error says `what` is wrong, `where`, and what to `do`.
"""


class UnitResponse(FileResponse):
    """A unit straight from its file, so that no unit is held in memory."""

    chunk_size = CHUNK_BYTES


def create_app(served: Served, registry: RegistryLink | None = None) -> FastAPI:
    """Return the service of what is `served`, whose devices are in the registry; None: in one that it alone has."""
    roster = Roster(registry or InProcess(Registry()))
    app = FastAPI(
        title="MEEdge placement service",
        version="v1",
        description=_DESCRIPTION,
        redoc_url=None,
    )
    app.include_router(_routes(served, roster))

    @app.get("/healthz", tags=["health"])
    def healthz() -> dict[str, str]:
        """Say that the service answers; needs no token."""
        return {"status": "ok"}

    app.add_middleware(Gate, served=served, roster=roster)
    add_handlers(app)
    return app


def _routes(served: Served, roster: Roster) -> APIRouter:
    router = APIRouter(
        prefix="/v1",
        # For the OpenAPI page alone: the gate has checked the token before.
        dependencies=[Security(HTTPBearer(auto_error=False, description="The service's token, or a device's"))],
        responses=_ERRORS,
    )

    router.include_router(device_routes(served, roster))

    @router.get("/models", tags=["models"])
    def models() -> ModelList:
        """List the served models."""
        return ModelList(models=[answers.summary(model) for model in served.catalog.models])

    @router.get("/models/{model}/bundle", tags=["models"], response_class=Response)
    def bundle(request: Request, model: str) -> Response:
        """Return the bundle's canonical manifest: every unit, profile and accuracy."""
        found = served.catalog.model(model)
        headers = {"ETag": f'"{found.sha256}"', "Cache-Control": "private, no-cache"}
        if _is_known(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(found.manifest, media_type="application/json", headers=headers)

    @router.get("/models/{model}/frontier", tags=["placement"])
    def frontier(
        model: str,
        device_type: Annotated[str | None, Query(description="default: the only profile there is")] = None,
        horizon_ms: Annotated[
            float | None, Query(gt=0, allow_inf_nan=False, description="default: the profile's horizon")
        ] = None,
    ) -> FrontierResponse:
        """Return the best placement for every memory budget."""
        return answers.frontier(served.catalog, model, device_type, horizon_ms)

    @router.post("/models/{model}/placements", tags=["placement"])
    async def place(request: Request, model: str, body: PlacementRequest) -> PlacementResponse:
        """Choose the units for a memory budget, and for the time there is to send them (MEEdge, equation 1)."""
        given = (served.catalog, model, body, int(request.headers.get("content-length", 0)))
        # A look-up takes less than handing it to a thread, which a busy service waits milliseconds for.
        return answers.place(*given) if answers.is_looked_up(body) else await run_in_threadpool(answers.place, *given)

    @router.post("/units", tags=["units"], response_class=UnitStream)
    def units(request: Request, body: UnitsRequest) -> Response:
        """Return what is lacked of several units: their bytes one after the other, in the order they are named in."""
        catalog = served.catalog
        bearer_of(request.scope).check_units((unit.sha256 for unit in body.units), catalog)
        return unit_stream(catalog, body)

    @router.get("/units/{sha256}", tags=["units"], response_class=UnitResponse)
    def unit(
        request: Request, sha256: Annotated[str, InPath(description="64 lower-case hexadecimal digits")]
    ) -> Response:
        """Return a unit's bytes. Conditional and single-range requests let a broken download go on."""
        path = served.catalog.unit_path(sha256)
        headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
        if _is_known(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        stat = path.stat()
        if _is_range_wrong(request, headers["ETag"], stat.st_size):
            return error_response(
                416,
                f"the unit has no such range: it has {stat.st_size} bytes",
                where="header Range",
                do="Ask for one range inside the unit, such as bytes=0-1023, or for the whole unit",
                headers={"Content-Range": f"bytes */{stat.st_size}"},
            )
        return UnitResponse(path, headers=headers, media_type="application/octet-stream", stat_result=stat)

    return router


def _is_known(request: Request, etag: str) -> bool:
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return etag in known or "*" in known


def _is_range_wrong(request: Request, etag: str, size_bytes: int) -> bool:
    wanted = request.headers.get("range")
    # With If-Range of other bytes the whole unit is sent, whatever the range.
    if wanted is None or request.headers.get("if-range", etag) != etag:
        return False
    match = _BYTE_RANGE.fullmatch(wanted)
    if match is None:
        return True
    first, last = match.groups()
    if not first:
        return not last or int(last) == 0 or size_bytes == 0
    return int(first) >= size_bytes or (last != "" and int(last) < int(first))
