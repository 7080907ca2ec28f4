"""Requests to an agent: what is read of them, and with what they are refused."""

from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from math import nan
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from pydantic import Field, ValidationError

from meedge_ray.agent.problems import invalid, problem_of
from meedge_ray.api.agent import AgentProblem
from meedge_ray.api.serving import Body
from meedge_ray.domain.errors import InvalidInputError, MeedgeError

MOST_BODY_BYTES = 2**16  # of any request but a sample's

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_BodyT = TypeVar("_BodyT", bound=Body)


class TokenBody(Body):
    """What the agent bears before the service from now on."""

    token: str = Field(repr=False)


class Response(NamedTuple):
    """What is answered; the connection ends after a `last` one, whatever it still sends."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    last: bool = False


class Refusal(Exception):  # noqa: N818 - it is an answer
    """Ends the handling of a request, and its connection, with an error."""

    def __init__(self, status: HTTPStatus, problem: MeedgeError) -> None:
        self.response = problem_response(status, problem_of(problem), last=True)


class Gone(Exception):  # noqa: N818
    """Nobody is there to answer to."""


def problem_response(status: int, problem: AgentProblem, *, last: bool = False) -> Response:
    """Return an error as a response."""
    return Response(status, problem.model_dump_json().encode(), last=last)


def header(scope: Scope, name: bytes) -> bytes:
    """Return a header's first value, nothing where it is missing."""
    found: bytes = next((value for key, value in scope["headers"] if key == name), b"")
    return found


def content_length(scope: Scope, most_bytes: int) -> int:
    """Return the bytes of the body that is to come.

    Raises:
        Refusal: it does not say, or they are too many.
    """
    length = header(scope, b"content-length")
    if not length:
        error = InvalidInputError("the length of the body is missing", where="body", do="Send a Content-Length")
        raise Refusal(HTTPStatus.LENGTH_REQUIRED, error)
    size_bytes = int(length)  # digits alone: the parser saw to it
    if size_bytes > most_bytes:
        error = InvalidInputError(
            f"{size_bytes} bytes are too many, {most_bytes} are read at most", where="body", do="Send one raw sample"
        )
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error)
    return size_bytes


async def small_body(scope: Scope, receive: Receive) -> bytes:
    """Return the body of a request that is no sample.

    Raises:
        Refusal: it is too long, or does not say how long it is.
        Gone: the other end closed the connection.
    """
    content_length(scope, MOST_BODY_BYTES)
    return await whole_body(receive)


async def whole_body(receive: Receive) -> bytes:
    """Return the body.

    Raises:
        Gone: the other end closed the connection.
    """
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message["body"])
        if not message["more_body"]:
            return parts[0] if len(parts) == 1 else b"".join(parts)


def parsed(kind: type[_BodyT], data: bytes, *, example: str) -> _BodyT:
    """Return a body as what it should be.

    Raises:
        InvalidInputError: it is something else; `where` is the field's path.
    """
    try:
        return kind.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise invalid(error, do=f"Send one like {example}") from None


def asked_deadline_ms(query: bytes) -> float | None:
    """Return the deadline that a query names, None where there is no query.

    Raises:
        InvalidInputError: it names something else, or no time.
    """
    if not query:
        return None
    [(name, value), *others] = parse_qsl(query.decode("latin-1"), keep_blank_values=True) or [("", "")]
    if name != "deadline_ms" or others:
        raise InvalidInputError("names more or something else", where="query", do="Name deadline_ms alone, and once")
    try:
        deadline_ms = float(value)
    except ValueError:
        deadline_ms = nan
    if not deadline_ms >= 0:
        raise InvalidInputError(f"{value!r} is no deadline", where="deadline_ms", do="Give milliseconds, such as 5")
    return deadline_ms
