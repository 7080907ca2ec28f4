"""The placement service seen from a device: every answer checked, broken downloads resumed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from meedge_ray.api.serving import ErrorBody, ModelList, PlacementRequest, PlacementResponse, UnitBody
from meedge_ray.bundle.manifest import parse_bundle
from meedge_ray.bundle.store import sha256_of
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import (
    IntegrityError,
    InvalidInputError,
    MeedgeError,
    NotFoundError,
    UnavailableError,
)

# Pauses before a broken transmission is taken up again; when they are used up the server counts as away.
BACK_OFF_S = (0.05, 0.2, 0.5)

# For servers that are not ours, such as a proxy in between.
_ADVICE: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "Give the token the service was started with",
    HTTPStatus.FORBIDDEN: "Give the token the service was started with",
    HTTPStatus.NOT_FOUND: "Check the URL of the service",
}

_BodyT = TypeVar("_BodyT", bound=BaseModel)


class ServiceClient:
    """The placement service over HTTP. Thread-safe; `close` it or use it as a context manager.

    Every method raises UnavailableError when the service does not answer or answers nonsense,
    NotFoundError and InvalidInputError when it says so (also when it refuses the token), and IntegrityError
    for bytes that are not what they are named.
    """

    def __init__(self, base_url: str, token: str = "", *, timeout_s: float = 10.0) -> None:
        """Prepare for the service at `base_url`, such as `https://host:8000`; nothing is sent yet.

        Raises:
            InvalidInputError: that is no HTTP URL.
        """
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            url = httpx.URL(base_url)
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise _bad_url(base_url) from error
        if url.scheme not in ("http", "https") or not url.host:
            raise _bad_url(base_url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> ModelList:
        """Return every served model."""
        return self._parsed(self._send("GET", "/v1/models"), ModelList)

    def bundle(self, model: str) -> Bundle:
        """Return the model's bundle, verified against the hash the service sends with it."""
        response = self._send("GET", f"/v1/models/{quote(model, safe='')}/bundle")
        where = str(response.url)
        named = response.headers.get("X-Bundle-Sha256") or _strong(response.headers.get("ETag", ""))
        if sha256_of(response.content) != named:
            raise IntegrityError(
                "the bundle does not have the SHA-256 the service names", where=where, do="Fetch it again"
            )
        return parse_bundle(response.content, where=where)

    def place(self, model: str, request: PlacementRequest) -> PlacementResponse:
        """Return the best placement for what the device has."""
        path = f"/v1/models/{quote(model, safe='')}/placements"
        response = self._send("POST", path, body=request.model_dump_json(exclude_none=True))
        return self._parsed(response, PlacementResponse)

    def fetch_unit(self, unit: UnitBody) -> bytes:
        """Return the unit's bytes, verified; a transmission that breaks off goes on where it broke."""
        path = f"/v1/units/{unit.sha256}"
        received = bytearray()
        for pause_s in (*BACK_OFF_S, None):
            try:
                self._receive(path, unit, received)
                break
            except UnavailableError:
                if pause_s is None:
                    raise
                time.sleep(pause_s)
        data = bytes(received)
        if sha256_of(data) != unit.sha256:
            raise IntegrityError(
                f"unit {unit.sha256} arrived damaged",
                where=self._where(path),
                do="Fetch it again; if that fails, build the bundle on the server again",
            )
        return data

    def _receive(self, path: str, unit: UnitBody, received: bytearray) -> None:
        # What came before a break is kept in `received`, for the next try.
        offset = len(received)
        # A transparent compression would make offsets into the file meaningless.
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers |= {"Range": f"bytes={offset}-", "If-Range": f'"{unit.sha256}"'}
        with self._answers(path), self._http.stream("GET", path, headers=headers) as response:
            self._check(response)
            if response.status_code != HTTPStatus.PARTIAL_CONTENT or not _starts_at(response, offset):
                received.clear()
            for chunk in response.iter_bytes():
                received += chunk
                if len(received) > unit.size_bytes:
                    break
        if len(received) > unit.size_bytes:
            raise IntegrityError(
                f"unit {unit.sha256} is longer than the {unit.size_bytes} bytes it should have",
                where=self._where(path),
                do="Build the bundle on the server again",
            )
        if len(received) < unit.size_bytes:
            raise UnavailableError(
                f"the transmission broke off after {len(received)} of {unit.size_bytes} bytes",
                where=self._where(path),
                do="Try again later",
            )

    def _send(self, method: str, path: str, *, body: str | None = None) -> httpx.Response:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        with self._answers(path):
            response = self._http.request(method, path, content=body, headers=headers)
            self._check(response)
        return response

    @contextmanager
    def _answers(self, path: str) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise UnavailableError(
                f"the service does not answer ({error or type(error).__name__})",
                where=self._where(path),
                do="Check the URL and that the service runs; it may be back later",
            ) from error

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        status = response.status_code
        response.read()
        try:
            body = ErrorBody.model_validate_json(response.content)
        except ValidationError:
            what = f"the service answered {status} {response.reason_phrase}".rstrip()
            body = ErrorBody(what=what, where="", do=_ADVICE.get(status, ""))
        raise _kind(status)(body.what, where=body.where or str(response.url), do=body.do)

    def _parsed(self, response: httpx.Response, kind: type[_BodyT]) -> _BodyT:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise UnavailableError(
                f"the service's answer is no {kind.__name__}",
                where=str(response.url),
                do="Check that the URL is that of the placement service, of this version",
            ) from error

    def _where(self, path: str) -> str:
        return f"{str(self._http.base_url).rstrip('/')}{path}"


def _bad_url(base_url: str) -> InvalidInputError:
    return InvalidInputError(f"{base_url!r} is no HTTP URL", where="service URL", do="Write it like https://host:8000")


def _kind(status: int) -> type[MeedgeError]:
    if status == HTTPStatus.NOT_FOUND:
        return NotFoundError
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
        return UnavailableError
    return InvalidInputError if 400 <= status < 500 else UnavailableError


def _strong(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _starts_at(response: httpx.Response, offset: int) -> bool:
    return bool(response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"))
