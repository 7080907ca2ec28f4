"""`meedge up` as its user runs it: the commands, each a process, in a home of their own."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from real_operator import clean_environment

from meedge_ray.operator.keeping.home import Home
from meedge_ray.operator.keeping.places import bearer, dashboard_url
from meedge_ray.operator.keeping.processes import marked


class Up:
    """The commands, in a home of their own."""

    def __init__(self, home: Path) -> None:
        self.home = Home(home)
        self.environment = clean_environment() | {"MEEDGE_HOME": str(home)}

    def meedge(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "meedge_ray.cli.main", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def up(self, *arguments: str) -> dict[str, Any]:
        ended = self.meedge("up", "-o", "json", *arguments)
        assert ended.returncode == 0, ended.stderr
        return dict(json.loads(ended.stdout))

    def status(self) -> dict[str, Any]:
        ended = self.meedge("status", "-o", "json")
        status = dict(json.loads(ended.stdout))
        assert ended.returncode == (0 if status["state"] == "ready" else 1)
        return status

    def until(self, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        deadline = time.monotonic() + 240
        while not holds(status := self.status()):
            assert time.monotonic() < deadline, json.dumps(status, indent=1)
            time.sleep(0.5)
        return status

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        ended = subprocess.run(
            ["kubectl", f"--kubeconfig={self.home.kubeconfig}", f"--cache-dir={self.home.path / 'cache'}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def nodes(self) -> list[tuple[str, str]]:
        """The state of every node, and the device it is labelled with."""
        url = f"{dashboard_url(self.home.ports())}/api/v0/nodes?detail=true"
        answer = httpx.get(url, headers=bearer(self.home), timeout=10, trust_env=False).json()
        return [
            (node["state"], node["labels"].get("meedge.dev/device", "")) for node in answer["data"]["result"]["result"]
        ]


@contextmanager
def running_up(home: Path) -> Iterator[Up]:
    """Give the commands; afterwards the home is down, and nothing is left of what ran there."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl on PATH")
    up = Up(home)
    try:
        yield up
    finally:
        family = marked(up.home.path)
        up.meedge("down")
        left = [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        for process in left:
            process.kill()
    assert left == []
