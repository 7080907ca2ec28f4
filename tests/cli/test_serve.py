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
import pytest
from processes import family, survivors

from meedge_ray.actors.agents import stop_agents
from meedge_ray.agent.places import RUN_DIR, place_of
from meedge_ray.domain.elastic import Bundle

pytestmark = pytest.mark.ray


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
    command += ["--memory", "1Mi", "--cache-dir", str(cache), "--plan", "samplewise", "-o", "json"]
    with (tmp_path / "log").open("wb") as log:
        served = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    started = []
    node = None
    run_dir = tmp_path / "run"
    try:
        said = read_answer(served)
        headers = {"Authorization": f"Bearer {said['token']}"}
        models = httpx.get(f"{said['url']}/v1/models", headers=headers).json()["models"]
        assert [model["name"] for model in models] == ["tiny"]
        assert httpx.get(f"{said['url']}/v1/models").status_code == 401

        assert not cache.exists()
        join = shlex.split(said["join"].replace("NAME", "pi-2"))
        with (tmp_path / "node").open("wb") as log:
            node = subprocess.Popen(
                [f"{Path(sys.executable).parent}/{word}" if word == "ray" else word for word in ["env", *join]],
                env=environment | {RUN_DIR: str(run_dir)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        assert bundle.predictor is not None
        # Wanted whether it pays for this model or not: the devices are told to plan sample by sample.
        needed = {bundle.predictor.unit.sha256, *(block.unit.sha256 for block in bundle.blocks)}
        deadline = time.monotonic() + 60
        while not needed <= {path.stem for path in cache.rglob("*.onnx")}:
            assert time.monotonic() < deadline, (tmp_path / "node").read_text()
            time.sleep(0.1)
        started = family(served.pid)
    finally:
        if node is not None:
            node.terminate()
            node.wait(60)
            assert place_of("pi-2", run_dir).is_listened_to(), "the agent outlives its node"
            stop_agents(run_dir)
        served.send_signal(signal.SIGTERM)
        served.communicate(timeout=60)
    assert served.returncode == 0, (tmp_path / "log").read_text()
    assert not survivors(started), "its cluster outlived it"
