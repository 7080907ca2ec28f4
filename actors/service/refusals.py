"""Errors as the placement service sends them: what is wrong, where, and what to do."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from meedge_ray.api.serving import ErrorBody
from meedge_ray.domain.errors import MeedgeError


def add_handlers(app: FastAPI) -> None:
    """Let every error of the application be sent so."""
    app.add_exception_handler(MeedgeError, _on_meedge_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_defect)


def error_response(
    status: int, what: str, *, where: str, do: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return an error as every error of the service is."""
    return JSONResponse(ErrorBody(what=what, where=where, do=do).model_dump(), status, headers)


def refusal(error: MeedgeError) -> JSONResponse:
    """Return an error of ours as the service sends it."""
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 else None
    return error_response(error.http_status, error.what, where=error.where, do=error.do, headers=headers)


async def _on_meedge_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MeedgeError)
    return refusal(error)


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
