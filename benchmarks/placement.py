"""Times the placement frontier (compiled and NumPy) and MEEdge's HPF on profiles of the papers' shapes.

The profiles are drawn, not measured; the seed fixes them. A shape has E exits and convolutions x FC heads
branches at each. Backbone times up to the exits rise unevenly; a branch's size and duration follow from its
parts (a convolution's width and an FC head's, wider at deeper exits, quicker on the smaller maps there), so
sizes repeat; accuracy rises with depth towards the final exit's and saturates with the branch's size, plus
noise of 0.8 points, as training gives. Nothing but NumPy is timed: no engine, no network.

Run: python benchmarks/placement.py
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _results import write_results

from meedge_ray.search import native
from meedge_ray.search.hpf import hpf_placement
from meedge_ray.search.placement import PlacementFrontier, placement_frontier

SHAPES = {  # exits, convolutions, FC heads, single-exit time in ms
    "AlexNet": (5, 15, 7, 2.0),
    "ResNet-20": (9, 15, 7, 0.87),
    "VGG-16": (13, 15, 7, 8.0),
    "ResNet-110": (54, 11, 8, 4.5),
}
NUMPY_UP_TO = 2000  # candidates; beyond, the twin would take most of the run
FINAL_ACCURACY = 0.92
HPF_MS = 10.0
REPEATS = 7
SEED = 0


def profile(exits: int, convolutions: int, heads: int, final_ms: float) -> dict[str, Any]:
    """Draw a profile: the arguments of `placement_frontier`."""
    rng = np.random.default_rng(SEED)
    reach = np.cumsum(rng.uniform(0.7, 1.3, exits + 1))
    reach *= final_ms / reach[-1]
    exit_index, convolution, head = (
        grid.ravel() for grid in np.meshgrid(range(exits), range(convolutions), range(heads), indexing="ij")
    )
    depth = (exit_index + 1) / (exits + 1)
    width = 2.0 ** np.floor(3 * depth)  # channels double twice on the way, maps shrink
    kernel = np.linspace(0.2, 1.0, convolutions)[convolution]
    hidden = np.linspace(0.1, 1.0, heads)[head]
    size_bytes = np.round(4 * (1500 * kernel * width + 40_000 * hidden * np.sqrt(width))).astype(np.int64)
    share = 0.02 + 0.10 * kernel / np.sqrt(width) + 0.02 * hidden
    ceiling = 0.45 + (FINAL_ACCURACY - 0.45) * depth**0.6
    accuracy = ceiling * (1 - 0.12 * (1 - kernel) ** 2 - 0.10 * (1 - hidden) ** 2)
    return {
        "exit_index": exit_index,
        "duration_ms": final_ms * share * rng.uniform(0.95, 1.05, len(share)),
        "accuracy": np.clip(accuracy + rng.normal(0, 0.008, len(share)), 0.01, 0.99),
        "size_bytes": size_bytes,
        "backbone_ms": reach[:-1],
        "final_ms": final_ms,
        "final_accuracy": FINAL_ACCURACY,
        "horizon_ms": 1.2 * final_ms,
    }


def median_ms(work: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def lookup_us(frontier: PlacementFrontier) -> float:
    budgets = np.random.default_rng(SEED).integers(0, int(frontier.size_bytes[-1]) + 1, 1000).tolist()

    def look_up() -> None:
        for budget in budgets:
            frontier.members(frontier.at(budget) or 0)

    return 1000 * median_ms(look_up, REPEATS) / len(budgets)


def numpy_ms(problem: dict[str, Any], timing: str) -> float | None:
    if len(problem["accuracy"]) > NUMPY_UP_TO:
        return None
    compiled, native.kernels = native.kernels, None
    try:
        return median_ms(lambda: placement_frontier(**problem, timing=timing), 3)
    finally:
        native.kernels = compiled


def measure(problem: dict[str, Any], timing: str) -> dict[str, Any]:
    frontier = placement_frontier(**problem, timing=timing)
    budgets = [int(share * frontier.size_bytes[-1]) for share in (0.25, 0.5, 1.0)]
    found = [hpf_placement(**problem, budget_bytes=budget, search_ms=HPF_MS, timing=timing) for budget in budgets]
    best = [float(frontier.expectation[frontier.at(budget) or 0]) for budget in budgets]
    return {
        "timing": timing,
        "candidates": len(problem["accuracy"]),
        "points": len(frontier.size_bytes),
        "frontier_compiled_ms": None
        if native.kernels is None
        else median_ms(lambda: placement_frontier(**problem, timing=timing), REPEATS),
        "frontier_numpy_ms": numpy_ms(problem, timing),
        "lookup_us": lookup_us(frontier),
        "hpf_one_budget_ms": median_ms(
            lambda: hpf_placement(**problem, budget_bytes=budgets[1], search_ms=HPF_MS, timing=timing),
            REPEATS,
        ),
        "budgets_bytes": budgets,
        "expectation_frontier": best,
        "expectation_hpf": [placement.expectation for placement in found],
    }


COLUMNS = {  # heading: what is under it
    "compiled ms": "frontier_compiled_ms",
    "numpy ms": "frontier_numpy_ms",
    "look-up us": "lookup_us",
    "hpf ms": "hpf_one_budget_ms",
}


def main() -> None:
    layout = "{:<11} {:<12} {:>10} {:>7} {:>12} {:>9} {:>11} {:>8}   {}"
    print(layout.format("shape", "timing", "candidates", "points", *COLUMNS, "hpf loses at 25, 50, 100 % of the bytes"))
    figures = []
    for shape, parts in SHAPES.items():
        problem = profile(*parts)
        for timing in ("cumulative", "independent"):
            row = measure(problem, timing)
            figures.append({"shape": shape, **row})
            times = ["-" if row[name] is None else f"{row[name]:.1f}" for name in COLUMNS.values()]
            pairs = zip(row["expectation_frontier"], row["expectation_hpf"], strict=True)
            lost = " ".join(f"{best - found:.4f}" for best, found in pairs)
            print(layout.format(shape, timing, row["candidates"], row["points"], *times, lost), flush=True)
    print(f"written: {write_results('placement', figures)}")


if __name__ == "__main__":
    main()
