"""What a process has started, and whether it is gone."""

from contextlib import suppress

import psutil


def family(pid: int) -> list[psutil.Process]:
    """Return all that descends from a process and computes.

    Not Ray's two agents: they look for their raylet once a minute only, and end by themselves.
    """
    members = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "Agent" not in process.name():
                members.append(process)
    return members


def survivors(members: list[psutil.Process]) -> list[psutil.Process]:
    """Return which of them are alive after half a minute."""
    _, alive = psutil.wait_procs(members, timeout=30)
    return alive
