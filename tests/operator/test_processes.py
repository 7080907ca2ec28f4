import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from meedge_ray.operator.keeping.processes import ProcessId, end_marked, mark, marked

_SLEEP = "import time; time.sleep(600)"
# Says when it is deaf, and has a child of its own.
_DEAF = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", {_SLEEP!r}], start_new_session=True)
print("deaf", flush=True)
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    started = []

    def run(code: str, part: str, home: Path = tmp_path) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=mark(home, part), stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def pids(processes: list[psutil.Process]) -> set[int]:
    return {process.pid for process in processes}


def test_processes_are_found_by_home_and_part(start, tmp_path: Path) -> None:
    one, other, foreign = start(_SLEEP, "ray"), start(_SLEEP, "api"), start(_SLEEP, "ray", tmp_path / "other")
    assert pids(marked(tmp_path)) == {one.pid, other.pid}
    assert pids(marked(tmp_path, "ray")) == {one.pid}
    assert foreign.pid not in pids(marked(tmp_path))


def test_nothing_of_a_part_is_left_and_nothing_else_is_touched(start, tmp_path: Path) -> None:
    deaf, other = start(_DEAF, "ray"), start(_SLEEP, "api")
    assert deaf.stdout.readline() == "deaf\n"
    assert len(marked(tmp_path, "ray")) == 2
    end_marked(tmp_path, "ray", grace_s=0.2)
    assert marked(tmp_path, "ray") == []
    assert other.poll() is None


def test_a_title_does_not_hide_a_process(start, tmp_path: Path) -> None:
    # As Ray's workers do.
    raylet = pytest.importorskip("ray._raylet", reason="Ray is not installed")
    code = (
        f"import ray._raylet, time; ray._raylet.setproctitle('ray::{'x' * 300}'); print('titled', flush=True); {_SLEEP}"
    )
    assert raylet
    titled = start(code, "ray")
    assert titled.stdout.readline() == "titled\n"
    assert pids(marked(tmp_path)) == {titled.pid}


def test_a_dead_process_is_not_taken_for_another(start) -> None:
    process = start(_SLEEP, "api")
    identity = ProcessId.of(process.pid)
    assert identity is not None
    assert identity.process().pid == process.pid
    assert ProcessId(process.pid, identity.created - 60).process() is None
    process.kill()
    psutil.wait_procs([psutil.Process(process.pid)], timeout=0.5)
    assert identity.process() is None  # a zombie until somebody asks after it
    process.wait()
    assert identity.process() is None
    assert ProcessId.of(process.pid) is None
