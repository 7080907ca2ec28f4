"""Keeps one process alive: starts it, asks after it, ends what is left of it, starts it again."""

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from meedge_ray.domain.errors import MeedgeError
from meedge_ray.operator.keeping.home import Home
from meedge_ray.operator.keeping.parts import Part
from meedge_ray.operator.keeping.processes import ProcessId, children, end_marked
from meedge_ray.operator.keeping.run_file import PartStatus, State
from meedge_ray.operator.keeping.spawning import log_file, spawn

_POLL_S = 0.5
_PROBE_PERIOD_S = 5.0
_LONG_S = 60.0  # who was ready for so long begins with the shortest pause again
_LONGEST_PAUSE_S = 30.0
_GRACE_S = 10.0


class Keeper:
    """Keeps a part until `stop` is set; then nothing is left of it."""

    def __init__(self, part: Part, home: Home, report: Callable[[PartStatus], None], stop: threading.Event) -> None:
        self._part, self._home, self._report, self._stop = part, home, report, stop
        self._status = PartStatus(name=part.name, state="starting", since=time.time())
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, before: PartStatus | None) -> None:
        """Keep it, going on with the process that a supervisor `before` left alive."""
        failures = 0  # in a row, of short life
        process = before.process if before and before.process and before.process.process() else None
        if before and process:
            self._status = replace(before, message="")
        while not self._stop.is_set():
            ready_s = 0.0
            try:
                if process is None:
                    process = self._started()
                ready_s, why = self._watch(process)
                message = f"{why}; its log is {log_file(self._home, self._part.name)}"
            except (MeedgeError, OSError) as error:
                message = str(error)
            self._end()
            if self._stop.is_set():
                break
            process = None
            failures = 1 if ready_s > _LONG_S else failures + 1
            never_ready = 0 if ready_s else self._status.never_ready + 1
            self._say(
                "failed", message=message, restarts=self._status.restarts + 1, never_ready=never_ready, process=None
            )
            self._stop.wait(min(_LONGEST_PAUSE_S, 0.25 * 2**failures))
        self._end()
        self._say("stopped", process=None)

    def _started(self) -> ProcessId:
        self._end()
        self._part.prepare(self._status.never_ready)
        self._child = spawn(self._home, self._part.name, self._part.command, self._part.environment)
        process = ProcessId.of(self._child.pid)
        if process is None:
            raise OSError("it ended at once")
        self._say("starting", process=process)
        return process

    def _watch(self, process: ProcessId) -> tuple[float, str]:
        # Returns for how many seconds it was ready, and why it is not any more.
        asked_at, ready_at, heard_at = 0.0, 0.0, time.monotonic()
        vital = [process]
        while not self._stop.wait(_POLL_S):
            now = time.monotonic()
            if any(each.process() is None for each in vital):
                return ready_at and now - ready_at, f"it ended{self._exit_status()}"
            if ready_at and now - asked_at < _PROBE_PERIOD_S:
                continue
            asked_at = now
            if self._part.answers(process.pid):
                heard_at = time.monotonic()
                if not ready_at:
                    ready_at = heard_at
                    vital += children(process, self._part.vital)
                    self._say("ready")
            limit_s = self._part.silence_timeout_s if ready_at else self._part.start_timeout_s
            if now - heard_at > limit_s:
                return ready_at and now - ready_at, f"it did not answer for {limit_s:g} s"
        return 0.0, ""

    def _exit_status(self) -> str:
        status = None if self._child is None else self._child.poll()
        return "" if status is None else f" with exit status {status}"

    def _end(self) -> None:
        try:
            end_marked(self._home.path, self._part.name, grace_s=_GRACE_S)
        except TimeoutError as error:
            self._say("failed", message=str(error))
        if self._child is not None:
            self._child.poll()

    def _say(self, state: State, **changes: Any) -> None:  # noqa: ANN401 - fields of the status
        self._status = self._status.then(state, **changes)
        self._report(self._status)
