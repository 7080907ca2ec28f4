"""An agent's answers over HTTP: a raw ASGI application of a few routes."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from time import perf_counter
from typing import Any, Protocol

from pydantic import TypeAdapter

from meedge_ray.agent import metrics
from meedge_ray.agent.npy import MOST_HEADER_BYTES, decoded
from meedge_ray.agent.problems import problem_of
from meedge_ray.agent.requests import (
    Gone,
    Receive,
    Refusal,
    Response,
    Scope,
    Send,
    TokenBody,
    asked_deadline_ms,
    content_length,
    header,
    parsed,
    problem_response,
    small_body,
    whole_body,
)
from meedge_ray.agent.status import AgentStatus
from meedge_ray.api.agent import AgentProblem, LatencyBody, MemoryBody
from meedge_ray.domain.answer import Answer
from meedge_ray.domain.errors import InvalidInputError, MeedgeError, NotFoundError, UnavailableError

MOST_SAMPLE_BYTES = 64 * 2**20
LEAST_SAMPLE_BYTES = 2**20  # so much is read of any sample: a wrong shape is then told from the right one

_BODIES_AT_ONCE = 4  # as many of the largest samples are in memory
_INFERENCES_AT_ONCE = 2
_CHANGES_AT_ONCE = 4  # one may wait for the service while the next takes memory away
_LOCAL_ONLY = ("/v1/stop", "/v1/token")
_OPEN = "/healthz"  # without a token

_LOG = logging.getLogger(__name__)
_ANSWER, _STATUS = TypeAdapter(Answer), TypeAdapter(AgentStatus)


class Agent(Protocol):
    """What answers. Every method may be called from any thread, and raises MeedgeErrors."""

    @property
    def latencies(self) -> metrics.Histogram:
        """Of its inferences."""

    @property
    def sample_bytes(self) -> int:
        """The bytes of a sample at 8 a number, 0 before the model is known; larger ones are not even read."""

    def infer(self, sample: Any, *, deadline_ms: float | None = None) -> Answer:  # noqa: ANN401 - as the engine's
        """Answer for one raw sample."""

    def status(self) -> AgentStatus:
        """Return how it stands; never waits for the others."""

    def set_memory(self, memory_bytes: int, *, in_ms: float = 0.0) -> AgentStatus:
        """Change the budget; may wait for the service."""

    def set_latency(self, latency_ms: float | None) -> AgentStatus:
        """Change the deadline of inferences that name none."""

    def renew_token(self, token: str) -> None:
        """Bear another token before the service."""

    def preempt(self) -> int:
        """End the running inferences; never waits."""


class App:
    """The ASGI application; requests say in their state whether they are `local`: of this user, by the Unix socket.

    Inferences have threads of their own: whoever asks how it stands, or takes memory away, never waits for them.

    Args:
        agent: what answers.
        stop: ends the process, soon after it returned.
        token: that requests must bear which are not local.
    """

    def __init__(self, agent: Agent, *, stop: Callable[[], None], token: str) -> None:
        self._agent, self._stop = agent, stop
        self._authorization = f"Bearer {token}".encode()
        self._inferring = ThreadPoolExecutor(_INFERENCES_AT_ONCE, "infer")
        self._changing = ThreadPoolExecutor(_CHANGES_AT_ONCE, "change")
        self._looking = ThreadPoolExecutor(1, "look")
        self._bodies_bytes = 0  # of samples being read or inferred
        self._routes: dict[str, tuple[str, Callable[[Scope, Receive], Awaitable[Response]]]] = {
            "/v1/infer": ("POST", self._infer),
            "/v1/status": ("GET", self._status),
            "/v1/memory": ("PUT", self._set_memory),
            "/v1/latency": ("PUT", self._set_latency),
            "/v1/preempt": ("POST", self._preempt),
            "/v1/token": ("PUT", self._renew_token),
            "/v1/stop": ("POST", self._end),
            "/metrics": ("GET", self._metrics),
            _OPEN: ("GET", self._health),
        }

    def close(self) -> None:
        """Take no more work; what is under way ends by itself."""
        for executor in (self._inferring, self._changing, self._looking):
            executor.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            response = await self._route(scope)(scope, receive)
        except MeedgeError as error:
            response = problem_response(error.http_status, problem_of(error))
        except Refusal as refusal:
            response = refusal.response
        except Gone:
            return
        except Exception:
            _LOG.exception("%s %s", scope["method"], scope["path"])
            problem = AgentProblem(kind="MeedgeError", what="the agent failed", where=scope["path"], do="See its log")
            response = problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, problem, last=True)
        headers = [(b"content-type", response.content_type), (b"content-length", b"%d" % len(response.body))]
        if response.last:
            headers.append((b"connection", b"close"))
        if response.status == HTTPStatus.UNAUTHORIZED:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    def _route(self, scope: Scope) -> Callable[[Scope, Receive], Awaitable[Response]]:
        path, is_local = scope["path"], scope["state"]["local"]
        if not (is_local or path == _OPEN or self._may_ask(scope)):
            do = "Send 'Authorization: Bearer TOKEN' with the token of the file http-token beside the socket"
            error: MeedgeError = InvalidInputError("the token is missing or wrong", where=path, do=do)
            raise Refusal(HTTPStatus.UNAUTHORIZED, error)
        if path not in self._routes:
            do = f"Ask for one of {', '.join(self._routes)}"
            error = NotFoundError("there is nothing", where=path, do=do)
            raise Refusal(HTTPStatus.NOT_FOUND, error)
        method, answer = self._routes[path]
        if scope["method"] != method:
            error = InvalidInputError(f"cannot be asked with {scope['method']}", where=path, do=f"Use {method}")
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, error)
        if path in _LOCAL_ONLY and not is_local:
            error = InvalidInputError("is for the Unix socket alone", where=path, do="Ask there")
            raise Refusal(HTTPStatus.FORBIDDEN, error)
        return answer

    def _may_ask(self, scope: Scope) -> bool:
        return hmac.compare_digest(header(scope, b"authorization"), self._authorization)

    async def _infer(self, scope: Scope, receive: Receive) -> Response:
        arrived = perf_counter()
        deadline_ms = asked_deadline_ms(scope["query_string"])
        most_bytes = min(max(self._agent.sample_bytes, LEAST_SAMPLE_BYTES), MOST_SAMPLE_BYTES) + MOST_HEADER_BYTES
        size_bytes = content_length(scope, most_bytes)

        def infer() -> bytes:
            waited_ms = (perf_counter() - arrived) * 1e3
            left_ms = None if deadline_ms is None else max(0.0, deadline_ms - waited_ms)
            return _ANSWER.dump_json(self._agent.infer(decoded(data), deadline_ms=left_ms))

        with self._reserved(size_bytes, most_bytes):
            data = await whole_body(receive)
            return Response(HTTPStatus.OK, await _run(self._inferring, infer))

    async def _status(self, scope: Scope, receive: Receive) -> Response:  # noqa: ARG002
        return Response(HTTPStatus.OK, await _run(self._looking, lambda: _STATUS.dump_json(self._agent.status())))

    async def _metrics(self, scope: Scope, receive: Receive) -> Response:  # noqa: ARG002
        def page() -> bytes:
            return metrics.prometheus(self._agent.status(), self._agent.latencies).encode()

        return Response(HTTPStatus.OK, await _run(self._looking, page), metrics.CONTENT_TYPE.encode())

    async def _set_memory(self, scope: Scope, receive: Receive) -> Response:
        data = await small_body(scope, receive)

        def change() -> bytes:
            asked = parsed(MemoryBody, data, example='{"memory_bytes": 2097152, "in_ms": 0}')
            return _STATUS.dump_json(self._agent.set_memory(asked.memory_bytes, in_ms=asked.in_ms))

        return Response(HTTPStatus.OK, await _run(self._changing, change))

    async def _set_latency(self, scope: Scope, receive: Receive) -> Response:
        data = await small_body(scope, receive)

        def change() -> bytes:
            asked = parsed(LatencyBody, data, example='{"latency_ms": 5.0}, or null for no deadline')
            return _STATUS.dump_json(self._agent.set_latency(asked.latency_ms))

        return Response(HTTPStatus.OK, await _run(self._changing, change))

    async def _renew_token(self, scope: Scope, receive: Receive) -> Response:
        self._agent.renew_token(parsed(TokenBody, await small_body(scope, receive), example='{"token": "..."}').token)
        return Response(HTTPStatus.OK, b"{}")

    async def _preempt(self, scope: Scope, receive: Receive) -> Response:  # noqa: ARG002
        return Response(HTTPStatus.OK, b'{"ended":%d}' % self._agent.preempt())

    async def _end(self, scope: Scope, receive: Receive) -> Response:  # noqa: ARG002
        self._stop()
        return Response(HTTPStatus.ACCEPTED, b"{}", last=True)

    async def _health(self, scope: Scope, receive: Receive) -> Response:  # noqa: ARG002
        return Response(HTTPStatus.OK, b"ok", b"text/plain; charset=utf-8")

    @contextmanager
    def _reserved(self, size_bytes: int, most_bytes: int) -> Iterator[None]:
        if self._bodies_bytes + size_bytes > _BODIES_AT_ONCE * most_bytes:
            error = UnavailableError("too many samples at once", where="body", do="Ask again in a moment")
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, error)
        self._bodies_bytes += size_bytes
        try:
            yield
        finally:
            self._bodies_bytes -= size_bytes


async def _run(executor: Executor, work: Callable[[], bytes]) -> bytes:
    return await asyncio.get_running_loop().run_in_executor(executor, work)
