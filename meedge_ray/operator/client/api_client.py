"""A small client of any Kubernetes API server, embedded or not: objects, tables, watches."""

import ipaddress
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, Self

import httpx

from meedge_ray.domain.errors import InvalidInputError, MeedgeError, NotFoundError, UnavailableError
from meedge_ray.operator.client.kubeconfig import Connection, read_kubeconfig
from meedge_ray.operator.client.resources import EVENTS, Resource

Object = dict[str, Any]
ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]

_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io, application/json"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_TIMEOUT_S = 30.0
_PATIENCE_S, _PAUSE_S = 60.0, 0.5
_WATCH_S = 300  # then the server ends it, and a new one begins; so a dead link is noticed


class ConflictError(MeedgeError):
    """Somebody else has made the object, changed it first, or manages the fields."""

    exit_code = 1
    http_status = 409


class ExpiredError(UnavailableError):
    """What happened since that version is forgotten: list again."""

    http_status = 410


class ApiClient:
    """Objects of one API server. Thread-safe; `close` it or use it as a context manager.

    Every method raises NotFoundError, ConflictError and InvalidInputError (also for a refused token) as the server
    answers, and UnavailableError where it does not. A namespace of None means all.
    """

    def __init__(self, kubeconfig: Path | Connection, *, timeout_s: float = _TIMEOUT_S) -> None:
        """Prepare for the server of the kubeconfig's current context; nothing is sent yet.

        Raises:
            NotFoundError: there is no such file.
            InvalidInputError: it cannot be understood.
        """
        connection = read_kubeconfig(kubeconfig) if isinstance(kubeconfig, Path) else kubeconfig
        self.namespace = connection.namespace
        self._http = httpx.Client(
            base_url=connection.server,
            headers={"Authorization": f"Bearer {connection.token}"} if connection.token else {},
            verify=connection.tls or True,
            timeout=timeout_s,
            trust_env=not _is_loopback(connection.server),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, resource: Resource, namespace: str, name: str, *, as_table: bool = False) -> Object:
        """Return one object, or a Table with its row."""
        return self._send("GET", resource.path(namespace, name), headers={"Accept": _TABLE} if as_table else {})

    def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        as_table: bool = False,
    ) -> Object:
        """Return a List of objects, or a Table of them."""
        query = _selectors(label_selector, field_selector)
        accept = {"Accept": _TABLE} if as_table else {}
        return self._send("GET", resource.path(namespace), params=query, headers=accept)

    def create(self, resource: Resource, namespace: str, content: Mapping[str, Any], *, manager: str) -> Object:
        """Make an object that is not there yet."""
        return self._send("POST", resource.path(namespace), body=content, params={"fieldManager": manager})

    def apply(
        self,
        resource: Resource,
        namespace: str,
        content: Mapping[str, Any],
        *,
        manager: str,
        force: bool = False,
        dry_run: bool = False,
    ) -> Object:
        """Make it so, and take over the fields in `content` (server-side apply).

        Raises:
            ConflictError: another manager has set some of them otherwise, and `force` is not.
        """
        query = {"fieldManager": manager, "force": str(force).lower(), "fieldValidation": "Strict"}
        return self._send(
            "PATCH",
            resource.path(namespace, str(content["metadata"]["name"])),
            body=content,
            params=query | ({"dryRun": "All"} if dry_run else {}),
            headers={"Content-Type": _APPLY},
        )

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        change: Mapping[str, Any],
        *,
        manager: str,
        subresource: Literal["", "status"] = "",
    ) -> Object:
        """Merge a change into an object (RFC 7386), or into its status alone."""
        path = resource.path(namespace, name) + (f"/{subresource}" if subresource else "")
        return self._send(
            "PATCH", path, body=change, params={"fieldManager": manager}, headers={"Content-Type": _MERGE}
        )

    def delete(self, resource: Resource, namespace: str, name: str, *, dry_run: bool = False) -> Object:
        """Delete an object and, in the background, what it owns. It stays until its finalizers are done."""
        body = {"propagationPolicy": "Background", **({"dryRun": ["All"]} if dry_run else {})}
        return self._send("DELETE", resource.path(namespace, name), body=body)

    def watch(
        self,
        resource: Resource,
        namespace: str | None,
        since: str,
        *,
        label_selector: str = "",
        field_selector: str = "",
        as_table: bool = False,
    ) -> Iterator[tuple[ChangeType, Object]]:
        """Give every change after the version `since`, for ever; a broken connection is taken up where it broke.

        Raises:
            ExpiredError: the server has forgotten what happened since then.
            UnavailableError: it has not answered for a minute.
        """
        query = _selectors(label_selector, field_selector)
        query |= {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(_WATCH_S)}
        broke_at: float | None = None
        while True:
            try:
                for event in self._watched(resource.path(namespace), query | {"resourceVersion": since}, as_table):
                    broke_at = None
                    since = _version(event["object"]) or since
                    if event["type"] != "BOOKMARK":
                        yield event["type"], event["object"]
            except UnavailableError as error:
                broke_at = broke_at or time.monotonic()
                if isinstance(error, ExpiredError) or time.monotonic() - broke_at > _PATIENCE_S:
                    raise
                time.sleep(_PAUSE_S)

    def _watched(self, path: str, query: Mapping[str, str], as_table: bool) -> Iterator[Object]:
        accept = {"Accept": _TABLE} if as_table else {}
        timeout = httpx.Timeout(_TIMEOUT_S, read=_WATCH_S + _TIMEOUT_S)
        with (
            self._answers(path),
            self._http.stream("GET", path, params=query, headers=accept, timeout=timeout) as response,
        ):
            if response.is_error:
                response.read()
                raise _refusal(response)
            for line in response.iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _error(event["object"], path)
                yield event

    def events(self, namespace: str | None, uid: str) -> Sequence[Object]:
        """Return what was said about the object of that uid, oldest first."""
        said: Sequence[Object] = self.list(EVENTS, namespace, field_selector=f"involvedObject.uid={uid}")["items"]
        return sorted(said, key=event_time)

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Object:
        content = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json", **(headers or {})} if body is not None else headers or {}
        with self._answers(path):
            response = self._http.request(method, path, content=content, params=params, headers=headers)
        if response.is_error:
            raise _refusal(response)
        try:
            answer: Object = response.json()
        except ValueError as error:
            raise _no_answer(str(response.url), "its answer is no JSON") from error
        return answer

    @contextmanager
    def _answers(self, path: str) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.StreamError, ValueError) as error:
            raise _no_answer(f"{self._http.base_url}{path.lstrip('/')}", str(error) or type(error).__name__) from error


