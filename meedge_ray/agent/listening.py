"""uvicorn as an agent needs it: on a Unix socket and loopback, and not to be brought down by clients who misbehave."""

import asyncio
import os
import signal
import socket
from contextlib import ExitStack
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from meedge_ray.agent.app import Agent, App
from meedge_ray.agent.places import AgentPlace
from meedge_ray.api.agent import AgentProblem
from meedge_ray.domain.errors import UnavailableError

MOST_CONNECTIONS = 128
MOST_HEAD_BYTES = 2**15
REQUEST_SECONDS = 10.0  # in which a request must have come, and its answer be taken

_BACKLOG = 128  # also what asyncio accepts in one go: as many file descriptors more, for a moment
_GRACE_SECONDS = 1  # for answers under way when it is told to end
_KEEP_ALIVE_SECONDS = 300
_READ_BYTES = 2**16  # asyncio has 256 KiB for every connection
_LOOPBACK = "127.0.0.1"


class Server(uvicorn.Server):
    """The server of one agent; `serve_place` runs it, `stop` ends it from any thread.

    Args:
        agent: what answers.
        place: its folder, claimed.
        http_port: also listen on loopback HTTP, 0 being any free port; None does not.

    Raises:
        UnavailableError: the port is taken, or the file system refuses.
    """

    def __init__(self, agent: Agent, place: AgentPlace, *, http_port: int | None = None) -> None:
        with ExitStack() as undo:
            self._sockets = [_unix(place)]
            undo.callback(self._close)
            token = ""
            if http_port is not None:
                token = place.http_token()
                self._sockets.append(_loopback(http_port))
            bound = None if http_port is None else int(self._sockets[-1].getsockname()[1])
            place.write_record(http_port=bound)
            undo.pop_all()
        self.http_port = bound
        self._app = App(agent, stop=self.stop, token=token)
        self._stopped = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(_config(self._app))

    def serve_place(self) -> None:
        """Answer until SIGTERM, SIGINT, or `stop`."""
        try:
            self.run(self._sockets)
        finally:
            self._app.close()
            self._close()

    def stop(self) -> None:
        """End soon: answers under way get a second."""
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopped.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        """Sleep until the end; uvicorn's own looks ten times a second whether it has come."""
        if not self.should_exit:
            await self._stopped.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers under way end, for a second; then no connection is left, whoever does not take his."""
        for each in self._sockets:
            asyncio.get_running_loop().remove_reader(each)
        await asyncio.sleep(0)  # those accepted are connected: asyncio leaks what it has accepted but not yet connected
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # in which they are lost

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """End on a signal; at once on a second SIGINT."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.stop()

    def _close(self) -> None:
        for each in self._sockets:
            each.close()


class _Protocol(HttpToolsProtocol):
    """One connection. It is taken from who says nothing, sends slowly, or does not take the answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]  # of asyncio's sockets
        family = transport.get_extra_info("socket").family
        self.app_state = {"local": family == socket.AF_UNIX}  # the application's only proof: not an address's absence
        self.silent_since = self.loop.time()
        self._began: float | None = None  # a request that has not come whole
        self._head_bytes = 0
        self._timer = self.loop.call_later(REQUEST_SECONDS, self._look)
        if len(self.connections) > MOST_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._began is not None and self._head_bytes >= 0:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse(431, "the head of the request is too long", "Send less of it")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._began, self._head_bytes = self.loop.time(), 0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._head_bytes = -1

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._began = None

    def on_response_complete(self) -> None:
        self.silent_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        self._refuse(400, "that is no HTTP request", "Speak HTTP/1.1")

    @property
    def is_silent(self) -> bool:
        """Whether nothing is being answered, nor a body awaited."""
        return self.cycle is None or self.cycle.response_complete

    def _make_room(self) -> None:
        connections: set[Any] = self.connections  # uvicorn's other protocols are not in use
        open_ = [each for each in connections if not each.transport.is_closing()]
        if len(open_) <= MOST_CONNECTIONS:
            return
        others = [each for each in open_ if each.is_silent and each is not self]
        if not others:
            self._refuse(503, f"{MOST_CONNECTIONS} connections are busy", "Ask again in a moment", "UnavailableError")
            return
        # First those who never asked for anything.
        min(others, key=lambda each: (each.cycle is not None, each.silent_since)).transport.abort()

    def _look(self) -> None:
        self._timer = self.loop.call_later(REQUEST_SECONDS, self._look)
        now = self.loop.time()
        if self.transport.is_closing() or self.flow.write_paused:
            self.transport.abort()  # nobody takes what is sent
        elif self._began is not None and now - self._began >= REQUEST_SECONDS:
            self._refuse(408, f"the request did not come within {REQUEST_SECONDS:.0f} s", "Send it faster")
        elif self.cycle is None and now - self.silent_since >= REQUEST_SECONDS:
            self.transport.close()

    def _refuse(self, status: int, what: str, do: str, kind: str = "InvalidInputError") -> None:
        if self.transport.is_closing():
            return
        body = AgentProblem(kind=kind, what=what, where="connection", do=do).model_dump_json().encode()
        head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Protocol,
        loop="asyncio",  # uvloop saves 14 microseconds a request for a megabyte, and is not everywhere
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # what clients do wrong is for them alone; the application says what the agent does
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )


def _unix(place: AgentPlace) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(place.socket))
        place.socket.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        do = "Fix the permissions of its folder, or name another in MEEDGE_RUN_DIR"
        raise UnavailableError(f"cannot listen: {error.strerror}", where=str(place.socket), do=do) from None
    return listener


def _loopback(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it; asyncio sets it only where the protocol is named. Without, an answer takes 40 ms more.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((_LOOPBACK, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        do = "Choose another http_port (0: any that is free), or stop what listens there"
        raise UnavailableError(f"cannot listen: {error.strerror}", where=f"{_LOOPBACK}:{port}", do=do) from None
    return listener
