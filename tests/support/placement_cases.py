"""Random placement problems, and their answers by trying every subset."""

import itertools
import math
from typing import Any

import hypothesis.strategies as st
import numpy as np


def truncated_exponential(time: float) -> float:
    return max(0.0, math.exp(-time / 6.0) - 0.05)


def steps(time: float) -> float:
    return 1.0 if time < 3 else 0.4 if time < 9 else 0.0


def vectorised(times: Any) -> Any:
    return 1.0 / (1.0 + np.asarray(times) ** 2 / 40.0)


LAWS = (None, truncated_exponential, steps, vectorised)


@st.composite
def problems(draw: st.DrawFn, most: int = 8) -> dict[str, Any]:
    """Coarse numbers, so that ties, zero durations and zero sizes are common."""
    exits = draw(st.integers(1, 4))
    count = draw(st.integers(0, most))
    each = {"min_size": count, "max_size": count}
    gaps = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5]), min_size=exits + 1, max_size=exits + 1))
    final_ms = sum(gaps) + 1.0
    accuracies = st.one_of(st.integers(0, 10).map(lambda tenth: tenth / 10), st.floats(0, 1, width=32))
    return {
        "exit_index": draw(st.lists(st.integers(0, exits - 1), **each)),
        "duration_ms": draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0, 7.5]), **each)),
        "accuracy": draw(st.lists(accuracies, **each)),
        "size_bytes": draw(st.lists(st.integers(0, 9), **each)),
        "backbone_ms": [sum(gaps[: index + 1]) for index in range(exits)],
        "final_ms": final_ms,
        "final_accuracy": draw(st.sampled_from([0.0, 0.3, 0.7, 0.95])),
        "horizon_ms": final_ms * draw(st.sampled_from([1.0, 1.2, 3.0])),
    }


def crowded_problem(seed: int) -> dict[str, Any]:
    """Eight branches of like worth, where many sets are nearly as good as the best."""
    rng = np.random.default_rng(seed)
    exits, count = int(rng.integers(1, 5)), 8
    reach = np.cumsum(rng.uniform(0.05, 1.05, exits + 1))
    slowest = float(rng.choice([0.05, 0.3, 1.0]) * reach[-1])
    return {
        "exit_index": rng.integers(0, exits, count).tolist(),
        "duration_ms": rng.uniform(0, slowest, count).tolist(),
        "accuracy": rng.uniform(0.3, 0.95, count).tolist(),
        "size_bytes": rng.integers(1, 20, count).tolist(),
        "backbone_ms": reach[:-1].tolist(),
        "final_ms": float(reach[-1]),
        "final_accuracy": float(rng.uniform(0.3, 0.95)),
        "horizon_ms": float(reach[-1] * rng.choice([1.0, 1.1, 1.5, 3.0])),
    }


def profile_of(problem: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of `placement_expectation` behind the members: positional, and by name."""
    names = ("exit_index", "duration_ms", "accuracy")
    given = {name: value for name, value in problem.items() if name not in (*names, "size_bytes")}
    return [problem[name] for name in names], given


def results(problem: dict[str, Any], members: tuple[int, ...], timing: str) -> list[tuple[float, float]]:
    """Every result of a set as (time, accuracy), in order."""
    exits, durations, accuracies = problem["exit_index"], problem["duration_ms"], problem["accuracy"]
    reach = problem["backbone_ms"]
    final = problem["final_ms"], problem["final_accuracy"]
    if timing == "independent":
        found = [(reach[exits[j]] + durations[j], accuracies[j]) for j in members]
        return sorted([*found, final])
    ran, found = 0.0, []
    for j in sorted(members, key=lambda j: (exits[j], accuracies[j])):
        ran += durations[j]
        found.append((reach[exits[j]] + ran, accuracies[j]))
    return [*found, (final[0] + ran, final[1])]


def value(problem: dict[str, Any], members: tuple[int, ...], timing: str, survival: Any) -> float:
    """Expectation of a set: for the uniform law the integral of the best accuracy at hand over the horizon."""
    horizon = problem["horizon_ms"]
    total, best, since = 0.0, 0.0, 0.0
    for time, accuracy in results(problem, members, timing):
        if survival is None:
            total += best * max(0.0, min(time, horizon) - since)
            since = max(since, min(time, horizon))
        else:
            total += max(0.0, accuracy - best) * float(survival(time))
        best = max(best, accuracy)
    return total if survival is not None else (total + best * (horizon - since)) / horizon


def best_by_budget(problem: dict[str, Any], timing: str, one_per_exit: bool, survival: Any) -> dict[int, float]:
    """The best expectation at every budget at which it can change."""
    sizes, exits = problem["size_bytes"], problem["exit_index"]
    best: dict[int, float] = {}
    for count in range(len(sizes) + 1):
        for members in itertools.combinations(range(len(sizes)), count):
            if one_per_exit and len({exits[j] for j in members}) < count:
                continue
            size = sum(sizes[j] for j in members)
            best[size] = max(best.get(size, 0.0), value(problem, members, timing, survival))
    reached, rising = 0.0, {}
    for size in sorted(best):
        reached = max(reached, best[size])
        rising[size] = reached
    return rising
