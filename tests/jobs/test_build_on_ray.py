"""The build as its user runs it: a process, on a Ray cluster of its own, killed in the middle."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import family, survivors

from meedge_ray.bundle.manifest import read_bundle, verify_units

pytestmark = pytest.mark.ray


def start(manifest: Path, output: Path, log: Path) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "meedge_ray.cli.main", "build", str(manifest), "-o", str(output)]
    with log.open("wb") as said:
        return subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)


def finished_exits(output: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_ino for path in output.glob(".build/*/exit-*/weights.safetensors")}


def test_a_build_killed_while_it_cultivates_goes_on_without_redoing_finished_exits(
    tiny_manifest: Path, tmp_path: Path
) -> None:
    # Long enough that the last exits are still growing when the first are done.
    tiny_manifest.write_text(tiny_manifest.read_text().replace("epochs: 2", "epochs: 12"))
    output = tmp_path / "bundle"
    log = tmp_path / "log"
    killed = start(tiny_manifest, output, log)
    deadline = time.monotonic() + 600
    while not finished_exits(output):
        assert killed.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started = family(killed.pid)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = finished_exits(output)
    assert not (output / "bundle.json").exists()
    assert not survivors(started), "its cluster outlived it"

    resumed = start(tiny_manifest, output, log)
    inodes = dict(before)
    while resumed.poll() is None:
        inodes.update({name: inode for name, inode in finished_exits(output).items() if name in before})
        time.sleep(0.01)
    assert resumed.returncode == 0, log.read_text()
    assert "100%" in log.read_text()
    assert inodes == before, "a finished exit was trained again"
    verify_units(output, read_bundle(output))
    assert not list(Path("/tmp").glob(f"meedge-{killed.pid}-*")), "the killed cluster's folder is still there"
