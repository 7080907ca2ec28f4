"""The placement service without Ray, in a process of its own, for tests that kill it or put it behind a slow link.

python placement_service.py HOST PORT BUNDLE: serve until the end; SIGHUP has it read the bundle anew.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

TOKEN = "of-the-service"
_PATIENCE_S = 60.0

Wrap = Callable[[Sequence[str]], list[str]]


class ServiceProcess:
    """One bundle's service at a fixed address; started, killed, and started again."""

    def __init__(
        self, bundle: Path, address: tuple[str, int], wrap: Callable[[Sequence[str]], list[str]] = list
    ) -> None:
        """Start it.

        Args:
            bundle: the bundle's folder.
            address: where it listens.
            wrap: makes of a command the one that is run, such as `links.End.command`.
        """
        self._command = wrap([sys.executable, __file__, address[0], str(address[1]), str(bundle)])
        self.url = f"http://{address[0]}:{address[1]}"
        self.start()

    def start(self) -> None:
        """Serve, from when this returns."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._process.stdout.readline()
        assert self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process; a command that wraps it takes its place."""
        return self._process.pid

    def kill(self) -> None:
        """End it as a power cut would."""
        with self._process:  # closes what it has open to this one, and waits
            self._process.kill()

    def renew(self) -> None:
        """Serve the bundle as it is in its folder now, soon."""
        self._process.send_signal(signal.SIGHUP)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def serve(host: str, port: int, bundle: Path) -> None:
    import uvicorn

    from meedge_ray.actors.service.admission import Served
    from meedge_ray.actors.service.app import create_app
    from meedge_ray.actors.service.catalog import Catalog

    served = Served(Catalog([bundle]), TOKEN)

    def renew(*_: object) -> None:
        catalog, problems = served.catalog.renewed([bundle])
        if not problems:
            served.replace(catalog, TOKEN)

    signal.signal(signal.SIGHUP, renew)
    listener = _listener(host, port)
    print("serves", flush=True)
    uvicorn.Server(uvicorn.Config(create_app(served), log_level="critical", ws="none")).run([listener])


def _listener(host: str, port: int) -> socket.socket:
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return socket.create_server((host, port), backlog=64)
        except OSError:  # the one that was killed still has connections
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    os._exit(0)
