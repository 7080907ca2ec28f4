"""Times and compares the planners of exits: the exact one, EINet's hybrid search, random, static.

EINet's Figure 11, the searches' part of Figure 12, and Table I, compiled against interpreted loops.

Nothing but planning is timed: no engine, no network. Instances are drawn: `network` ones have confidences that rise
with depth, as a network's do, `random` ones any at all.

Run: python benchmarks/exit_plan.py
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _einet_pictures import search_picture
from _results import RESULTS, write_results

from meedge_ray.search import native
from meedge_ray.search.exit_plan import expectation, hybrid_search, plan_exits, random_search, static_plan
from meedge_ray.search.laws import normal_law

EXITS = 40
TIMED = 50  # instances every planner is timed on, in turn
COMPARED = 10_000
ALLOWED = 1e-12  # rounding
RANDOM_PLANS = 10_000  # of EINet's random search
SLOW = ("hybrid, m=3", "hybrid, m=4", "random")  # called once an instance, the others 20 times
VALUED = "expectation of all exits"  # no search: what one plan is worth
TARGETS = {"exact": 10.0, "exact, any law": 1000.0}  # us a call

Instance = tuple[np.ndarray, np.ndarray, np.ndarray]
Planner = Callable[[Instance], float]


def drawn(kind: str, exits: int, random: np.random.Generator) -> Instance:
    """Return times in ms and confidences of so many exits."""
    conv_ms = random.lognormal(0.0, 0.5, exits)
    branch_ms = random.lognormal(-1.0, 0.5, exits)
    if kind == "random":
        return conv_ms, branch_ms, random.random(exits)
    rise = 1 - np.exp(-3 * np.arange(1, exits + 1) / exits)
    confidence = random.uniform(0.2, 0.5) + 0.5 * rise + random.normal(0, 0.05, exits)
    return conv_ms, branch_ms, np.clip(confidence, 0, 1)


def total_ms(instance: Instance) -> float:
    """Return the time of everything, which is the horizon."""
    return float(instance[0].sum() + instance[1].sum())


def planners() -> dict[str, Planner]:
    """Return what is compared, by name."""

    def any_law(instance: Instance) -> float:
        horizon_ms = total_ms(instance)
        return plan_exits(*instance, survival=lambda times: np.maximum(0, 1 - times / horizon_ms)).expectation

    def hybrid(m: int) -> Planner:
        return lambda instance: hybrid_search(*instance, m=m).expectation

    return {
        "exact": lambda instance: plan_exits(*instance).expectation,
        "exact, any law": any_law,
        "greedy": hybrid(0),
        **{f"hybrid, m={m}": hybrid(m) for m in (1, 2, 3, 4)},
        f"random, {RANDOM_PLANS} plans": lambda instance: random_search(*instance, plans=RANDOM_PLANS).expectation,
        VALUED: lambda instance: expectation(static_plan(EXITS, 1.0), *instance),
    }


def in_numpy(planner: Planner) -> Planner:
    """Return the planner without compiled code."""

    def run(instance: Instance) -> float:
        compiled, native.kernels = native.kernels, None
        try:
            return planner(instance)
        finally:
            native.kernels = compiled

    return run


def timed(known: dict[str, Planner], instances: list[Instance]) -> dict[str, dict[str, float]]:
    """Return for every planner the median time of a call, and the mean expectation it reaches."""
    times_us: dict[str, list[float]] = {name: [] for name in known}
    reached: dict[str, list[float]] = {name: [] for name in known}
    for instance in instances:
        for name, planner in known.items():
            repeats = 1 if name.startswith(SLOW) else 20
            start = time.perf_counter()
            for _ in range(repeats):
                value = planner(instance)
            times_us[name].append(1e6 * (time.perf_counter() - start) / repeats)
            reached[name].append(value)
    return {
        name: {"call_us": statistics.median(times_us[name]), "expectation": statistics.mean(reached[name])}
        for name in known
    }


def compared(kind: str, random: np.random.Generator) -> dict[str, dict[str, float]]:
    """Return for every other search how often it misses the optimum and by how much, over instances of 1..40 exits."""
    searches: dict[str, Planner] = {
        "greedy": lambda instance: hybrid_search(*instance, m=0).expectation,
        "hybrid, m=1": lambda instance: hybrid_search(*instance, m=1).expectation,
        "hybrid, m=2": lambda instance: hybrid_search(*instance, m=2).expectation,
        "random, 100 plans": lambda instance: random_search(*instance, plans=100).expectation,
    }
    gaps: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(COMPARED):
        instance = drawn(kind, int(random.integers(1, EXITS + 1)), random)
        best = plan_exits(*instance).expectation
        for name, search in searches.items():
            gaps[name].append(best - search(instance))
    return {
        name: {
            "worst_for_exact": min(gap),
            "mean_gap": statistics.mean(gap),
            "largest_gap": max(gap),
            "missed": sum(value > ALLOWED for value in gap) / COMPARED,
        }
        for name, gap in gaps.items()
    }


def under_laws(instance: Instance) -> dict[str, dict[str, float]]:
    """Return what searches reach where the kill comes at other times (Figure 12); deviations in shares of the mean."""
    horizon_ms = total_ms(instance)
    laws: dict[str, Any] = {"uniform": None}
    for share in (0.5, 1.0):
        laws[f"normal, deviation {share:g} of the mean"] = normal_law(
            horizon_ms / 2, share * horizon_ms / 2, horizon_ms=horizon_ms
        )
    return {
        name: {
            "all exits run": expectation(static_plan(EXITS, 1.0), *instance, survival=law),
            "random": random_search(*instance, plans=RANDOM_PLANS, survival=law).expectation,
            "greedy": hybrid_search(*instance, m=0, survival=law).expectation,
            "hybrid, m=2": hybrid_search(*instance, m=2, survival=law).expectation,
            "exact": plan_exits(*instance, survival=law).expectation,
        }
        for name, law in laws.items()
    }


def main() -> None:
    random = np.random.default_rng(0)
    figures: dict[str, Any] = {"exits": EXITS, "targets_us": TARGETS}
    for kind in ("network", "random"):
        instances = [drawn(kind, EXITS, random) for _ in range(TIMED)]
        speed = timed(planners(), instances)
        twins = {name: in_numpy(planners()[name]) for name in ("exact", "exact, any law", "hybrid, m=2", VALUED)}
        speed |= {f"{name}, NumPy": row for name, row in timed(twins, instances[:5]).items()}
        speed_up = speed["hybrid, m=2"]["call_us"] / speed["exact"]["call_us"]
        figures[kind] = {"speed": speed, "hybrid_over_exact": speed_up, "gaps": compared(kind, random)}
        print(f"{kind} instances, {EXITS} exits\n{'planner':<30} {'us a call':>10} {'expectation':>12}")
        for name, row in speed.items():
            target = f"  target <= {TARGETS[name]:g} us" if name in TARGETS else ""
            print(f"{name:<30} {row['call_us']:>10.1f} {row['expectation']:>12.5f}{target}")
        print(f"hybrid search with m=2 takes {speed_up:.1f} times as long as the exact planner (target >= 10)")
        print(f"\n{COMPARED} instances of 1..{EXITS} exits: what others lose against the exact planner")
        print(f"{'search':<20} {'misses':>7} {'mean gap':>10} {'largest':>9} {'least':>10}")
        for name, row in figures[kind]["gaps"].items():
            gaps = f"{row['mean_gap']:>10.6f} {row['largest_gap']:>9.5f} {row['worst_for_exact']:>10.1e}"
            print(f"{name:<20} {row['missed']:>7.1%} {gaps}")
        print()
    figures["laws"] = under_laws(drawn("network", EXITS, random))
    for name, row in figures["laws"].items():
        print(f"{name:<34} " + "  ".join(f"{search} {value:.4f}" for search, value in row.items()))
    search_picture(figures["network"]["speed"], RESULTS / "exit-search.png")
    print(f"written: {write_results('exit_plan', figures)}")


if __name__ == "__main__":
    main()