def event_time(event: Mapping[str, Any]) -> str:
    """Return when an event was last seen, as RFC 3339; what has no time sorts first."""
    metadata = event.get("metadata", {})
    times = (event.get("lastTimestamp"), event.get("eventTime"), metadata.get("creationTimestamp"))
    return next((str(time) for time in times if time), "")


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    given = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {name: value for name, value in given.items() if value}


def _version(content: Mapping[str, Any]) -> str:
    # A row of a table says its version in the object it comes with.
    of_row = [
        row["object"]["metadata"].get("resourceVersion", "") for row in content.get("rows", ()) if "object" in row
    ]
    return str(content.get("metadata", {}).get("resourceVersion") or (of_row[-1] if of_row else ""))


def _refusal(response: httpx.Response) -> MeedgeError:
    try:
        status = response.json()
    except ValueError:
        status = {}
    if not isinstance(status, dict) or status.get("kind") != "Status":
        status = {"message": f"the server answered {response.status_code} {response.reason_phrase}".rstrip()}
    return _error({"code": response.status_code, **status}, response.url.path)


def _error(status: Mapping[str, Any], path: str) -> MeedgeError:
    code, what = int(status.get("code", 500)), str(status.get("message") or "the server does not say why")
    causes = (status.get("details") or {}).get("causes") or ()
    match code:
        case HTTPStatus.NOT_FOUND:
            return NotFoundError(what)
        case HTTPStatus.GONE:
            return ExpiredError(what, where=path)
        case HTTPStatus.CONFLICT:
            return ConflictError(what)
        case HTTPStatus.UNAUTHORIZED:
            return InvalidInputError(
                "the API server does not know you", where=path, do="Check the token in the kubeconfig"
            )
        case HTTPStatus.UNPROCESSABLE_ENTITY if causes:
            return InvalidInputError("; ".join(f"{cause['field']}: {cause['message']}" for cause in causes))
        case HTTPStatus.TOO_MANY_REQUESTS | HTTPStatus.REQUEST_TIMEOUT:
            return UnavailableError(what, where=path, do="Try again later")
    return InvalidInputError(what) if 400 <= code < 500 else UnavailableError(what, where=path, do="Try again later")


def _no_answer(where: str, why: str) -> UnavailableError:
    return UnavailableError(
        f"the API server does not answer ({why})", where=where, do="See `meedge status`, or check the kubeconfig"
    )


def _is_loopback(server: str) -> bool:
    host = httpx.URL(server).host
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
