"""uvicorn as this server needs it: it sleeps when there is nothing to do, and ends soon when it is told to."""

import asyncio
import signal
import socket
import sys
from asyncio import sslproto
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from meedge_ray.domain.errors import InvalidInputError, UnavailableError
from meedge_ray.operator.server.app import App

_BACKLOG = 1024
_GRACE_SECONDS = 1  # for answers under way when it is told to end
_REQUEST_SECONDS = 30.0
_KEEP_ALIVE_SECONDS = 120  # longer than clients keep a connection: none sends into one that is just being closed
_LIVENESS = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 20, socket.TCP_KEEPCNT: 3}
_TLS_BUFFER_BYTES = 16_384  # one record; asyncio has 256 KiB for every connection, idle watches too
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what this machine calls itself then


class Server(uvicorn.Server):
    """The server of an application, on sockets that are given to `serve`.

    Args:
        app: the application, whose watches end first.
        certificate: PEM file; without one nothing is encrypted.
        key: PEM file of the certificate's key.
        ready: the line to print when requests are answered.

    Raises:
        InvalidInputError: one of certificate and key is missing, or they cannot be used.
    """

    def __init__(self, app: App, certificate: Path | None, key: Path | None, ready: str) -> None:
        super().__init__(_config(app, certificate, key))
        self._app, self._ready = app, ready
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        sys.stdout.write(f"{self._ready}\n")
        sys.stdout.flush()

    async def main_loop(self) -> None:
        """Sleep until the end; uvicorn's own looks ten times a second whether it has come."""
        await self._stop.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """End on a signal; at once on a second SIGINT."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let watches end well, then what is under way, and no longer than a second."""
        self._app.end_watches()
        await super().shutdown(sockets)


class _Protocol(H11Protocol):
    """Closes a connection on which no request comes, however slowly it does not."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.loop.call_later(_REQUEST_SECONDS, self._close_unless_asked)

    def _close_unless_asked(self) -> None:
        if self.cycle is None:
            self.transport.close()


def _config(app: App, certificate: Path | None, key: Path | None) -> uvicorn.Config:
    if (certificate is None) != (key is None):
        raise InvalidInputError("the certificate and its key go together", where="--tls-cert", do="Name both, or none")
    sslproto.SSLProtocol.max_size = _TLS_BUFFER_BYTES
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except OSError as error:  # that of SSL as well
        do = "Name PEM files of a certificate and of its key"
        raise InvalidInputError(f"TLS cannot start: {error}", where=str(certificate), do=do) from None
    return config


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; port 0 is any that is free.

    Raises:
        UnavailableError: the address is taken, or none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # For the connections to come: those whose other end is gone without a word are closed in two minutes.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _LIVENESS.items():
                listener.setsockopt(socket.IPPROTO_TCP, option, value)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        do = "Choose another with --port (0: any that is free) and --host, or stop what listens there"
        raise UnavailableError(f"cannot listen: {error.strerror}", where=f"{host}:{port}", do=do) from None
    return listener


def url_of(listener: socket.socket, host: str, *, tls: bool) -> str:
    """Return the URL of a listening socket, as clients on this machine reach it."""
    name = _EVERY_ADDRESS.get(host, host)
    address = f"[{name}]" if ":" in name else name
    return f"{'https' if tls else 'http'}://{address}:{listener.getsockname()[1]}"
