"""The seven changes as one picture: what there was, what was held, who lived, and what the answers were worth."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from _edge_asking import Asked
from _edge_group import AMPLE_BYTES
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from meedge_ray.train.report import LOOKS

_MIB = 2.0**20
_WINDOW_S, _STEP_S = 1.0, 0.1
_LIMIT, _SUDDEN, _FORESEEN = "#555555", "#C0392B", "#999999"


def seven_changes_picture(stories: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the processes' stories on one axis of time (MEEdge Figure 9(b))."""
    figure = Figure(figsize=(11, 9.5), layout="constrained")
    memory, lives, accuracy, answers = figure.subplots(4, 1, sharex=True, height_ratios=[3, 1.1, 3, 1.6])
    first = next(iter(stories.values()))
    _limit(memory, first)
    for place, (name, story) in enumerate(stories.items()):
        label, color, line = LOOKS[name]
        at_s, limits, held, alive = (np.array(column) for column in zip(*story["watched"], strict=True))
        alive &= limits < AMPLE_BYTES  # while one is loaded it has no limit, and does not answer
        look = {"color": color, "linestyle": line, "linewidth": 1.8, "label": label}
        memory.plot(at_s, np.where(alive, held / _MIB, np.nan), **look)
        lives.fill_between(at_s, place - 0.35, place + 0.35, where=alive, color=color, linewidth=0)
        _kills(memory, lives, story, place, color)
        times, shares, rates = _rolling(story["asked"], at_s[-1])
        accuracy.plot(times, shares, **look)
        answers.plot(times, rates, **look)
    lives.set_yticks(range(len(stories)), [LOOKS[name][0] for name in stories])
    lives.set_ylim(len(stories) - 0.5, -0.5)
    lives.set_title("alive (x: killed for memory)", loc="left", fontsize=10)
    limits = [change["limit_bytes"] / _MIB for change in first["changes"]]
    memory.set_ylim(top=max(limits) + 2)  # who loads without a limit holds more for a moment
    memory.set_ylabel("memory of the process (MiB)")
    memory.set_title("what there is, and what each holds of it", loc="left", fontsize=10, pad=14)
    accuracy.set(ylabel="right, under random kills", ylim=(0, 1))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    accuracy.set_title(f"right results at hand at a random moment, over {_WINDOW_S:g} s", loc="left", fontsize=10)
    answers.set(ylabel="answers a second", xlabel="seconds", ylim=(0, None), xlim=(0, at_s[-1]))
    for axes in (memory, lives, accuracy, answers):
        _changes(axes, first)
        axes.spines[["top", "right"]].set_visible(False)
    memory.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.32), frameon=False)
    figure.savefig(path, dpi=144)


def _limit(axes: Axes, story: Mapping[str, Any]) -> None:
    changes = story["changes"]
    at_s = [change["at_s"] for change in changes] + [story["watched"][-1][0]]
    limits = [change["limit_bytes"] / _MIB for change in changes]
    axes.step(at_s, [*limits, limits[-1]], where="post", color=_LIMIT, linewidth=3, alpha=0.45, label="the limit")


def _changes(axes: Axes, story: Mapping[str, Any]) -> None:
    changes = story["changes"]
    for before, change in pairwise(changes):
        sudden = not change["foreseen"] and change["limit_bytes"] < before["limit_bytes"]
        color, style = (_SUDDEN, "-") if sudden else (_FORESEEN, "--")
        axes.axvline(change["at_s"], color=color, linestyle=style, linewidth=1, zorder=0)
        if axes.get_ylabel().startswith("memory"):
            said = "sudden" if sudden else "foreseen"
            axes.annotate(said, (change["at_s"], 1.0), xycoords=("data", "axes fraction"), fontsize=8, color=color)


def _kills(memory: Axes, lives: Axes, story: Mapping[str, Any], place: int, color: str) -> None:
    watched = story["watched"]
    for (_, _, held, alive), (at_s, _, _, lives_on) in pairwise(watched):
        if alive and not lives_on:
            memory.plot(at_s, held / _MIB, marker="X", markersize=10, color=color, markeredgecolor="white")
            lives.plot(at_s, place, marker="X", markersize=10, color=color, markeredgecolor="white")


def _rolling(asked: Sequence[Asked], end_s: float) -> tuple[list[float], list[float], list[float]]:
    """Return moments, and the shares right and answers a second in the window before each."""
    at = np.array([each.at_s for each in asked])
    right = np.cumsum([0.0, *(each.right for each in asked)])
    answered = np.cumsum([0.0, *(each.answered for each in asked)])
    times = np.arange(_WINDOW_S, end_s, _STEP_S)
    first, last = np.searchsorted(at, times - _WINDOW_S), np.searchsorted(at, times)
    counts = np.maximum(1, last - first)
    shares = (right[last] - right[first]) / counts
    return times.tolist(), shares.tolist(), ((answered[last] - answered[first]) / _WINDOW_S).tolist()
