"""Switches between two placements whose units are all in memory, while another thread asks all the time.

Run: python benchmarks/_edge_switching.py BUNDLE_FOLDER; prints JSON.
"""

import json
import sys
from functools import partial
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

import numpy as np

from meedge_ray.bundle.manifest import read_bundle, unit_store
from meedge_ray.domain.elastic import units_of
from meedge_ray.runtime.exit_planning import planner_for
from meedge_ray.runtime.loading import load_engine, unit_reader
from meedge_ray.runtime.placing import Placer

SWITCHES = 500


def main() -> None:
    folder = Path(sys.argv[1])
    bundle, store = read_bundle(folder), unit_store(folder)
    placer, engine = Placer(bundle), load_engine(store, bundle.input, bundle.blocks, bundle.final_accuracy)
    points = placer.points()
    placements = []
    for point in (points[-1], points[len(points) // 4]):
        branches = [branch for branch in bundle.branches if branch.name in point.branches]
        plan = partial(planner_for, "auto", bundle, placer.profile, branches, None)
        placements.append((branches, plan(horizon_ms=placer.horizon_ms, law=placer.law)))
    keep = units_of(branch for branches, _ in placements for branch in branches)
    sample, over = engine.random_sample(), Event()
    alone = [engine.infer(sample).elapsed_ms for _ in range(200)]
    asked: list[float] = []
    failed = 0

    def ask() -> None:
        nonlocal failed
        while not over.is_set():
            answer = engine.infer(sample)
            asked.append(answer.elapsed_ms)
            failed += answer.label is None

    thread = Thread(target=ask)
    for branches, planner in placements:
        engine.place(branches, unit_reader(store), planner, keep=keep)
    thread.start()
    took_ms = []
    for count in range(SWITCHES):
        branches, planner = placements[count % 2]
        start = perf_counter()
        engine.place(branches, unit_reader(store), planner, keep=keep)
        took_ms.append((perf_counter() - start) * 1e3)
        over.wait(0.01)
    over.set()
    thread.join()
    said = {
        "branches": [len(branches) for branches, _ in placements],
        "switches": SWITCHES,
        "switch_ms": _spread(took_ms),
        "inference_ms_meanwhile": _spread(asked),
        "inference_ms_alone": _spread(alone),
        "inferences": len(asked),
        "failed": failed,
    }
    print(json.dumps(said))


def _spread(values_ms: list[float]) -> dict[str, float]:
    middle, high, most = np.percentile(values_ms, [50, 99, 100]).round(3).tolist()
    return {"p50": middle, "p99": high, "max": most}


if __name__ == "__main__":
    main()
