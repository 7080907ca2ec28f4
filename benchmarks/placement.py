"""Times the placement frontier (compiled and NumPy), and compares MEEdge's HPF with it (Figure 8).

Nothing but the search is timed: no engine, no network. Profiles are drawn, see `_profiles`; those of the bundles
given are used besides.

Run: python benchmarks/placement.py [BUNDLE_DIR...]
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from _profiles import SEED, SHAPES, drawn, measured
from _results import RESULTS, write_results
from _scores import SCORES, compare_scores, median_ms, plot_scores, print_scores

from meedge_ray.search import native
from meedge_ray.search.hpf import hpf_placement
from meedge_ray.search.placement import PlacementFrontier, placement_frontier

NUMPY_UP_TO = 2000  # candidates; beyond, the twin would take most of the run
HPF_MS = 10.0
REPEATS = 7


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
        return median_ms(lambda: placement_frontier(**problem, timing=timing), 1)
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


def frontier_table(problems: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    layout = "{:<11} {:<12} {:>10} {:>7} {:>12} {:>9} {:>11} {:>8}   {}"
    print(
        layout.format("network", "timing", "candidates", "points", *COLUMNS, "hpf loses at 25, 50, 100 % of the bytes")
    )
    rows = []
    for network, problem in problems.items():
        for timing in ("cumulative", "independent"):
            row = measure(problem, timing)
            rows.append({"network": network, **row})
            times = ["-" if row[name] is None else f"{row[name]:.1f}" for name in COLUMNS.values()]
            pairs = zip(row["expectation_frontier"], row["expectation_hpf"], strict=True)
            lost = " ".join(f"{best - found:.4f}" for best, found in pairs)
            print(layout.format(network, timing, row["candidates"], row["points"], *times, lost), flush=True)
    return rows


def score_table(problems: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    print(f"\n{'mean gap, points':<21} {' '.join(f'{score:>6}' for score in SCORES)}")
    rows = []
    for network, problem in problems.items():
        compared = compare_scores(problem)
        print_scores(network, compared)
        rows.append({"network": network, **compared})
    return rows


def main() -> None:
    problems = {network: drawn(*shape) for network, shape in SHAPES.items()}
    for directory in sys.argv[1:]:
        problems |= measured(Path(directory))
    figures = {"frontier": frontier_table(problems), "scores": score_table(problems)}
    plot_scores(figures["scores"], RESULTS / "placement-hpf.png")
    print(f"written: {write_results('placement', figures)}, placement-hpf.png beside it")


if __name__ == "__main__":
    main()
