"""Every example is run as its README says, at a size that fits a test."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent


def run(*command: str, cwd: Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def meedge(*arguments: str, cwd: Path, **environment: str) -> str:
    return run("-m", "meedge_ray.cli.main", *arguments, cwd=cwd, **environment)


@pytest.mark.ray
def test_the_demo_shows_the_whole_path(tmp_path: Path) -> None:
    manifest = (HERE / "01-digits" / "model.yaml").read_text()
    small = re.sub(r"epochs: \d+", "epochs: 2", manifest.replace("resnet20", "resnet8")).replace(
        "    imageSize: 16\n", ""
    )
    (tmp_path / "model.yaml").write_text(small)
    demo = str(HERE / "01-digits" / "demo.py")
    said = run(demo, "--manifest", "model.yaml", "--report", "report", "--kills", "300", cwd=tmp_path)
    assert "report/index.html" in said
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert set(report["methods"]) == {"single_exit", "multi_exit_fc", "branchynet", "einet", "spinn", "meedge"}
    assert report["methods"]["meedge"]["mae"] > report["methods"]["single_exit"]["mae"]
    assert len(report["trace"]) == 8
    for change in report["trace"]:
        assert change["resident_bytes"] <= change["memory_bytes"]
        assert change["answered"] == 1.0
    assert {"predicted", "measured"} == set(report["kills"])
    assert (tmp_path / "report" / "memory-changes.png").exists()


@pytest.mark.ray
def test_your_own_model_on_your_own_samples(tmp_path: Path) -> None:
    folder = HERE / "03-your-own-model"
    run(str(folder / "samples.py"), "--count", "400", cwd=tmp_path)
    (tmp_path / "model.yaml").write_text((folder / "model.yaml").read_text())
    meedge("build", "model.yaml", "-o", "mine", cwd=tmp_path, PYTHONPATH=str(folder))
    content = json.loads(meedge("inspect", "mine", "-o", "json", cwd=tmp_path))
    assert content["architecture"] == "network:Network"
    assert content["input_shape"] == [3, 20, 20]
    assert content["exits"] == 3


@pytest.mark.ray
def test_a_device_chooses_another_body(tmp_path: Path) -> None:
    folder = HERE / "04-another-body"
    small = re.sub(r"epochs: \d+", "epochs: 2", (folder / "model.yaml").read_text()).replace("resnet20", "resnet14")
    (tmp_path / "model.yaml").write_text(small)
    meedge("build", "model.yaml", "-o", "digits", cwd=tmp_path)
    run(str(folder / "samples.py"), "--count", "60", cwd=tmp_path)
    budget = ("--latency-ms", "1000", "--data", "samples.npz")
    said = json.loads(meedge("adapt", "digits", *budget, "--save", "fast", "-o", "json", cwd=tmp_path))
    assert said["subnets"] > 100
    assert said["evaluated"] <= 97  # and the original
    content = json.loads(meedge("inspect", "fast", "-o", "json", cwd=tmp_path))
    assert [block["name"] for block in content["blocks"]] == said["subnet"]
    assert content["final_accuracy"] == said["accuracy"]
    lines = run(str(folder / "budget.py"), "digits", "samples.npz", cwd=tmp_path).splitlines()
    assert len(lines) == 5
    assert all(line.startswith("budget ") for line in lines)


def test_the_committed_report_of_resnet20_beats_its_baselines_at_equal_memory() -> None:
    report = json.loads((HERE / "02-resnet20-cifar10" / "report" / "report.json").read_text())
    methods = report["methods"]
    assert methods["meedge"]["resident_bytes"] <= methods["spinn"]["resident_bytes"]
    assert methods["meedge"]["mae"] > max(methods["spinn"]["mae"], methods["single_exit"]["mae"])
    assert abs(report["kills"]["predicted"] - report["kills"]["measured"]) <= 0.01


@pytest.mark.ray
def test_a_device_without_ray(tmp_path: Path) -> None:
    manifest = (HERE / "01-digits" / "model.yaml").read_text()
    (tmp_path / "model.yaml").write_text(re.sub(r"epochs: \d+", "epochs: 1", manifest.replace("resnet20", "resnet8")))
    meedge("build", "model.yaml", "-o", "digits", cwd=tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["MEEDGE_RUN_DIR"] = str(tmp_path / "run")
    command = [sys.executable, "-m", "meedge_ray.cli.main"]
    with ExitStack() as stack:

        def started(*arguments: str, **more: str) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [*command, *arguments], cwd=tmp_path, env=environment | more, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.send_signal, signal.SIGINT)
            return process

        serving = started("serve", "digits", "--port", str(port), "-o", "json")
        assert serving.stdout is not None
        said = json.loads("".join(iter(serving.stdout.readline, "}\n")) + "}")
        token, _, agent = said["enrol"].partition(" meedge ")
        arguments = agent.replace("NAME", "pi-1").replace("digits/", "").split()
        started(*arguments, "--cache-dir", "cache", MEEDGE_TOKEN=token.removeprefix("MEEDGE_TOKEN="))

        def status() -> dict[str, Any]:
            done = subprocess.run(
                [*command, "agent", "status", "-o", "json"],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                check=False,
            )
            return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

        give_up = time.monotonic() + 60
        while not (now := status()) or now["running"] is None or now["busy"]:
            assert time.monotonic() < give_up, now
        assert now["running"]["source"] == "service"
        assert now["heartbeat_problem"] is None
        ask = str(HERE / "05-on-the-device" / "ask.py")
        run_dir = environment["MEEDGE_RUN_DIR"]
        assert "branches in" in run(ask, "--seconds", "1", cwd=tmp_path, MEEDGE_RUN_DIR=run_dir)
        meedge(
            "agent", "memory", "1Ki", "--in-seconds", "60", cwd=tmp_path, MEEDGE_RUN_DIR=environment["MEEDGE_RUN_DIR"]
        )
        assert status()["foreseen"]
        meedge("agent", "stop", cwd=tmp_path, MEEDGE_RUN_DIR=environment["MEEDGE_RUN_DIR"])
