"""Times of units as they are on this device: measured on the running engine."""

import platform
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray

from meedge_ray.domain.elastic import Branch, Profile, Unit
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime.engine import Engine

RUNS = 100
WARM_UP_RUNS = 10
# Branches loaded at once: enough that weights leave the processor's cache between two runs, as in real work,
# few enough that hundreds of branches never are in memory together.
GROUP = 16
# The expectation under a uniform kill is linear in every time, so the mean is the right statistic; the slowest
# runs are left out because what they measure is the scheduler, not the unit.
KEPT_SHARE = 0.95


def profile(
    engine: Engine,
    branches: Sequence[Branch],
    read: Callable[[Unit], bytes],
    *,
    device_type: str,
    runs: int = RUNS,
) -> Profile:
    """Measure the time of every block and branch on this device, batch 1, as they run in the chain.

    The engine's branches are replaced by these, a group at a time; afterwards none is resident.

    Args:
        engine: runs what is measured; nothing else should run meanwhile.
        branches: those to measure, in groups as they come.
        read: returns a unit's verified bytes.
        device_type: the name the profile goes by, such as `device_type()`.
        runs: counted runs of every branch.

    Raises:
        InvalidInputError: `runs` is not above 0, or a branch does not fit its exit point.
        MeedgeError: whatever getting a unit's bytes raised.
    """
    if runs < 1:
        raise InvalidInputError(f"{runs} runs measure nothing", where="runs", do="Give 1 or more")
    sample = engine.random_sample()
    block_runs: list[np.ndarray] = []
    branch_runs: dict[str, list[float]] = defaultdict(list)
    groups = [branches[first : first + GROUP] for first in range(0, len(branches), GROUP)] or [()]
    for group in groups:
        engine.place(group, read)
        for run in range(WARM_UP_RUNS + runs):
            block_ms, branch_ms = engine.unit_times(sample)
            if run >= WARM_UP_RUNS:
                block_runs.append(block_ms)
                for name, time_ms in branch_ms.items():
                    branch_runs[name].append(time_ms)
    engine.place((), read)
    blocks = kept_runs(np.array(block_runs))
    kept = {name: kept_runs(times_ms) for name, times_ms in branch_runs.items()}
    return Profile(
        device_type=device_type,
        engine=f"onnxruntime {ort.__version__}",
        runs=runs,
        block_ms=tuple(blocks.mean(axis=0).tolist()),
        block_std_ms=tuple(blocks.std(axis=0).tolist()),
        branch_ms={name: float(times_ms.mean()) for name, times_ms in kept.items()},
        branch_std_ms={name: float(times_ms.std()) for name, times_ms in kept.items()},
    )


def kept_runs(times_ms: ArrayLike) -> NDArray[np.float64]:
    """Return the fastest 95 % of the runs, ascending; of times [runs, units] those of every unit."""
    ordered: NDArray[np.float64] = np.sort(np.asarray(times_ms, np.float64), axis=0)
    return ordered[: max(1, int(len(ordered) * KEPT_SHARE))]


def device_type(threads: int = 1) -> str:
    """Return a name for machines like this one: architecture, processor, threads of the engine.

    Usable as a Kubernetes label value, such as `x86-64-amd-epyc-7b13-1t`.
    """
    threads_part = f"-{threads}t"
    name = _slug(f"{platform.machine()} {_processor()}")
    return name[: 63 - len(threads_part)].rstrip("-") + threads_part


def _processor() -> str:
    for path, pattern in (
        (Path("/proc/cpuinfo"), r"(?m)^model name\s*:\s*(.+)$"),
        (Path("/proc/device-tree/model"), r"([^\0]+)"),  # ARM boards say who they are here
    ):
        try:
            match = re.search(pattern, path.read_text(errors="replace"))
        except OSError:
            continue
        if match:
            return re.sub(r"\((R|TM|tm)\)|\bCPU\b|\bProcessor\b|@.*|[0-9]+-Core.*", " ", match[1])
    return platform.processor()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
