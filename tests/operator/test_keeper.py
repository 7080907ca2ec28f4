"""Keepers of real, small processes."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meedge_ray.domain.errors import UnavailableError
from meedge_ray.operator.keeping.home import Home, open_home
from meedge_ray.operator.keeping.keeper import Keeper
from meedge_ray.operator.keeping.parts import Part
from meedge_ray.operator.keeping.processes import marked
from meedge_ray.operator.keeping.run_file import PartStatus

_WORKS = "import time; print('at work', flush=True); time.sleep(600)"


class Kept:
    """A keeper at work in a thread, and all it has reported."""

    def __init__(self, part: Part, home: Home, before: PartStatus | None = None) -> None:
        self.said: list[PartStatus] = []
        self._stop = threading.Event()
        keeper = Keeper(part, home, self.said.append, self._stop)
        self._thread = threading.Thread(target=keeper.run, args=(before,))
        self._thread.start()

    def until(self, holds: Callable[[PartStatus], object]) -> PartStatus:
        deadline = time.monotonic() + 30
        while not (self.said and holds(self.said[-1])):
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)
        return self.said[-1]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


@pytest.fixture
def keep(home: Home) -> Iterator[Callable[..., Kept]]:
    kept: list[Kept] = []

    def run(before: PartStatus | None = None, code: str = _WORKS, **changes: object) -> Kept:
        settings = {
            "name": "worker",
            "command": [sys.executable, "-c", code],
            "environment": {},
            "prepare": lambda failures: None,
            "answers": lambda pid: True,
        }
        kept.append(Kept(Part(**{**settings, **changes}), home, before))
        return kept[-1]

    yield run
    for each in kept:
        each.stop()


def ready(status: PartStatus) -> bool:
    return status.state == "ready"


def test_what_is_killed_is_started_again_and_counted(keep, home: Home) -> None:
    kept = keep()
    first = kept.until(ready).process
    first.process().kill()
    again = kept.until(lambda status: ready(status) and status.process != first)
    assert again.restarts == 1
    assert [process.pid for process in marked(home.path)] == [again.process.pid]
    assert "exit status -9" in next(status.message for status in kept.said if status.state == "failed")


def test_nothing_is_left_when_it_stops(keep, home: Home) -> None:
    kept = keep()
    kept.until(ready)
    kept.stop()
    assert kept.said[-1].state == "stopped"
    assert marked(home.path) == []


def test_what_a_killed_supervisor_left_is_taken_over(keep, home: Home) -> None:
    first = keep()
    status = first.until(ready)
    second = keep(before=status)
    assert second.until(ready).process == status.process
    assert {process.pid for process in marked(home.path)} == {status.process.pid}


def test_what_a_killed_supervisor_left_half_is_ended_first(keep, home: Home) -> None:
    # The process is gone, and what it had started is not.
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {_WORKS!r}]); {_WORKS}"
    kept = keep(code=parent)
    status = kept.until(ready)
    orphan = next(process for process in marked(home.path) if process.pid != status.process.pid)
    status.process.process().kill()
    kept.until(lambda now: ready(now) and now.process != status.process)
    assert not orphan.is_running() or orphan.status() == "zombie"


def test_what_does_not_answer_any_more_is_replaced(keep) -> None:
    silent = set()
    kept = keep(answers=lambda pid: pid not in silent, silence_timeout_s=0.0)
    first = kept.until(ready).process
    silent.add(first.pid)
    kept.until(lambda status: ready(status) and status.process != first)
    assert first.process() is None
    assert "did not answer" in next(status.message for status in kept.said if status.state == "failed")


def test_what_cannot_be_started_says_why_and_is_tried_again(keep) -> None:
    def prepare(failures: int) -> None:
        if failures < 2:
            raise UnavailableError("port 1 is taken", where="the worker")

    kept = keep(prepare=prepare)
    assert kept.until(ready).restarts == 2
    assert "port 1 is taken" in next(status.message for status in kept.said if status.state == "failed")


def test_what_it_says_is_in_its_log(keep, home: Home) -> None:
    kept = keep()
    kept.until(ready)
    deadline = time.monotonic() + 10
    while "at work" not in (home.logs / "worker.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
