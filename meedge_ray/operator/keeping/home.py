"""The operator's home: the folder of everything that outlives `meedge down`, and where its processes meet."""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from meedge_ray.bundle.files import write_atomically
from meedge_ray.domain.errors import InvalidInputError, MeedgeError, UnavailableError

VERSION = 1
_FOLDERS = ("logs", "tokens", "bundles", "manifests", "ray")


class BusyError(MeedgeError):
    """Another process keeps this home."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Chosen free at the first start, and kept: kubeconfigs and edge nodes know them."""

    api_server: int
    ray: int
    ray_client: int
    dashboard: int
    serve: int


class Home:
    """Names what lies in the folder; `open_home` makes it."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()

    @property
    def kubeconfig(self) -> Path:
        """For kubectl and everything else that speaks with the API server."""
        return self.path / "kubeconfig"

    @property
    def logs(self) -> Path:
        """Folder of what the processes say."""
        return self.path / "logs"

    @property
    def config_file(self) -> Path:
        """The home's version and ports."""
        return self.path / "home.json"

    @property
    def run_file(self) -> Path:
        """What runs now."""
        return self.path / "run.json"

    @property
    def ray_storage(self) -> Path:
        """Where Ray's head keeps what it must know after a crash."""
        return self.path / "ray" / "gcs"

    @property
    def temp(self) -> Path:
        """Folder of Ray's sockets and logs. Not in the home: paths of Unix sockets end at 107 bytes."""
        name = hashlib.sha256(str(self.path).encode()).hexdigest()[:12]
        return Path("/tmp") / f"meedge-up-{name}"  # noqa: S108 - `private_folder` refuses somebody else's

    @property
    def ray_token(self) -> str:
        """The secret that lets nodes and jobs into the cluster; made at the first call."""
        path = self.path / "ray" / "token"
        if not path.exists():
            write_atomically(path, secrets.token_hex(32).encode(), private=True)
        return path.read_text().strip()

    def ports(self) -> Ports:
        """Return the home's ports, chosen at the first call.

        Raises:
            InvalidInputError: what is written there cannot be understood, or another version wrote it.
        """
        content = self._config()
        if "ports" not in content:
            content["ports"] = asdict(_free_ports())
            write_atomically(self.config_file, json.dumps(content, indent=2).encode(), private=True)
        try:
            return Ports(**{each.name: int(content["ports"][each.name]) for each in fields(Ports)})
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                "must name five ports", where=f"{self.config_file}: ports", do="Take the line out: new ones are chosen"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one that keeps this home, while the context lasts.

        Raises:
            BusyError: another process is.
        """
        with open_private(self.path / "lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError("is kept by another process", where=str(self.path), do="See `meedge status`") from error
            yield

    def forget_cluster(self) -> None:
        """Remove what Ray keeps of the cluster: the next head begins with none."""
        shutil.rmtree(self.ray_storage, ignore_errors=True)
        shutil.rmtree(self.temp, ignore_errors=True)

    def is_locked(self) -> bool:
        """Whether a process keeps this home now."""
        try:
            with self.locked():
                return False
        except (BusyError, FileNotFoundError) as error:
            return isinstance(error, BusyError)

    def _config(self) -> dict[str, Any]:
        try:
            content = json.loads(self.config_file.read_bytes())
            version = int(content["version"])
        except FileNotFoundError:
            return {"version": VERSION}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"cannot be read ({error})", where=str(self.config_file), do="Restore it, or take another --home"
            ) from error
        if version != VERSION:
            age = "a newer" if version > VERSION else "an older"
            raise InvalidInputError(
                f"was made by {age} version of meedge-ray ({version}, this one reads {VERSION})",
                where=str(self.path),
                do="Use that version, or take another --home",
            )
        return dict(content)


def home_path(given: Path | None = None) -> Path:
    """Return the folder that is named, by an option or else by MEEDGE_HOME, or ~/.meedge."""
    return given or Path(os.environ.get("MEEDGE_HOME") or "~/.meedge").expanduser()


def open_home(path: Path) -> Home:
    """Return the home, made if it is not there; everything in it is for this user alone.

    Raises:
        InvalidInputError: the folder is something else's, or another version's.
        UnavailableError: it cannot be written.
    """
    home = Home(path)
    if not home.config_file.exists() and home.path.is_dir() and any(home.path.iterdir()):
        raise InvalidInputError(
            "is a folder with other things in it", where=str(home.path), do="Name an empty or a new one with --home"
        )
    try:
        for folder in (home.path, *(home.path / name for name in _FOLDERS)):
            private_folder(folder)
        home.ports()
    except OSError as error:
        raise UnavailableError(
            f"cannot be written ({error.strerror})",
            where=str(home.path),
            do="Fix the permissions, free space, or name another with --home",
        ) from error
    return home


def private_folder(path: Path) -> None:
    """Make a folder that only this user can look into.

    Raises:
        InvalidInputError: it is there and somebody else's, or no folder.
        OSError: it cannot be made.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise InvalidInputError("is no folder of yours", where=str(path), do="Remove it")
    path.chmod(0o700)


def open_private(path: Path) -> BinaryIO:
    """Open a file at its end; a new one only this user can read.

    Raises:
        OSError: the system refused.
    """
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


def check_free(port: int, what: str) -> None:
    """Do nothing if a port can be listened on.

    Raises:
        UnavailableError: it is taken; the message says by whom, where the system tells.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            raise UnavailableError(
                f"port {port} is taken{_holder(port)}",
                where=what,
                do="Free it, or take `ports` out of the home's home.json: new ones are chosen",
            ) from error


def _holder(port: int) -> str:
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""


def _free_ports() -> Ports:
    # All held until all are found, so that no two are the same.
    held = [socket.create_server(("", 0)) for _ in fields(Ports)]
    try:
        return Ports(**{each.name: taken.getsockname()[1] for each, taken in zip(fields(Ports), held, strict=True)})
    finally:
        for taken in held:
            taken.close()
