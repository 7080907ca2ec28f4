"""What runs in a home now: written by its supervisor, read by everyone else."""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from meedge_ray.bundle.files import write_atomically
from meedge_ray.domain.errors import UnavailableError
from meedge_ray.operator.keeping.home import Home
from meedge_ray.operator.keeping.processes import ProcessId

State = Literal["starting", "ready", "waiting", "failed", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartStatus:
    """One part of the operator: how it stands, since when (seconds since 1970), and how often it was started again.

    A part that `failed` is started again after a while; `message` says why it did.
    """

    name: str
    state: State
    since: float
    process: ProcessId | None = None
    restarts: int = 0
    never_ready: int = 0  # how often in a row it failed before it was ready
    message: str = ""

    def then(self, state: State, **changes: Any) -> "PartStatus":  # noqa: ANN401 - fields
        """Return how it stands now; a message is of one state alone."""
        since = self.since if state == self.state else time.time()
        changes = {"never_ready": 0, **changes} if state == "ready" else changes
        return replace(self, **{"since": since, "message": "", **changes, "state": state})


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a supervisor is told.

    Args:
        host: address of this machine at which edge nodes and devices find it.
        base_dir: where relative paths in manifests start.
        certificate: PEM file that services are served with over HTTPS; without one they speak HTTP.
        key: PEM file of the certificate's key.
    """

    host: str
    base_dir: str
    certificate: str | None = None
    key: str | None = None

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """The certificate and its key, None without both."""
        return None if self.certificate is None or self.key is None else (Path(self.certificate), Path(self.key))

    def options(self) -> list[str]:
        """Return it as options, of `meedge up` and of the supervisor."""
        tls = [] if self.tls is None else [f"--tls-cert={self.tls[0]}", f"--tls-key={self.tls[1]}"]
        return [f"--host={self.host}", f"--base-dir={self.base_dir}", *tls]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The supervisor, what it was told, and its parts in the order they start."""

    supervisor: ProcessId
    told: Told
    started_at: float
    parts: tuple[PartStatus, ...] = field(default=())

    @property
    def is_ready(self) -> bool:
        """Whether every part answers."""
        return bool(self.parts) and all(part.state == "ready" for part in self.parts)

    def part(self, name: str) -> PartStatus | None:
        """Return one part."""
        return next((part for part in self.parts if part.name == name), None)

    def with_part(self, status: PartStatus) -> "Run":
        """Return the run with one part as it is now."""
        return replace(self, parts=tuple(status if part.name == status.name else part for part in self.parts))


def write_run(home: Home, run: Run) -> None:
    """Write what runs.

    Raises:
        UnavailableError: the file system refused.
    """
    write_atomically(home.run_file, json.dumps(asdict(run), indent=2).encode(), private=True)


def read_run(home: Home) -> Run | None:
    """Return what ran when it was last written, None if nothing does.

    Raises:
        UnavailableError: it cannot be read.
    """
    try:
        content = json.loads(home.run_file.read_bytes())
        parts = tuple(PartStatus(**{**part, "process": _process(part["process"])}) for part in content.pop("parts"))
        supervisor, told = ProcessId(**content["supervisor"]), Told(**content["told"])
        return Run(**{**content, "supervisor": supervisor, "told": told, "parts": parts})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnavailableError(
            f"cannot be read ({error})", where=str(home.run_file), do="Run `meedge down`, then `meedge up`"
        ) from error


def _process(content: Any) -> ProcessId | None:  # noqa: ANN401 - any JSON
    return None if content is None else ProcessId(**content)
