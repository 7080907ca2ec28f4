"""`python -m meedge_ray.operator.keeping.supervisor`: keeps the operator's parts alive, until it is told to end.

Parts live in sessions of their own. Killed itself, it leaves them working; the next supervisor goes on with them.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from meedge_ray.domain.errors import MeedgeError
from meedge_ray.operator.keeping.home import BusyError, Home, open_home
from meedge_ray.operator.keeping.keeper import Keeper
from meedge_ray.operator.keeping.parts import api_server, ray_head
from meedge_ray.operator.keeping.places import API_SERVER, BUSY, LOOPBACK, RAY, RECONCILER
from meedge_ray.operator.keeping.processes import ProcessId, end_marked
from meedge_ray.operator.keeping.reconciler_keeper import ReconcilerKeeper
from meedge_ray.operator.keeping.run_file import PartStatus, Run, Told, read_run, write_run

_log = logging.getLogger("meedge supervisor")


class Supervisor:
    """The keepers of all parts, a thread each, and the one who writes down how they stand."""

    def __init__(self, home: Home, told: Told) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._stop = threading.Event()
        supervisor = ProcessId.of(os.getpid())
        assert supervisor is not None
        now = time.time()
        parts = tuple(PartStatus(name=name, state="waiting", since=now) for name in (API_SERVER, RAY, RECONCILER))
        self._run = Run(supervisor=supervisor, told=told, started_at=now, parts=parts)

    def stop(self) -> None:
        """Let `keep` end all parts and return."""
        self._stop.set()

    def keep(self) -> None:
        """Keep all parts until it is stopped; then nothing of them is left."""
        before = self._predecessor()
        reconciler = ReconcilerKeeper(
            self._home,
            told=self._run.told,
            report=self._report,
            has_ground=self._has_ground,
            stop=self._stop,
        )
        threads = [threading.Thread(target=reconciler.run, name=RECONCILER)]
        for part in (api_server(self._home), ray_head(self._home, self._run.told)):
            keeper = Keeper(part, self._home, self._report, self._stop)
            left = before.part(part.name) if before else None
            threads.append(threading.Thread(target=keeper.run, args=(left,), name=part.name))
        write_run(self._home, self._run)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _predecessor(self) -> Run | None:
        # What a killed supervisor left goes on, unless it was told something else.
        try:
            before = read_run(self._home)
        except MeedgeError as error:
            _log.warning("%s", error)
            before = None
        if before and before.told == self._run.told:
            return before
        end_marked(self._home.path, grace_s=10.0)
        return None

    def _has_ground(self) -> bool:
        with self._lock:
            return all(self._run.part(name).state == "ready" for name in (API_SERVER, RAY))  # type: ignore[union-attr]

    def _report(self, status: PartStatus) -> None:
        with self._lock:
            _log.info("%s: %s %s", status.name, status.state, status.message)
            self._run = self._run.with_part(status)
            try:
                write_run(self._home, self._run)
            except MeedgeError as error:  # a full disk is no reason to stop
                _log.error("%s", error)


def main() -> None:
    """Keep the parts of a home until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m meedge_ray.operator.keeping.supervisor", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--host", default=LOOPBACK, help="address of this machine at which edge nodes find it")
    parser.add_argument("--base-dir", type=Path, default=Path.cwd(), help="where relative paths in manifests start")
    parser.add_argument("--tls-cert", help="PEM file; with --tls-key services speak HTTPS")
    parser.add_argument("--tls-key")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.umask(0o077)
    try:
        home = open_home(given.home)
        with home.locked():
            base_dir = str(given.base_dir.resolve())
            told = Told(host=given.host, base_dir=base_dir, certificate=given.tls_cert, key=given.tls_key)
            supervisor = Supervisor(home, told)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: supervisor.stop())
            supervisor.keep()
    except BusyError:
        sys.exit(BUSY)
    except MeedgeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
