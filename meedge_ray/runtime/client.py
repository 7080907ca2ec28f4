"""The placement service seen from a device: every answer checked, broken downloads resumed."""

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from meedge_ray.api.devices import CredentialBody, HeartbeatAnswer, Registration
from meedge_ray.api.serving import (
    ErrorBody,
    ModelList,
    PlacementRequest,
    PlacementResponse,
    UnitRest,
    UnitsRequest,
)
from meedge_ray.bundle.manifest import parse_bundle
from meedge_ray.bundle.store import sha256_of
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import (
    CredentialError,
    IntegrityError,
    InvalidInputError,
    MeedgeError,
    NotFoundError,
    UnavailableError,
)
from meedge_ray.runtime.batch import Batch
from meedge_ray.runtime.downloads import Download, RateLimit
from meedge_ray.runtime.trust import distrust, trusting

# Pauses before a broken transmission is taken up again; when they are used up the server counts as away.
BACK_OFF_S = (0.05, 0.2, 0.5)

# For servers that are not ours, such as a proxy in between.
_ADVICE: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "Give the token the service was started with",
    HTTPStatus.FORBIDDEN: "Give the token the service was started with",
    HTTPStatus.NOT_FOUND: "Check the URL of the service",
}

# Servers drop a connection that was silent for 5 s, and over a slow link a request may meet them doing so.
_SILENT_S = 2.0

_UNITS = "/v1/units"

_TOKEN = re.compile(r"[!-~]*")

_BodyT = TypeVar("_BodyT", bound=BaseModel)


class ServiceClient:
    """The placement service over HTTP. Thread-safe; `close` it or use it as a context manager.

    Every method raises UnavailableError when the service does not answer or answers nonsense,
    NotFoundError and InvalidInputError when it says so (also when it refuses the token), and IntegrityError
    for bytes that are not what they are named.
    """

    def __init__(self, base_url: str, token: str = "", *, ca_file: Path | None = None, timeout_s: float = 10.0) -> None:
        """Prepare for the service at `base_url`, such as `https://host:8000`; nothing is sent yet.

        Args:
            base_url: http or https.
            token: the bearer token that the service asks for.
            ca_file: certificates, as PEM, of the authorities that alone may vouch for an https service; None takes
                the public ones.
            timeout_s: the longest that a connection, or an answer's next bytes, may take.

        Raises:
            InvalidInputError: that is no HTTP URL, no token, or no such file.
        """
        try:
            url = httpx.URL(base_url)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise _bad_url(base_url) from error
        if url.scheme not in ("http", "https") or not url.host:
            raise _bad_url(base_url)
        self.renew_token(token)
        verify = _trusted(url, ca_file)
        limits = httpx.Limits(keepalive_expiry=_SILENT_S)
        self._http = httpx.Client(base_url=url, auth=self._with_token, verify=verify, timeout=timeout_s, limits=limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def renew_token(self, token: str) -> None:
        """Send this token from the next request on.

        Raises:
            InvalidInputError: it has characters that no header takes; the former one stays.
        """
        if not _TOKEN.fullmatch(token):
            raise InvalidInputError(
                "the token has blanks, line ends or other characters that cannot be sent",
                where="token",
                do="Give it as the service shows it, in one line",
            )
        self._token = token

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

    def register(self, device: str, registration: Registration) -> CredentialBody:
        """Register a device without Ray, bearing the enrolment token, and return what it bears from then on."""
        return self._parsed(self._send("POST", _device(device), body=registration.model_dump_json()), CredentialBody)

    def renew_credential(self, device: str) -> CredentialBody:
        """Return the credential that takes the place of the one that is borne."""
        return self._parsed(self._send("POST", f"{_device(device)}/credential"), CredentialBody)

    def heartbeat(self, device: str, status: str) -> HeartbeatAnswer:
        """Say how a device is, which is JSON of a `Heartbeat`, and return what it is to do."""
        return self._parsed(self._send("PUT", f"{_device(device)}/status", body=status), HeartbeatAnswer)

    def receive(
        self,
        downloads: Sequence[Download],
        *,
        limit: RateLimit | None = None,
        arrived: Callable[[int], None],
        whole: Callable[[Download], None],
    ) -> None:
        """Receive what the downloads lack, all in one answer; a transmission that breaks off goes on where it broke.

        When this raises, units that were whole have been handed over, and of the one under way the download keeps
        what has come, unless that is damaged.

        Args:
            downloads: at most MOST_UNITS; all are intact afterwards.
            limit: waited for after every chunk.
            arrived: told the bytes of every chunk, of at most 64 KiB; whatever it raises ends the transmission.
            whole: told of every unit as soon as it is intact, also of those that lacked nothing.
        """
        batch = Batch(downloads, whole, where=self._where(_UNITS))
        pauses = iter(BACK_OFF_S)
        while lacking := batch.lacking():
            try:
                self._receive(batch, limit, arrived)
            except UnavailableError:
                if len(batch.lacking()) < len(lacking):
                    pauses = iter(BACK_OFF_S)
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise
                time.sleep(pause_s)

    def _receive(self, batch: Batch, limit: RateLimit | None, arrived: Callable[[int], None]) -> None:
        rests = [UnitRest(sha256=rest.sha256, offset_bytes=rest.size_bytes) for rest in batch.lacking()]
        content = UnitsRequest(units=rests).model_dump_json()
        # A transparent compression would let a cut take with it what had come.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        with self._answers(_UNITS), self._http.stream("POST", _UNITS, content=content, headers=headers) as response:
            if limit is not None:
                _bound_socket(response, limit.in_flight_bytes)
            self._check(response)
            for size_bytes in batch.take(response.iter_bytes()):  # as the network gives them: never more than 64 KiB
                arrived(size_bytes)
                if limit is not None:
                    limit.take(size_bytes)

    def _with_token(self, request: httpx.Request) -> httpx.Request:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

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
            wrong = distrust(error) if isinstance(error, httpx.ConnectError) else None
            if wrong is not None:
                raise UnavailableError(wrong[0], where=self._where(path), do=wrong[1]) from error
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


def _device(name: str) -> str:
    return f"/v1/devices/{quote(name, safe='')}"


def _bad_url(base_url: str) -> InvalidInputError:
    return InvalidInputError(f"{base_url!r} is no HTTP URL", where="service URL", do="Write it like https://host:8000")


def _trusted(url: httpx.URL, ca_file: Path | None) -> ssl.SSLContext | bool:
    if url.scheme == "https":
        return True if ca_file is None else trusting(ca_file)
    if ca_file is not None:
        raise InvalidInputError(
            "a CA file was given, but nothing is encrypted on an http URL",
            where="service URL",
            do="Write it with https, or leave the CA file out",
        )
    # Nobody. The public authorities, which httpx would load, take a device a tenth of a second and a megabyte.
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _kind(status: int) -> type[MeedgeError]:
    if status == HTTPStatus.NOT_FOUND:
        return NotFoundError
    if status == HTTPStatus.UNAUTHORIZED:
        return CredentialError
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
        return UnavailableError
    return InvalidInputError if 400 <= status < 500 else UnavailableError


def _strong(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _bound_socket(response: httpx.Response, size_bytes: int) -> None:
    stream = response.extensions.get("network_stream")
    connection = None if stream is None else stream.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)
