"""Where the agents of this machine are found: a folder each, with its socket and what it says of itself."""

import fcntl
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import Field, ValidationError

from meedge_ray.api.serving import Body
from meedge_ray.bundle.files import write_atomically
from meedge_ray.domain.errors import InvalidInputError, NotFoundError, UnavailableError

MOST_SOCKET_PATH_BYTES = 100  # the shortest limit of a system in use is 103

RUN_DIR = "MEEDGE_RUN_DIR"  # the environment's name of the folder that agents have their folders in

_SOCKET = "agent.sock"
_TRIES, _PAUSE_S = 10, 0.02  # to claim: who only looks whether it is claimed holds it for a moment


class AgentRecord(Body):
    """What an agent says of itself beside its socket."""

    pid: int = Field(gt=0)
    device: str
    http_port: int | None = None


class AgentPlace:
    """The folder of one device's agent. Naming it makes nothing."""

    def __init__(self, device: str, run_dir: Path | None = None) -> None:
        """Name it.

        Args:
            device: the device's name.
            run_dir: where every agent has its folder; None: `run_folder()`.

        Raises:
            InvalidInputError: that is no name, or the path is too long for a socket.
        """
        if not device or device.startswith(".") or "/" in device or "\0" in device:
            raise InvalidInputError(f"{device!r} is no name of a device", where="device", do="Give one such as pi-1")
        self.device = device
        self.path = (run_folder() if run_dir is None else run_dir.expanduser().absolute()) / device
        if len(os.fsencode(self.socket)) >= MOST_SOCKET_PATH_BYTES:
            raise InvalidInputError(
                f"is too long for a socket: {MOST_SOCKET_PATH_BYTES - 1} bytes at most",
                where=str(self.socket),
                do="Name a shorter folder in MEEDGE_RUN_DIR",
            )

    @property
    def socket(self) -> Path:
        """The Unix socket."""
        return self.path / _SOCKET

    @property
    def record_file(self) -> Path:
        """What the agent says of itself."""
        return self.path / "agent.json"

    @property
    def token_file(self) -> Path:
        """The token of loopback HTTP."""
        return self.path / "http-token"

    @property
    def _lock_file(self) -> Path:
        return self.path / "lock"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the only agent of this device while the context lasts; what a killed one left is cleared away.

        Raises:
            InvalidInputError: the folder is somebody else's.
            UnavailableError: another agent of this device runs, or the file system refuses.
        """
        try:
            _private_folder(self.path)
            lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            do = "Fix its permissions, or name another folder in MEEDGE_RUN_DIR"
            raise UnavailableError(f"cannot be used ({error.strerror})", where=str(self.path), do=do) from error
        try:
            if not _locked(lock, tries=_TRIES):
                do = "Use it, or stop it with `meedge agent stop`"
                raise UnavailableError("an agent of this device runs already", where=self.device, do=do)
            self._clear()
            yield
            self._clear()
        finally:
            os.close(lock)

    def is_claimed(self) -> bool:
        """Return whether an agent of this device runs, or still ends."""
        try:
            lock = os.open(self._lock_file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _locked(lock)
        finally:
            os.close(lock)

    def is_listened_to(self) -> bool:
        """Return whether an agent answers here."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(os.fspath(self.socket))
            except OSError:
                return False
            return True

    def write_record(self, *, http_port: int | None) -> None:
        """Say who runs here: this process.

        Raises:
            UnavailableError: the file system refuses.
        """
        record = AgentRecord(pid=os.getpid(), device=self.device, http_port=http_port)
        write_atomically(self.record_file, record.model_dump_json().encode(), private=True)

    def record(self) -> AgentRecord | None:
        """Return what the agent says of itself, None if there is none."""
        try:
            return AgentRecord.model_validate_json(self.record_file.read_bytes())
        except (OSError, ValidationError):
            return None

    def http_token(self) -> str:
        """Return the token of loopback HTTP, made at the first call and kept; who removes its file renews it.

        Raises:
            UnavailableError: the file system refuses.
        """
        with suppress(OSError):
            if token := self.token_file.read_text().strip():
                return token
        token = secrets.token_urlsafe(32)
        write_atomically(self.token_file, f"{token}\n".encode(), private=True)
        return token

    def _clear(self) -> None:
        for file in (self.record_file, self.socket):
            file.unlink(missing_ok=True)


def run_folder() -> Path:
    """Return where agents have their folders: of MEEDGE_RUN_DIR, of the session, or of the user's caches."""
    if given := os.environ.get(RUN_DIR):
        return Path(given).expanduser().absolute()
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(session) / "meedge"
    return Path("~/.cache/meedge/run").expanduser()


def place_of(device: str | None = None, run_dir: Path | None = None) -> AgentPlace:
    """Return the place of a device's agent; of the only one that runs if none is named.

    Raises:
        InvalidInputError: several run, or that is no name.
        NotFoundError: none is named, and none runs.
    """
    if device is not None:
        return AgentPlace(device, run_dir)
    folder = run_folder() if run_dir is None else run_dir
    names = sorted(path.parent.name for path in folder.glob(f"*/{_SOCKET}"))
    running = [place for place in (AgentPlace(name, run_dir) for name in names) if place.is_listened_to()]
    if not running:
        raise NotFoundError("no agent runs", where=str(folder), do="Start one with `meedge agent run`")
    if len(running) > 1:
        named = ", ".join(place.device for place in running)
        raise InvalidInputError("several agents run", where="device", do=f"Name one of {named}")
    return running[0]


def _private_folder(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise InvalidInputError("is no folder of yours", where=str(path), do="Name another one in MEEDGE_RUN_DIR")
    path.chmod(0o700)


def _locked(lock: int, *, tries: int = 1) -> bool:
    for pause_s in (*[_PAUSE_S] * (tries - 1), 0):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause_s)
        else:
            return True
    return False
