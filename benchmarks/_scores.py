"""MEEdge's Figure 8: what the tree search loses against the exact optimum, by priority score and search time."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from meedge_ray.search.hpf import hpf_placement
from meedge_ray.search.placement import placement_frontier
from meedge_ray.search.priority import SCORES

SEARCH_MS = (1.0, 10.0, 100.0)
SHARES = [2.0**-power for power in range(7, -1, -1)]  # of the bytes beyond which no branch gains
NAMES = {
    "m0": "m0 smallest first",
    "m1": "m1 per byte, random",
    "m2": "m2 gain, random",
    "m3": "m3 per byte, importance",
    "m4": "m4 per byte², importance",
    "m5": "m5 greedy alone",
    "m6": "m6 greedy + search",
    "m7": "m7 hull + greedy + search",
}
_SHOWN_MS = 10.0  # of the lower row
_LEAST, _LEAST_MEAN = 1e-3, 1e-2  # points; what is drawn at the bottom is this or less


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def compare_scores(problem: dict[str, Any]) -> dict[str, Any]:
    """Search with every score, time and budget; `gap_points` are points of expectation, one a budget."""
    frontier = placement_frontier(**problem, timing="independent")
    frontier_ms = median_ms(lambda: placement_frontier(**problem, timing="independent"), 3)
    budgets = [int(share * frontier.size_bytes[-1]) for share in SHARES]
    best = [float(frontier.expectation[frontier.at(budget) or 0]) for budget in budgets]
    rows = []
    for search_ms in SEARCH_MS:
        for score in SCORES:
            found = [hpf_placement(**problem, budget_bytes=b, search_ms=search_ms, score=score) for b in budgets]
            gaps = [100 * max(0.0, most - one.expectation) for most, one in zip(best, found, strict=True)]
            rows.append(
                {
                    "score": score,
                    "search_ms": search_ms,
                    "scoring_ms": float(np.median([one.scoring_ms for one in found])),
                    "exhausted": sum(one.exhausted for one in found),
                    "gap_points": gaps,
                    "mean_gap_points": float(np.mean(gaps)),
                }
            )
    return {
        "candidates": len(problem["accuracy"]),
        "frontier_ms": frontier_ms,
        "budgets_bytes": budgets,
        "expectation_frontier": best,
        "scores": rows,
    }


def print_scores(network: str, compared: dict[str, Any]) -> None:
    """Print a line a search time: the mean gap of every score, in points."""
    for search_ms in SEARCH_MS:
        gaps = [row["mean_gap_points"] for row in compared["scores"] if row["search_ms"] == search_ms]
        cells = " ".join(f"{gap:6.3f}" for gap in gaps)
        print(f"{network:<11} {search_ms:>6g} ms {cells}   exact: {compared['frontier_ms']:.1f} ms", flush=True)


def plot_scores(figures: list[dict[str, Any]], path: Path) -> None:
    """Draw a column a network: mean gap by score and search time above, gap by budget below."""
    picture = Figure(figsize=(3.6 * len(figures) + 0.6, 7.6), layout="constrained")
    above, below = picture.subplots(2, len(figures), sharey="row", squeeze=False)
    shades = ("#b9cfe4", "#6a9cc9", "#1f4e79")
    colours = [colormaps["tab10"](place) for place in (7, 9, 2, 8, 4, 1, 0, 3)]
    for place, compared in enumerate(figures):
        means, lines = above[place], below[place]
        for number, (search_ms, shade) in enumerate(zip(SEARCH_MS, shades, strict=True)):
            rows = [row for row in compared["scores"] if row["search_ms"] == search_ms]
            heights = [max(row["mean_gap_points"], _LEAST_MEAN) for row in rows]
            at = np.arange(len(SCORES)) + 0.22 * (number - 1)
            means.plot(at, heights, "o", markersize=6, color=shade, label=f"{search_ms:g} ms")
        means.set_title(
            f"{compared['network']}, {compared['candidates']} candidates\nexact, every budget: "
            f"{compared['frontier_ms']:.0f} ms",
            fontsize=10,
        )
        means.set_xlim(-0.6, len(SCORES) - 0.4)
        means.set_xticks(range(len(SCORES)), SCORES)
        for row, colour in zip((r for r in compared["scores"] if r["search_ms"] == _SHOWN_MS), colours, strict=True):
            bold = 2.6 if row["score"] == "m7" else 1.2
            heights = [max(gap, _LEAST) for gap in row["gap_points"]]
            size_kib = np.array(compared["budgets_bytes"]) / 1024
            lines.plot(
                size_kib, heights, color=colour, linewidth=bold, marker="o", markersize=3, label=NAMES[row["score"]]
            )
        lines.set_xscale("log", base=2)
        lines.set_xlabel("memory budget, KiB")
        for axes, least in ((means, _LEAST_MEAN), (lines, _LEAST)):
            axes.set_yscale("log")
            axes.set_ylim(least / 1.2, 10)
            axes.grid(axis="y", alpha=0.3)
    above[0].set_ylabel("mean gap to the optimum, points\nof expectation (0.01 or less at the bottom)")
    below[0].set_ylabel(f"gap by budget at {_SHOWN_MS:g} ms, points\n(0.001 or less at the bottom)")
    above[-1].legend(title="tree search for", fontsize=8, title_fontsize=8)
    picture.legend(*below[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    picture.savefig(path, dpi=110)
