"""`python -m meedge_ray.operator.server`: the API server's process."""

import argparse
import asyncio
import base64
import os
import resource as limits
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from meedge_ray.bundle.files import write_atomically
from meedge_ray.domain.errors import InvalidInputError, MeedgeError, UnavailableError
from meedge_ray.operator.server.app import App
from meedge_ray.operator.server.auth import ADMIN, Tokens
from meedge_ray.operator.server.collector import Collector
from meedge_ray.operator.server.errors import ApiError
from meedge_ray.operator.server.listening import Server, listening, url_of
from meedge_ray.operator.server.seeds import sow
from meedge_ray.operator.server.store import Store

_FILES = 65_536  # every watch is an open file
_HIGHEST_PORT = 65_535
_LONGEST_SECONDS = 366 * 24 * 3600


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    options = _arguments()
    try:
        _raise_limits()
        _serve(options)
    except MeedgeError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m meedge_ray.operator.server", description="The API server.")
    parser.add_argument("--home", type=Path, required=True, help="folder of the state, the tokens and the kubeconfig")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=6780, help="0 for any that is free (default: %(default)s)")
    parser.add_argument("--tls-cert", type=Path, help="PEM file of the certificate and its chain: kubectl needs TLS")
    parser.add_argument("--tls-key", type=Path, help="PEM file of the certificate's key")
    parser.add_argument(
        "--event-ttl", type=_seconds, default=3600.0, help="seconds that events are kept (default: %(default)s)"
    )
    return parser.parse_args()


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= _HIGHEST_PORT:
        raise argparse.ArgumentTypeError(f"must be from 0 to {_HIGHEST_PORT}")
    return port


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"must be above 0, and at most {_LONGEST_SECONDS}")
    return seconds


def _raise_limits() -> None:
    soft, hard = limits.getrlimit(limits.RLIMIT_NOFILE)
    wanted = _FILES if hard == limits.RLIM_INFINITY else min(_FILES, hard)
    if soft != limits.RLIM_INFINITY and soft < wanted:
        limits.setrlimit(limits.RLIMIT_NOFILE, (wanted, hard))


def _serve(options: argparse.Namespace) -> None:
    home: Path = options.home.expanduser()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        do = "Name a folder that this user can write"
        raise InvalidInputError(f"cannot be made ({error.strerror})", where=str(home), do=do) from None
    with closing(Store(home / "state.db")) as store, closing(listening(options.host, options.port)) as listener:
        tokens = Tokens(home / "tokens")
        app = App(store, tokens.user)
        url = url_of(listener, options.host, tls=options.tls_cert is not None)
        server = Server(app, options.tls_cert, options.tls_key, f"meedge API server: {url}, home {home}")
        write_atomically(home / "kubeconfig", _kubeconfig(url, tokens.admin, options.tls_cert), private=True)
        asyncio.run(_run(server, listener, store, options.event_ttl))


async def _run(server: Server, listener: socket.socket, store: Store, event_ttl_s: float) -> None:
    try:
        await sow(store)
    except ApiError as error:
        raise UnavailableError(error.message, do="Free space, or fix the permissions") from None
    collecting = asyncio.create_task(Collector(store, event_ttl_s=event_ttl_s).run())
    try:
        await server.serve(sockets=[listener])
    finally:
        collecting.cancel()


def _kubeconfig(url: str, token: str, certificate: Path | None) -> bytes:
    cluster: dict[str, Any] = {"server": url}
    if certificate is not None:
        cluster["certificate-authority-data"] = base64.b64encode(certificate.read_bytes()).decode()
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "meedge", "cluster": cluster}],
        "users": [{"name": ADMIN, "user": {"token": token}}],
        "contexts": [{"name": "meedge", "context": {"cluster": "meedge", "user": ADMIN, "namespace": "default"}}],
        "current-context": "meedge",
    }
    return yaml.safe_dump(content, sort_keys=False).encode()


if __name__ == "__main__":
    main()
    # All is stored and told. Python would now tidy up its memory, which takes longer than everything else at the end.
    sys.stdout.flush()
    os._exit(0)
