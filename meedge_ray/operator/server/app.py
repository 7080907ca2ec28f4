"""The API over HTTP: who asks for what; and every answer, errors too, in Kubernetes' form."""

import logging
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from meedge_ray.operator.server import documents
from meedge_ray.operator.server.answers import encoded
from meedge_ray.operator.server.errors import ApiError, internal, method_not_allowed, unauthorized
from meedge_ray.operator.server.options import is_watch
from meedge_ray.operator.server.paths import Target, target
from meedge_ray.operator.server.store import Store
from meedge_ray.operator.server.verbs import Verbs
from meedge_ray.operator.server.watching import Watches

_LOG = logging.getLogger(__name__)
_OPEN = ("/healthz", "/livez", "/readyz")  # without a token
_OF_ONE = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_OF_MANY = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}


class App:
    """The ASGI application.

    Args:
        store: the objects.
        user: whose token an Authorization header holds, None if nobody's.
    """

    def __init__(self, store: Store, user: Callable[[str], str | None]) -> None:
        self._user, self._watches = user, Watches()
        verbs = Verbs(store, self._watches)
        self._verbs = {
            "get": verbs.get,
            "list": verbs.list,
            "watch": verbs.watch,
            "create": verbs.create,
            "update": verbs.update,
            "patch": verbs.patch,
            "delete": verbs.delete,
            "deletecollection": verbs.deletecollection,
        }

    def end_watches(self) -> None:
        """Let every watch end well: the server stops."""
        self._watches.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            answer = await self._answer(Request(scope, receive))
        except ApiError as error:
            answer = _failure(error)
        except Exception:
            _LOG.exception("%s %s", scope["method"], scope["path"])
            answer = _failure(internal("see the server's log"))
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> ASGIApp:
        path: str = request.scope["path"].rstrip("/")
        if path in _OPEN:
            return Response("ok", media_type="text/plain")
        request.state.user = self._user(request.headers.get("authorization", ""))
        if request.state.user is None:
            raise unauthorized()
        method = "GET" if request.method == "HEAD" else request.method
        if method == "GET" and (document := documents.answer(path, request)):
            return document
        asked = target(path)
        return await self._verbs[_verb(request, method, asked)](request, asked)


def _verb(request: Request, method: str, asked: Target) -> str:
    verb = (_OF_ONE if asked.name else _OF_MANY).get(method, "")
    if verb == "list" and is_watch(request.query_params):
        verb = "watch"
    if verb not in asked.resource.verbs or (asked.subresource and verb == "delete"):
        raise method_not_allowed()
    if verb in ("create", "deletecollection") and asked.resource.namespaced and asked.namespace is None:
        raise method_not_allowed()  # in which namespace?
    return verb


def _failure(error: ApiError) -> Response:
    response = Response(encoded(error.status()), error.code, media_type="application/json")
    if error.code == 401:
        response.headers["www-authenticate"] = "Bearer"
        response.headers["connection"] = "close"  # a stranger gets one request, and not all the time in the world
    return response
