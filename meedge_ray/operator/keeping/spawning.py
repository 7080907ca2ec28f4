"""Starts the operator's processes: marked, in sessions of their own, saying what they say into the home's logs."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from meedge_ray.operator.keeping.home import Home, open_private
from meedge_ray.operator.keeping.processes import mark

_MOST_LOG_BYTES = 10 * 2**20


def spawn(home: Home, part: str, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start a process of a part that outlives its maker.

    Raises:
        OSError: the system refused.
    """
    path = log_file(home, part)
    if path.exists() and path.stat().st_size > _MOST_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    with open_private(path) as log:
        return subprocess.Popen(
            command,
            cwd=home.path,
            env={**_clean_environment(), **mark(home.path, part), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def log_file(home: Home, part: str) -> Path:
    """Return where a part's process says what it has to say."""
    return home.logs / f"{part}.log"


def _clean_environment() -> dict[str, str]:
    # Without what would lead Ray to another cluster, or kubectl's clients to another server.
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "KUBECONFIG"))}
