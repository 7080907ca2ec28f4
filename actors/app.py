"""The placement service's HTTP interface. It knows no Ray: any ASGI server can run it."""

import re
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response, Security
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from meedge_ray.actors import answers
from meedge_ray.actors.catalog import Catalog
from meedge_ray.api.serving import ErrorBody, FrontierResponse, ModelList, PlacementRequest, PlacementResponse
from meedge_ray.domain.errors import InvalidInputError, MeedgeError

_OPEN_PATHS = frozenset({"/healthz", "/docs", "/openapi.json"})
_MAX_BODY_BYTES = 16 * 2**20  # twice what the longest allowed list of held units takes
_BYTE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (401, 404, 422, 500)}

_DESCRIPTION = """
A device asks which branches to hold in the memory it has now, and pulls the units it lacks.
Units are immutable: they are named by the SHA-256 of their bytes and can be cached for ever.
Every error says `what` is wrong, `where`, and what to `do`.
"""


class UnitResponse(FileResponse):
    """A unit straight from its file, so that no unit is held in memory."""

    chunk_size = 256 * 1024


class Gate:
    """Lets in who bears the token, and no body too large to be a request of ours.

    It stands before routing and parsing: without the token nothing can be probed and no body is read.
    """

    def __init__(self, app: ASGIApp, served: "Served") -> None:
        self._app = app
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a refusal."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if scope["path"].removeprefix(scope.get("root_path", "")) in _OPEN_PATHS:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        expected = f"Bearer {self._served.token}".encode()
        if not secrets.compare_digest(f"{scheme.capitalize()} {given.strip()}".encode(), expected):
            return error_response(
                401,
                "the bearer token is missing or wrong",
                where="header Authorization",
                do="Send the token the service was started with, as 'Authorization: Bearer TOKEN'",
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
            return error_response(
                413,
                f"the body is longer than {_MAX_BODY_BYTES} bytes, or its length is not said",
                where="header Content-Length",
                do="Send a shorter body, and its length",
            )
        return None


class Served:
    """What a service serves now, and the token it asks for.

    A request looks here once, so that a new catalog in the old one's place is seen whole or not at all.
    """

    def __init__(self, catalog: Catalog, token: str) -> None:
        """Serve `catalog` to those who bear `token`; see `replace`."""
        self.replace(catalog, token)

    def replace(self, catalog: Catalog, token: str) -> None:
        """Serve another catalog, to those who bear this token.

        Raises:
            InvalidInputError: the token is empty.
        """
        if not token:
            raise InvalidInputError("the token is empty", where="token", do="Give a long random one")
        self.catalog, self.token = catalog, token


def create_app(served: Served) -> FastAPI:
    """Return the service of what is `served`."""
    app = FastAPI(
        title="MEEdge placement service",
        version="v1",
        description=_DESCRIPTION,
        redoc_url=None,
    )
    app.include_router(_routes(served))

    @app.get("/healthz", tags=["health"])
    def healthz() -> dict[str, str]:
        """Say that the service answers; needs no token."""
        return {"status": "ok"}

    app.add_middleware(Gate, served=served)
    app.add_exception_handler(MeedgeError, _on_meedge_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_defect)
    return app


def _routes(served: Served) -> APIRouter:
    router = APIRouter(
        prefix="/v1",
        # For the OpenAPI page alone: the gate has checked the token before.
        dependencies=[Security(HTTPBearer(auto_error=False, description="The token the service was started with"))],
        responses=_ERRORS,
    )

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
    def place(request: Request, model: str, body: PlacementRequest) -> PlacementResponse:
        """Choose the units for a memory budget, and for the time there is to send them (MEEdge, equation 1)."""
        return answers.place(served.catalog, model, body, int(request.headers.get("content-length", 0)))

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


def error_response(
    status: int, what: str, *, where: str, do: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return an error as every error of the service is."""
    return JSONResponse(ErrorBody(what=what, where=where, do=do).model_dump(), status, headers)


async def _on_meedge_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MeedgeError)
    return error_response(error.http_status, error.what, where=error.where, do=error.do)


async def _on_validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    return error_response(
        422,
        "; ".join(dict.fromkeys(problem["msg"].removeprefix("Value error, ") for problem in problems)),
        where=", ".join(".".join(str(part) for part in problem["loc"]) for problem in problems),
        do="Correct the request; the page /docs says what it may hold",
    )


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_response(
        error.status_code,
        error.detail,
        where=f"{request.method} {request.url.path}",
        do="The page /docs lists what there is",
        headers=dict(error.headers or {}),
    )


async def _on_defect(request: Request, _error: Exception) -> JSONResponse:
    return error_response(
        500,
        "the service failed on this request",
        where=f"{request.method} {request.url.path}",
        do="Its log says why; please report it",
    )
