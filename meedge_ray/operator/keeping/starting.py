"""Starts a home's supervisor and waits until all parts answer; ends it, and whatever else is left of it."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from meedge_ray.domain.errors import InvalidInputError, MeedgeError, UnavailableError
from meedge_ray.operator.keeping.home import BusyError, Home, check_free, open_home
from meedge_ray.operator.keeping.places import BUSY, LOOPBACK
from meedge_ray.operator.keeping.processes import end_marked, marked
from meedge_ray.operator.keeping.run_file import Run, Told, read_run
from meedge_ray.operator.keeping.spawning import log_file, spawn

_SUPERVISOR = "supervisor"
_POLL_S = 0.2
_STOP_TIMEOUT_S = 60.0
_HOPELESS = 3  # starts of a part in vain
_MOST_LOG = 2000  # characters


def start(
    path: Path,
    *,
    host: str | None = None,
    base_dir: Path | None = None,
    tls: tuple[Path, Path] | None = None,
    told: Callable[[Run], None] = lambda _: None,
    timeout_s: float = 300.0,
) -> Run:
    """Run the operator of the home at `path` in the background; return when all of it answers.

    One that runs already is waited for. What a killed supervisor left is taken over.

    Args:
        path: the home's folder, made if it is not there.
        host: address of this machine at which edge nodes find it; by default as it was, or loopback.
        base_dir: where relative paths in manifests start; by default as it was, or the current folder.
        tls: certificate and key, PEM files, that services are served with; by default as it was, or none.
        told: is called with how things stand, again and again.
        timeout_s: most seconds to wait.

    Raises:
        InvalidInputError: it runs already, otherwise; or the home or the certificate cannot be used.
        UnavailableError: it does not come up; nothing is left of it then, unless something ran before.
    """
    home = open_home(path)
    wanted = _wanted(_run_or_none(home), host, base_dir, tls)
    takes_over = bool(marked(home.path))
    if not takes_over:
        for name, port in asdict(home.ports()).items():
            check_free(port, f"{home.config_file}: ports.{name}")
    supervisor = None if home.is_locked() else _spawn(home, wanted)
    try:
        return _wait(home, wanted, supervisor, told, timeout_s)
    except BaseException:
        if supervisor is not None and not takes_over:
            stop(home)
        raise


def stop(home: Home, told: Callable[[str], None] = lambda _: None) -> bool:
    """End all that runs of a home, and forget its Ray cluster; objects, bundles and tokens stay.

    Returns whether anything ran.

    Raises:
        UnavailableError: the system does not let a process go, or somebody starts it again meanwhile.
    """
    ran = bool(marked(home.path))
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    for process in marked(home.path, _SUPERVISOR):
        told(f"the supervisor ends its parts (process {process.pid})")
        process.terminate()
    while (left := marked(home.path, _SUPERVISOR)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    for process in left:
        told(f"the supervisor did not end in {_STOP_TIMEOUT_S:g} s, and is killed (process {process.pid})")
        process.kill()
    try:
        with home.locked() if home.path.is_dir() else nullcontext():
            if left := marked(home.path):
                told(f"{len(left)} processes are left, and are ended")
            end_marked(home.path, grace_s=5.0)
            home.forget_cluster()
            home.run_file.unlink(missing_ok=True)
    except (TimeoutError, BusyError) as error:
        raise UnavailableError(f"could not be stopped ({error})", where=str(home.path), do="Try again") from error
    return ran


def current_run(home: Home) -> Run | None:
    """Return what runs, None if no supervisor does.

    Raises:
        UnavailableError: what is written of it cannot be read.
    """
    run = read_run(home)
    return run if run and run.supervisor.process() else None


def _wanted(before: Run | None, host: str | None, base_dir: Path | None, tls: tuple[Path, Path] | None) -> Told:
    # What nobody says is as it was.
    was = before.told if before else Told(host=LOOPBACK, base_dir=str(Path.cwd()))
    host = _own_address(host) if host else was.host
    tls = tls or was.tls
    if tls is not None:
        # Here: `stop` works without the package that this needs.
        from meedge_ray.operator.keeping.certificate import check_certificate  # noqa: PLC0415

        tls = (tls[0].resolve(), tls[1].resolve())
        check_certificate(*tls, host)
    certificate, key = (str(tls[0]), str(tls[1])) if tls else (None, None)
    return Told(host=host, base_dir=str((base_dir or Path(was.base_dir)).resolve()), certificate=certificate, key=key)


def _spawn(home: Home, told: Told) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "meedge_ray.operator.keeping.supervisor", f"--home={home.path}"]
    return spawn(home, _SUPERVISOR, [*command, *told.options()], {})


def _own_address(host: str) -> str:
    try:
        address = socket.gethostbyname(host)
        socket.create_server((address, 0)).close()
    except OSError as error:
        raise InvalidInputError(
            f"{host} is no address of this machine", where="--host", do="See `ip addr` for those it has"
        ) from error
    if address == "0.0.0.0":  # noqa: S104 - refused
        raise InvalidInputError("edge nodes must be told one address", where="--host", do="Name one of this machine's")
    return address


def _wait(
    home: Home,
    wanted: Told,
    supervisor: "subprocess.Popen[bytes] | None",
    told: Callable[[Run], None],
    timeout_s: float,
) -> Run:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (run := current_run(home)) is not None:
            if run.told != wanted:
                raise InvalidInputError(
                    f"runs already, with {' '.join(run.told.options())}",
                    where=str(home.path),
                    do="Run `meedge down` before",
                )
            told(run)
            if run.is_ready:
                return run
            for part in run.parts:
                if part.state == "failed" and part.never_ready >= _HOPELESS:
                    raise UnavailableError(
                        f"does not come up: {part.message}", where=part.name, do=_tail(home, part.name)
                    )
        if supervisor is not None and supervisor.poll() not in (None, BUSY):
            raise UnavailableError(
                f"ended with exit status {supervisor.returncode}", where=_SUPERVISOR, do=_tail(home, _SUPERVISOR)
            )
        time.sleep(_POLL_S)
    raise UnavailableError(f"is not ready after {timeout_s:g} s", where=str(home.path), do="See `meedge status`")


def _tail(home: Home, part: str) -> str:
    try:
        said = log_file(home, part).read_text(errors="replace")[-_MOST_LOG:].strip()
    except OSError:
        return ""
    return f"Its log ends with:\n{said}" if said else ""


def _run_or_none(home: Home) -> Run | None:
    try:
        return read_run(home)
    except MeedgeError:
        return None
