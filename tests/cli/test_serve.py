"""`meedge serve` as its user runs it: a process, real HTTP, an edge node that joins by the printed command."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from meedge_ray.domain.elastic import Bundle

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.rstrip() == "}":
            return dict(json.loads("".join(lines)))
    raise AssertionError("".join(lines))


def test_what_serve_prints_is_enough_to_call_it_and_to_join_it(tiny: tuple[Path, Bundle], tmp_path: Path) -> None:
    directory, bundle = tiny
    cache = tmp_path / "cache"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MEEDGE_TOKEN"))}
    command = [sys.executable, "-m", "meedge_ray.cli.main", "serve", str(directory), "--port", str(free_port())]
    command += ["--memory", "1Mi", "--cache-dir", str(cache), "-o", "json"]
    served = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=(tmp_path / "log").open("wb"), text=True
    )
    family: list[psutil.Process] = []
    try:
        said = read_answer(served)
        headers = {"Authorization": f"Bearer {said['token']}"}
        models = httpx.get(f"{said['url']}/v1/models", headers=headers).json()["models"]
        assert [model["name"] for model in models] == ["tiny"]
        assert httpx.get(f"{said['url']}/v1/models").status_code == 401

        assert not cache.exists()
        join = shlex.split(said["join"].replace("NAME", "pi-2"))
        node = subprocess.Popen(
            [f"{Path(sys.executable).parent}/{word}" if word == "ray" else word for word in ["env", *join]],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        needed = {block.unit.sha256 for block in bundle.blocks}
        deadline = time.monotonic() + 60
        while not needed <= {path.stem for path in cache.rglob("*.onnx")}:
            assert time.monotonic() < deadline, "the node's device pulled no units"
            time.sleep(0.1)
        node.terminate()
        node.wait(30)
        family = psutil.Process(served.pid).children(recursive=True)
    finally:
        served.send_signal(signal.SIGTERM)
        served.wait(60)
    assert served.returncode == 0, (tmp_path / "log").read_text()
    _, alive = psutil.wait_procs([process for process in family if "Agent" not in process.name()], timeout=30)
    assert not alive, "its cluster outlived it"
