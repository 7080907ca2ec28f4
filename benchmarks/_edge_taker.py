"""Takes the processor from an agent at random moments, as a real-time process of its own.

Run by edge_preemption.py: python _edge_taker.py JSON. It says that it is ready, reads when the first slot begins, and
prints when it took it and how late that was: s, on the system's monotonic clock.
"""

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from random import Random
from time import monotonic, sleep
from typing import Literal

PRIORITY = 20  # of real time: above the agent and its client


@dataclass(frozen=True, kw_only=True)
class Taking:
    """What is done in each of `count` slots: at a moment uniform over its first `window_s`, and for how long.

    kill: SIGUSR1 is sent. stop: SIGSTOP, and SIGCONT when `until_s` of the slot have passed. burn: this process
    computes until then, on the agent's core. load: from the first slot to the last it computes `duty` of every
    `period_s`.
    """

    how: Literal["kill", "stop", "burn", "load"]
    pid: int
    core: int
    slot_s: float
    window_s: float
    until_s: float
    count: int
    seed: int = 0
    period_s: float = 0.001
    duty: float = 0.4

    def json(self) -> str:
        """Return it as `main` takes it."""
        return json.dumps(asdict(self))


def main() -> None:
    taking = Taking(**json.loads(sys.argv[1]))
    os.sched_setaffinity(0, {taking.core})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    print("ready", flush=True)
    start_s = float(sys.stdin.readline())
    print(json.dumps((_load if taking.how == "load" else _slots)(taking, start_s)))


def _slots(taking: Taking, start_s: float) -> list[tuple[float, float]]:
    random, took = Random(taking.seed), []
    for slot in range(taking.count):
        begin_s = start_s + slot * taking.slot_s
        meant_s = begin_s + random.uniform(0, taking.window_s)
        _sleep_until(meant_s)
        at_s = monotonic()
        took.append((at_s, at_s - meant_s))
        if taking.how == "kill":
            os.kill(taking.pid, signal.SIGUSR1)
        elif taking.how == "stop":
            os.kill(taking.pid, signal.SIGSTOP)
            _sleep_until(begin_s + taking.until_s)
            os.kill(taking.pid, signal.SIGCONT)
        else:
            _burn_until(begin_s + taking.until_s)
    return took


def _load(taking: Taking, start_s: float) -> list[tuple[float, float]]:
    end_s = start_s + taking.count * taking.slot_s
    while (now_s := monotonic()) < end_s:
        _burn_until(now_s + taking.duty * taking.period_s)
        _sleep_until(now_s + taking.period_s)
    return []


def _sleep_until(at_s: float) -> None:
    if (left_s := at_s - monotonic()) > 0:
        sleep(left_s)


def _burn_until(at_s: float) -> None:
    while monotonic() < at_s:
        pass


if __name__ == "__main__":
    main()
