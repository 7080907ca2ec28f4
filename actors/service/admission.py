"""Who may do what at the placement service: decided before routing and parsing, from the bearer token alone."""

import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from meedge_ray.actors.service.catalog import Catalog
from meedge_ray.actors.service.credentials import Claims, Signer, is_credential
from meedge_ray.actors.service.refusals import refusal
from meedge_ray.actors.service.roster import Roster
from meedge_ray.api.devices import MOST_HEARTBEAT_BYTES
from meedge_ray.domain.errors import CredentialError, InvalidInputError, MeedgeError

_OPEN_PATHS = frozenset({"/healthz", "/docs", "/openapi.json"})
_MAX_BODY_BYTES = 16 * 2**20  # twice what the longest allowed list of held units takes
_BEARER = "meedge.bearer"  # in a request's scope

_ENROLMENT_MAY = re.compile(r"POST /v1/devices/[^/]+")
# What is not here no device may. What is named must be its own.
_DEVICE_MAY = (
    re.compile(r"GET /v1/models/(?P<model>[^/]+)/(bundle|frontier)"),
    re.compile(r"POST /v1/models/(?P<model>[^/]+)/placements"),
    re.compile(r"GET /v1/units/(?P<unit>[^/]+)"),
    re.compile(r"POST /v1/units"),  # named in the body: see `Bearer.check_units`
    re.compile(r"POST /v1/devices/(?P<device>[^/]+)(/credential)?"),
    re.compile(r"PUT /v1/devices/(?P<device>[^/]+)/status"),
)


class ForbiddenError(InvalidInputError):
    """Who bears that may not do that."""

    http_status = 403


class Served:
    """What a service serves now, and whom it lets in.

    A request looks here once, so that a new catalog in the old one's place is seen whole or not at all.
    """

    def __init__(self, catalog: Catalog, token: str, *, device_secret: bytes | None = None) -> None:
        """Serve `catalog` to those who bear `token`; see `replace`.

        Args:
            catalog: the bundles.
            token: that of who may do everything.
            device_secret: which credentials of devices are signed by; None takes the token.
        """
        self.replace(catalog, token)
        self.signer = Signer(device_secret or token.encode())

    def replace(self, catalog: Catalog, token: str) -> None:
        """Serve another catalog, to those who bear this token.

        Raises:
            InvalidInputError: the token is empty.
        """
        if not token:
            raise InvalidInputError("the token is empty", where="token", do="Give a long random one")
        self.catalog, self.token = catalog, token


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who asks: a device by its claims, whoever has the service's token, or a device that enrols."""

    claims: Claims | None = None
    is_admin: bool = False

    def device(self, name: str) -> Claims:
        """Return the claims of a device that speaks for itself.

        Raises:
            ForbiddenError: somebody else does.
        """
        if self.claims is None or self.claims.device != name:
            raise _forbidden(f"only device {name!r} itself may do that")
        return self.claims

    def check_units(self, names: Iterable[str], catalog: Catalog) -> None:
        """Check that a device reads units of its own model only.

        Raises:
            ForbiddenError: it does not.
        """
        if self.claims is not None:
            for name in names:
                _check_unit(self.claims, name, catalog)


def bearer_of(scope: Scope) -> Bearer:
    """Return who asks, as the gate has found."""
    bearer: Bearer = scope[_BEARER]
    return bearer


class Gate:
    """Lets in who bears a token, for what that allows, and no body too large to be a request of ours.

    It stands before routing and parsing: without a token nothing can be probed and no body is read.
    """

    def __init__(self, app: ASGIApp, served: Served, roster: Roster) -> None:
        self._app = app
        self._served, self._roster = served, roster

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            if path not in _OPEN_PATHS:
                headers = Headers(scope=scope)
                scope[_BEARER] = await self._admitted(headers, f"{scope['method']} {path}")
                _check_length(headers, MOST_HEARTBEAT_BYTES if path.startswith("/v1/devices/") else _MAX_BODY_BYTES)
        except MeedgeError as error:
            await refusal(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _admitted(self, headers: Headers, request: str) -> Bearer:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        token = given.strip() if scheme.lower() == "bearer" else ""
        if secrets.compare_digest(token.encode(), self._served.token.encode()):
            return Bearer(is_admin=True)
        if secrets.compare_digest(token.encode(), self._served.signer.enrolment_token.encode()):
            if _ENROLMENT_MAY.fullmatch(request) is None:
                raise _forbidden("the enrolment token lets devices register, and do nothing else")
            return Bearer()
        if is_credential(token):
            claims = self._served.signer.claims(token, time.time())
            await self._roster.admit(claims)
            _check_may(claims, request, self._served.catalog)
            return Bearer(claims)
        raise CredentialError(
            "the bearer token is missing or wrong",
            where="header Authorization",
            do="Send the token the service was started with, or a credential, as 'Authorization: Bearer TOKEN'",
        )


def _check_may(claims: Claims, request: str, catalog: Catalog) -> None:
    match = next(filter(None, (allowed.fullmatch(request) for allowed in _DEVICE_MAY)), None)
    if match is None:
        raise _forbidden("a device may not do that")
    named = match.groupdict()
    if named.get("model", claims.model) != claims.model:
        raise _forbidden(f"the credential is for model {claims.model!r}")
    if named.get("device", claims.device) != claims.device:
        raise _forbidden(f"the credential is that of device {claims.device!r}")
    if "unit" in named:
        _check_unit(claims, named["unit"], catalog)


def _check_unit(claims: Claims, sha256: str, catalog: Catalog) -> None:
    if not catalog.has_unit(claims.model, sha256):
        raise _forbidden(f"model {claims.model!r} has no such unit")


def _forbidden(what: str) -> ForbiddenError:
    return ForbiddenError(
        what, where="header Authorization", do="Ask for what is this device's own, or bear the service's token"
    )


def _check_length(headers: Headers, most_bytes: int) -> None:
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not length.isdecimal() or int(length) > most_bytes:
        raise _TooLongError(
            f"the body is longer than {most_bytes} bytes, or its length is not said",
            where="header Content-Length",
            do="Send a shorter body, and its length",
        )


class _TooLongError(InvalidInputError):
    http_status = 413
