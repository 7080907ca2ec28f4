"""Bodies switched while a device answers: how long it takes, what fails, what memory it needs (AdaptiveNet 5.3)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import perf_counter, sleep
from typing import Any

import numpy as np
from _adaptive import Device
from _results import status_bytes

from meedge_ray.bundle.manifest import read_bundle, unit_store
from meedge_ray.runtime.adaptive_engine import AdaptiveEngine
from meedge_ray.runtime.engine import Body, Engine
from meedge_ray.runtime.loading import load_engine, unit_reader
from meedge_ray.runtime.memory import release_to_os
from meedge_ray.runtime.subnet_pool import SubnetPool
from meedge_ray.runtime.subnets import subnet_blocks
from meedge_ray.search.subnet_search import Measured

BUDGETS = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)  # of the original's latency
SWITCHES = 200
PHASES = (("alone", 0), ("beside 1", 1), ("beside 3", 3), ("alone again", 0))  # competing processes
PHASE_S = 6.0
WINDOW = 25  # inferences, of which the median must be back under the budget
_COMPETE = "while True:\n    sum(range(10000))"

Figures = dict[str, Any]


def pool_of(device: Device) -> SubnetPool:
    """Return the subnets found for budgets from half of the original's latency on, and the original."""
    found: list[Measured] = []
    for share in BUDGETS:
        found += device.adapter.adapt(share * device.original_ms).pool.members
    original = device.adapter.space.original
    found.append(Measured(original, device.original_ms, device.adapter.evaluator([original])[0]))
    return SubnetPool(found)


def switches(device: Device, pool: SubnetPool) -> Figures:
    """Return the time of a switch, between resident bodies and from disk, and failures meanwhile."""
    store = unit_store(device.directory)
    read, bundle = unit_reader(store), device.bundle
    engine = load_engine(store, bundle.input, bundle.blocks, bundle.final_accuracy)
    bodies = [Body(subnet_blocks(bundle, each.subnet), each.accuracy) for each in pool.members]
    everything = [block.unit for body in bodies for block in body.blocks]
    with _answering(engine) as answered:
        from_disk = _placed(engine, bodies, read, keep=())
        engine.place((), read, keep=everything)
        resident = _placed(engine, bodies, read, keep=everything)
    return {
        "resident_ms": median(resident),
        "slowest_resident_ms": max(resident),
        "from_disk_ms": median(from_disk),
        "slowest_from_disk_ms": max(from_disk),
        "switches": len(resident) + len(from_disk),
        "answers_meanwhile": answered["answers"],
        "failed": answered["failed"],
    }


def _placed(engine: Engine, bodies: Sequence[Body], read: Any, *, keep: Any) -> list[float]:  # noqa: ANN401
    times, random = [], np.random.default_rng(0)
    for _ in range(SWITCHES):
        body = bodies[random.integers(len(bodies))]
        start = perf_counter()
        engine.place((), read, body=body, keep=keep)
        times.append((perf_counter() - start) * 1e3)
    return times


@contextmanager
def _answering(engine: Engine) -> Iterator[dict[str, int]]:
    """Infer all the time in another thread."""
    said, over, sample = {"answers": 0, "failed": 0}, Event(), engine.random_sample()

    def infer() -> None:
        while not over.is_set():
            try:
                said["answers" if engine.infer(sample).label is not None else "failed"] += 1
            except Exception:  # whatever it is, it is a request that failed
                said["failed"] += 1

    thread = Thread(target=infer)
    thread.start()
    try:
        yield said
    finally:
        over.set()
        thread.join()


def under_load(device: Device, pool: SubnetPool) -> Figures:
    """Return latency over time while other processes take this one's core, with and without switching (Figure 13)."""
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        return {
            "budget_ms": 1.1 * device.original_ms,
            "adaptive": _timeline(device, pool, core),
            "fixed": _timeline(device, SubnetPool([pool.members[-1]]), core),
        }
    finally:
        os.sched_setaffinity(0, before)


def _timeline(device: Device, pool: SubnetPool, core: int) -> Figures:
    store, bundle = unit_store(device.directory), device.bundle
    engine = load_engine(store, bundle.input, bundle.blocks, bundle.final_accuracy)
    budget_ms = 1.1 * device.original_ms
    adaptive = AdaptiveEngine(engine, bundle, pool, unit_reader(store), latency_ms=budget_ms)
    sample = engine.random_sample()
    for _ in range(50):
        adaptive.infer(sample)
    rows: list[tuple[float, float, float]] = []
    phases: list[Figures] = []
    start = perf_counter()
    for name, count in PHASES:
        with _competing(count, core):
            begun, first = perf_counter(), len(rows)
            while perf_counter() - begun < PHASE_S:
                latency_ms = adaptive.infer(sample).elapsed_ms
                rows.append((perf_counter() - start, latency_ms, adaptive.status().active.accuracy))
        phases.append({"phase": name, "begins_s": begun - start, **_phase(rows[first:], begun - start, budget_ms)})
    adaptive.settle()
    step = max(1, len(rows) // 2000)
    return {"phases": phases, "switches": adaptive.status().switches, "rows": rows[::step]}


def _phase(rows: Sequence[tuple[float, float, float]], begun_s: float, budget_ms: float) -> Figures:
    times = np.array([row[1] for row in rows])
    medians = np.array([np.median(times[i : i + WINDOW]) for i in range(max(1, len(times) - WINDOW))])
    within = medians <= budget_ms
    late = np.flatnonzero(~within)
    settled = 0 if not len(late) else int(late[-1]) + 1
    back = rows[settled][0] - begun_s if settled < len(medians) else None
    return {
        "median_ms": float(np.median(times)),
        "within_budget": float((times <= budget_ms).mean()),
        "back_under_budget_s": back,
        "accuracy": float(np.mean([row[2] for row in rows])),
    }


@contextmanager
def _competing(count: int, core: int) -> Iterator[None]:
    others = [
        subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\n{_COMPETE}"])
        for _ in range(count)
    ]
    sleep(0.2 if others else 0)  # until they run
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def memory(device: Device, pool: SubnetPool) -> Figures:
    """Return what a process holds that runs one subnet alone, and one that has switched 100 times and now runs it."""
    said = {}
    for name, times in (("alone", 0), ("switched", 100)):
        command = [sys.executable, __file__, str(device.directory), json.dumps([list(pool.members[0].subnet)]), "0"]
        if times:
            command[-2:] = [json.dumps([list(each.subnet) for each in pool.members]), str(times)]
        said[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return said


def _child(directory: Path, subnets: Sequence[Sequence[int]], times: int) -> None:
    bundle, store = read_bundle(directory), unit_store(directory)
    bodies = [Body(subnet_blocks(bundle, tuple(subnet)), 0.5) for subnet in subnets]
    read = unit_reader(store)
    engine = Engine(bundle.input, (read(b.unit) for b in bodies[0].blocks), final_accuracy=0.5)
    random, sample = np.random.default_rng(0), engine.random_sample()
    for _ in range(times):
        engine.place((), read, body=bodies[random.integers(len(bodies))])
        engine.infer(sample)
    engine.place((), read, body=bodies[0])
    engine.infer(sample)
    release_to_os()
    sys.stdout.write(
        json.dumps({"resident": status_bytes("VmRSS"), "peak": status_bytes("VmHWM"), "units": engine.resident_bytes})
    )


if __name__ == "__main__":
    _child(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
