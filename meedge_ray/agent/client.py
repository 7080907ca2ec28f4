"""An agent of this machine, from Python.

    agent = AgentClient("pi-1")
    answer = agent.infer(sample, deadline_ms=5)

The HTTP is as lean as its one server allows: Python's own client takes longer than the agent does.
"""

import json
import os
import socket
import struct
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from meedge_ray.agent.npy import encoded
from meedge_ray.agent.places import place_of
from meedge_ray.agent.problems import error_of, invalid
from meedge_ray.agent.requests import TokenBody
from meedge_ray.agent.status import AgentStatus
from meedge_ray.api.agent import AgentProblem, LatencyBody, MemoryBody
from meedge_ray.domain.answer import Answer
from meedge_ray.domain.errors import InvalidInputError, UnavailableError

_ANSWER, _STATUS = TypeAdapter(Answer), TypeAdapter(AgentStatus)
_RECEIVED_BYTES = 2**16
_HEAD_END = b"\r\n\r\n"

_T = TypeVar("_T")


class _Reply(NamedTuple):
    status: int
    body: bytes
    is_last: bool  # of its connection


class AgentClient:
    """Speaks with an agent over its Unix socket. Thread-safe; connections are kept, and renewed when it came back.

    Every method raises UnavailableError where no agent answers, and what the agent raised otherwise.
    """

    def __init__(self, device: str | None = None, *, run_dir: Path | None = None, timeout_s: float = 30.0) -> None:
        """Prepare for the agent of a device; nothing is sent yet.

        Args:
            device: its name; None: the only agent that runs on this machine.
            run_dir: where agents have their folders; None: where they have them unless told otherwise.
            timeout_s: longest wait for an answer.

        Raises:
            InvalidInputError: that is no name; or none is given, and several agents run.
            NotFoundError: no name is given, and no agent runs.
        """
        if not timeout_s > 0:
            raise InvalidInputError(f"{timeout_s} s is no time to wait", where="timeout_s", do="Give more than 0")
        self._place = place_of(device, run_dir)
        self._path = os.fspath(self._place.socket)
        self._timeout_s = timeout_s
        self._idle: deque[socket.socket] = deque()
        self._pid = os.getpid()

    @property
    def device(self) -> str:
        """Whose agent it is."""
        return self._place.device

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; another call opens a new one."""
        while self._idle:
            self._idle.pop().close()

    def infer(self, sample: Any, *, deadline_ms: float | None = None) -> Answer:  # noqa: ANN401 - as the engine's
        """Return the best result at hand for one raw sample when it was done, or at the deadline.

        Raises:
            InvalidInputError: the sample has another shape or is not finite numbers; the deadline is negative.
        """
        path = "/v1/infer" if deadline_ms is None else f"/v1/infer?deadline_ms={float(deadline_ms)!r}"
        return self._parsed(_ANSWER, self._ask("POST", path, *encoded(sample)))

    def status(self) -> AgentStatus:
        """Return how the agent stands."""
        return self._parsed(_STATUS, self._ask("GET", "/v1/status"))

    def set_memory(self, memory_bytes: int, *, in_ms: float = 0.0) -> AgentStatus:
        """Change the budget of units, now or in so many milliseconds; return how the agent then stands.

        Raises:
            BudgetError: it is below the backbone, which goes on answering alone.
        """
        try:
            body = MemoryBody(memory_bytes=memory_bytes, in_ms=in_ms)
        except ValidationError as error:
            raise invalid(error) from None
        return self._parsed(_STATUS, self._ask("PUT", "/v1/memory", body.model_dump_json().encode()))

    def set_latency(self, latency_ms: float | None) -> AgentStatus:
        """Change the deadline of inferences that name none; None: they have none."""
        try:
            body = LatencyBody(latency_ms=latency_ms)
        except ValidationError as error:
            raise invalid(error) from None
        return self._parsed(_STATUS, self._ask("PUT", "/v1/latency", body.model_dump_json().encode()))

    def renew_token(self, token: str) -> None:
        """Let the agent bear another token before the service."""
        self._ask("PUT", "/v1/token", TokenBody(token=token).model_dump_json().encode())

    def preempt(self) -> int:
        """Take the processor away: the running inferences answer with what is at hand. Return how many there were."""
        return int(json.loads(self._ask("POST", "/v1/preempt"))["ended"])

    def stop(self) -> None:
        """Let the agent end."""
        self._ask("POST", "/v1/stop")

    def metrics(self) -> str:
        """Return the agent's page for Prometheus."""
        return self._ask("GET", "/metrics").decode()

    def _ask(self, method: str, path: str, *body: bytes) -> bytes:
        size = sum(map(len, body))
        request = b"".join(
            (f"{method} {path} HTTP/1.1\r\nhost: agent\r\ncontent-length: {size}\r\n\r\n".encode(), *body)
        )
        reply = self._sent_by_kept(request) or self._sent(self._connected(), request)
        if reply.status >= 400:
            raise self._error(reply)
        return reply.body

    def _sent_by_kept(self, request: bytes) -> _Reply | None:
        # None: no connection is kept, or the agent has closed it meanwhile.
        if self._pid != os.getpid():  # forked: the connections are the parent's, and so would be their answers
            self._idle, self._pid = deque(), os.getpid()
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        try:
            return self._sent(connection, request)
        except _BrokenError:
            self.close()  # the others broke with it
            return None

    def _sent(self, connection: socket.socket, request: bytes) -> _Reply:
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # what is refused is answered before it is read whole
                connection.sendall(request)
            reply = _received(connection)
        except BlockingIOError:  # what a socket says whose time is over
            connection.close()
            raise self._unavailable(f"the agent did not answer within {self._timeout_s:g} s") from None
        except (OSError, EOFError) as error:
            connection.close()
            raise self._broken() from error
        except BaseException:
            connection.close()  # its answer is still to come
            raise
        if reply.is_last:
            connection.close()
        else:
            self._idle.append(connection)
        return reply

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        # The system's own time-outs: where many wait to connect, Python's fail at once; and they cost a call each time.
        limit = struct.pack("@ll", int(self._timeout_s), int(self._timeout_s % 1 * 1e6) or 1)
        try:
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                connection.setsockopt(socket.SOL_SOCKET, option, limit)
            connection.connect(self._path)
        except BlockingIOError:
            connection.close()
            raise self._unavailable(f"the agent took no connection within {self._timeout_s:g} s") from None
        except OSError as error:
            connection.close()
            raise self._unavailable(f"no agent answers ({error.strerror})") from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _error(self, reply: _Reply) -> Exception:
        try:
            return error_of(AgentProblem.model_validate_json(reply.body))
        except ValidationError:
            return self._unavailable(f"the agent answered {reply.status}")

    def _parsed(self, adapter: TypeAdapter[_T], body: bytes) -> _T:
        try:
            return adapter.validate_json(body)
        except ValidationError as error:
            do = "Restart the agent: it is of another version"
            raise UnavailableError("the agent's answer cannot be understood", where=self._path, do=do) from error

    def _broken(self) -> UnavailableError:
        return _BrokenError("the agent ended before it answered", where=self._path, do="Ask again: it may be back soon")

    def _unavailable(self, what: str) -> UnavailableError:
        return UnavailableError(what, where=self._path, do="Check that it runs: `meedge agent status`")


class _BrokenError(UnavailableError):
    """The other end closed the connection."""


def _received(connection: socket.socket) -> _Reply:
    data = b""
    while (end := data.find(_HEAD_END)) < 0:
        data += _some(connection)
    head = data[:end].lower()
    size = int(head.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0])
    parts, missing = [data[end + len(_HEAD_END) :]], size - (len(data) - end - len(_HEAD_END))
    while missing > 0:
        parts.append(_some(connection))
        missing -= len(parts[-1])
    return _Reply(int(head[9:12]), b"".join(parts), b"\r\nconnection: close" in head)


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(_RECEIVED_BYTES)
    if not data:
        raise EOFError
    return data
