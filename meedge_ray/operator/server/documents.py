"""Answers that stay the same as long as the server runs, made when they are first asked for."""

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property, partial

from starlette.requests import Request
from starlette.responses import Response

from meedge_ray.operator.server import discovery, openapi
from meedge_ray.operator.server.answers import encoded
from meedge_ray.operator.server.options import answer_form
from meedge_ray.operator.server.resource import Object
from meedge_ray.operator.server.resources import RESOURCES

_JSON = "application/json"
_AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


class _Document:
    def __init__(self, make: Callable[[], Object], media_type: str = _JSON) -> None:
        self._make, self.media_type = make, media_type

    @cached_property
    def body(self) -> bytes:
        return encoded(self._make())

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.body).hexdigest().upper()


def answer(path: str, request: Request) -> Response | None:
    """Return what is at a path, None where that is no document.

    Raises:
        ApiError: 406, the client does not read JSON.
    """
    whole = any(_asks_for_all(clause) for clause in request.headers.get("accept", "").split(","))
    document = (_WHOLE if whole and path in _WHOLE else _DOCUMENTS).get(path)
    if document is None:
        return None
    answer_form(request)  # refuses, where the client knows protobuf alone
    etag = f'"{document.digest}"'
    headers = {"etag": etag, "vary": "Accept", "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(document.body, media_type=document.media_type, headers=headers)


def _asks_for_all(clause: str) -> bool:
    parameters = [part.strip() for part in clause.split(";")]
    return "as=APIGroupDiscoveryList" in parameters and "v=v2" in parameters


def _documents() -> Mapping[str, _Document]:
    versions = dict.fromkeys(resource.api_version for resource in RESOURCES)
    groups = dict.fromkeys(resource.group for resource in RESOURCES if resource.group)
    schemas = {openapi.v3_path(version): _Document(partial(openapi.v3, RESOURCES, version)) for version in versions}
    found = {
        "/version": _Document(discovery.server_version),
        "/api": _Document(discovery.core_versions),
        "/apis": _Document(partial(discovery.groups, RESOURCES)),
        "/openapi/v2": _Document(partial(openapi.v2, RESOURCES)),
        "/openapi/v3": _Document(lambda: openapi.v3_index({path: each.digest for path, each in schemas.items()})),
    }
    found |= {f"/apis/{group}": _Document(partial(discovery.group, RESOURCES, group)) for group in groups}
    found |= {
        f"/{openapi.v3_path(version)}": _Document(partial(discovery.resource_list, RESOURCES, version))
        for version in versions
    }
    return found | {f"/openapi/v3/{path}": document for path, document in schemas.items()}


_DOCUMENTS = _documents()
_WHOLE = {
    "/api": _Document(partial(discovery.aggregated, RESOURCES, core=True), _AGGREGATED),
    "/apis": _Document(partial(discovery.aggregated, RESOURCES, core=False), _AGGREGATED),
}
