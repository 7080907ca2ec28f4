"""Pictures of several networks' figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from meedge_ray.train.report import LOOKS, steps

_COLUMNS = 3
_BAR = 0.2


def finite_time_picture(figures: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy over a time known beforehand, one panel a network (MEEdge Figure 7(1))."""
    rows = -(-len(figures) // _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 3 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False, sharey=True).ravel()
    for axes in grid[len(figures) :]:
        axes.set_visible(False)
    for axes, (name, said) in zip(grid, figures.items(), strict=False):
        for method, (_, color, line) in LOOKS.items():
            if method in said["methods"]:
                curve = [(at_ms, accuracy) for at_ms, accuracy in said["methods"][method]["finite_time"]]
                x, y = steps(curve, said["horizon_ms"])
                axes.step(x, y, where="post", color=color, linestyle=line, linewidth=1.8)
        axes.set(title=name, xlim=(0, said["horizon_ms"]), ylim=(0, 1))
        axes.set_xlabel("time there is (ms)")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for label, color, line in LOOKS.values():
        grid[0].plot([], [], color=color, linestyle=line, linewidth=1.8, label=label)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(LOOKS))
    figure.savefig(path, dpi=144)


def mae_picture(figures: Mapping[str, Any], path: Path) -> None:
    """Draw every baseline under random kills, and ours at the memory each takes (MEEdge Figure 9(a)).

    Beside the single exit ours has SPINN's memory.
    """
    figure = Figure(figsize=(max(8.0, 1.4 * len(figures)), 4.5), layout="constrained")
    axes = figure.subplots()
    ours_name, ours_color, _ = LOOKS["meedge"]
    drawn: set[str] = set()
    for place, said in enumerate(figures.values()):
        methods = [method for method in LOOKS if method in said["comparisons"]]
        for index, method in enumerate(methods):
            label, color, _ = LOOKS[method]
            x = place + (index - (len(methods) - 1) / 2) * _BAR
            named = {} if method in drawn else {"label": label}
            drawn.add(method)
            axes.bar(x, said["methods"][method]["killed"], width=0.9 * _BAR, color=color, **named)
            ours = said["comparisons"][method]["ours"]["killed"]
            axes.plot([x - 0.45 * _BAR, x + 0.45 * _BAR], [ours, ours], color=ours_color, linewidth=3)
    axes.plot([], [], color=ours_color, linewidth=3, label=f"{ours_name} at that memory")
    axes.set_xticks(range(len(figures)), [name.replace("-", "\n") for name in figures])
    axes.set(ylabel="right results at hand under random kills", ylim=(0, 1), xlim=(-0.55, len(figures) - 0.45))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.25, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=144)
