"""Pictures of AdaptiveNet's figures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

OURS, GRAY, ORANGE, GREEN = "#1f6fb5", "#8f8f8f", "#e0811f", "#3a923a"
_METHODS = {
    "ours": ("meedge-ray", OURS, "o-"),
    "pruned": ("pruned blocks alone", ORANGE, "s--"),
    "slimmable": ("slimmable network", GREEN, "D:"),
}
_SEARCHES = {
    "plain-evolution": ("plain evolution", GRAY),
    "evolution": ("AdaptiveNet's evolution", ORANGE),
    "annealing": ("AdaptiveNet's annealing", GREEN),
    "surrogate": ("surrogate", OURS),
}
_PHASES = {
    "resnet20": ("distilled, then tuned", OURS),
    "resnet20-distilled": ("distilled alone", ORANGE),
    "resnet20-tuned": ("tuned alone", GRAY),
}
_AROUND = 10  # inferences before and after, of which the median is drawn

Figures = Mapping[str, Any]


def draw(figures: Figures, folder: Path) -> None:
    """Draw what there are figures of."""
    drawn: dict[str, Callable[[Any], Figure]] = {
        "tradeoff": lambda panels: _trade_off(panels, figures.get("slimming", {})),
        "search": _search,
        "reuse": _reuse,
        "phases": _phases,
        "switching": _switching,
        "shift": _shift,
        "tasks": _tasks,
    }
    for part, picture in drawn.items():
        if part in figures:
            picture(figures[part]).savefig(folder / f"adaptive-{part}.png", dpi=144)


def _panels(count: int, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(7.6, 4.6 * count), height), layout="constrained")
    grid = figure.subplots(1, count, squeeze=False).ravel().tolist()
    for axes in grid:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _curves(figure: Figure, grid: Sequence[Axes], panels: Figures, key: str) -> Figure:
    """Draw what methods reach over latency, one panel a network or task."""
    for axes, (name, said) in zip(grid, panels.items(), strict=True):
        for method, (label, color, line) in _METHODS.items():
            if method in said:
                points = sorted((row["latency_ms"], row[key]) for row in said[method])
                axes.plot(*zip(*points, strict=True), line, color=color, label=label)
        original = said["original"]
        axes.plot(original["latency_ms"], original[key], "k*", markersize=11, label="original")
        axes.set(title=name, xlabel="latency (ms)")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def _trade_off(panels: Figures, slimmable: Figures) -> Figure:
    figure, grid = _panels(len(panels))
    grid[0].set_ylabel("accuracy on unseen samples")
    said = {
        name: {**methods, **({"slimmable": slimmable[name]} if name in slimmable else {})}
        for name, methods in panels.items()
    }
    return _curves(figure, grid, said, "accuracy")


def _tasks(panels: Figures) -> Figure:
    figure, grid = _panels(len(panels))
    grid[0].set_ylabel("mIoU")
    grid[-1].set_ylabel("mAP@0.5")
    said = {
        name: {method: row["points"] for method, row in methods.items()} | {"original": methods["ours"]["original"]}
        for name, methods in panels.items()
    }
    return _curves(figure, grid, said, "score")


def _search(panels: Figures) -> Figure:
    figure, grid = _panels(2 * len(panels))
    for place, (name, said) in enumerate(panels.items()):
        for method, (label, color) in _SEARCHES.items():
            for number, run in enumerate(said["strategies"][method]):
                best = [row[3] for row in run["trail"]]
                named = {} if number else {"label": label}
                grid[2 * place].step([row[0] for row in run["trail"]], best, where="post", color=color, **named)
                grid[2 * place + 1].step([row[1] for row in run["trail"]], best, where="post", color=color)
        for axes, unit in ((grid[2 * place], "subnets evaluated"), (grid[2 * place + 1], "seconds")):
            axes.set(title=name, xlabel=unit, xscale="log")
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    grid[0].set_ylabel("accuracy of the best, unseen samples")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def _reuse(panels: Figures) -> Figure:
    figure, grid = _panels(len(panels))
    for axes, (name, said) in zip(grid, panels.items(), strict=True):
        for group, rows in said.items():
            kept = list(rows)
            axes.plot(range(len(kept)), [1 - rows[each] / rows[kept[0]] for each in kept], "o-", label=group)
        axes.set_xticks(range(len(kept)), kept)
        axes.set(title=name, xlabel="features that may be kept", ylim=(0, 0.8))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    grid[0].set_ylabel("time saved of 100 subnets")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _phases(rows: Figures) -> Figure:
    figure, [axes] = _panels(1)
    for name, (label, color) in _PHASES.items():
        if name in rows:
            places = [(row["from"] + row["to"]) / 2 for row in rows[name]]
            axes.plot(places, [row["accuracy"] for row in rows[name]], "o-", color=color, label=label)
    axes.set(xlabel="latency, share of the original's", ylabel="accuracy of random subnets")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend()
    return figure


def _switching(said: Figures) -> Figure:
    load = said["load"]
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for name, color in (("fixed", GRAY), ("adaptive", OURS)):
        rows = load[name]["rows"]
        times = [row[1] for row in rows]
        smooth = [median(times[max(0, index - _AROUND) : index + _AROUND + 1]) for index in range(len(times))]
        upper.plot([row[0] for row in rows], smooth, color=color, label=f"{name} body", linewidth=1.2)
        lower.plot([row[0] for row in rows], [row[2] for row in rows], color=color, linewidth=1.2)
    upper.axhline(load["budget_ms"], color="k", linestyle=":", label="budget")
    upper.set(ylabel="latency (ms)", ylim=(0, None))
    lower.set(ylabel="accuracy of the body", xlabel="seconds")
    lower.yaxis.set_major_formatter(PercentFormatter(1.0))
    for phase in load["adaptive"]["phases"]:
        upper.text(phase["begins_s"] + 0.1, upper.get_ylim()[1], phase["phase"], va="top")
        for axes in (upper, lower):
            axes.axvline(phase["begins_s"], color="k", alpha=0.2)
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*upper.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _shift(panels: Figures) -> Figure:
    figure, grid = _panels(len(panels))
    for axes, (name, rows) in zip(grid, panels.items(), strict=True):
        axes.bar(range(len(rows)), [row["gain"] for row in rows], yerr=[row["error"] for row in rows], color=OURS)
        axes.set_xticks(range(len(rows)), [f"alpha {row['alpha']:g}" for row in rows])
        axes.set(title=name)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    grid[0].set_ylabel("gained over searching on all classes")
    return figure
