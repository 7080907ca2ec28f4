"""EINet's figures as pictures: 7 to 10 and 12 of the networks under kills, 11 of the searches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

Figures = Mapping[str, Any]

_GREYS = ("#d9d9d9", "#bdbdbd", "#8f8f8f", "#5f5f5f")
_OURS, _OTHER, _THIRD = "#1f6fb4", "#e08214", "#4d9221"
_STATIC = ("static 25%", "static 50%", "static 100%", "best static", "sample-wise")
_DYNAMIC = (
    "best static",
    "threshold 0.5",
    "threshold 0.7",
    "threshold 0.9",
    "random, 100 plans",
    "hybrid, m=2",
    "sample-wise, raw",
    "sample-wise",
)
_BY_LAW = ("static 100%", "best static", "sample-wise")
_COLORS = (*_GREYS, _OURS)


def draw(figures: Figures, folder: Path) -> None:
    """Draw the pictures of all networks there are figures of."""
    _grouped(
        figures,
        {name: lambda said, name=name: said["laws"]["uniform"][name]["killed"] for name in _STATIC},
        _COLORS,
        "right results at hand under kills",
    ).savefig(folder / "einet-static.png", dpi=144)
    _dynamic(figures).savefig(folder / "einet-dynamic.png", dpi=144)
    whole = {network: said for network, said in figures.items() if "pruned" in said}
    if whole:
        _grouped(
            whole,
            {
                "single exit": lambda said: said["laws"]["uniform"]["single exit"]["killed"],
                "single exit, pruned": lambda said: said["pruned"]["killed"],
                "all exits run": lambda said: said["laws"]["uniform"]["static 100%"]["killed"],
                "planned, as chosen": lambda said: said["laws"]["uniform"][said["chosen"]]["killed"],
            },
            (*_GREYS[:3], _OURS),
            "right results at hand under kills",
        ).savefig(folder / "einet-common.png", dpi=144)
    _expectations(figures).savefig(folder / "einet-expectation.png", dpi=144)
    _laws(figures).savefig(folder / "einet-laws.png", dpi=144)


def search_picture(speed: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw time and expectation of hybrid search over m, the exact plan beside it (Figure 11)."""
    found = {0: speed["greedy"]} | {m: speed[f"hybrid, m={m}"] for m in (1, 2, 3, 4)}
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    time_axes, value_axes = figure.subplots(1, 2)
    for axes, key, label in ((time_axes, "call_us", "us a call"), (value_axes, "expectation", "expectation")):
        axes.plot(list(found), [row[key] for row in found.values()], "o-", color=_OTHER, label="hybrid search")
        axes.axhline(speed["exact"][key], color=_OURS, label="exact")
        axes.set(xlabel="exits chosen by enumeration (m)", ylabel=label, xticks=list(found))
        _plain(axes)
    time_axes.set_yscale("log")
    value_axes.ticklabel_format(useOffset=False)
    time_axes.legend(frameon=False)
    figure.savefig(path, dpi=144)


def _grouped(figures: Figures, bars: Mapping[str, Any], colors: Sequence[str], label: str) -> Figure:
    figure = Figure(figsize=(max(7.0, 1.35 * len(figures)), 4.0), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(bars)
    for index, ((name, value), color) in enumerate(zip(bars.items(), colors, strict=True)):
        places = [place + (index - (len(bars) - 1) / 2) * width for place in range(len(figures))]
        axes.bar(places, [value(said) for said in figures.values()], width=0.92 * width, color=color, label=name)
    axes.set_xticks(range(len(figures)), [name.replace("-mnist", "\nMNIST") for name in figures])
    axes.set(ylabel=label, ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _plain(axes, "y")
    figure.legend(loc="outside upper center", ncols=len(bars), frameon=False)
    return figure


def _dynamic(figures: Figures) -> Figure:
    # Points over running all exits, with 95 % errors.
    figure = Figure(figsize=(max(7.0, 1.35 * len(figures)), 4.0), layout="constrained")
    axes = figure.subplots()
    looks = (
        ("X", "black"),
        *zip(("v", "<", "^"), _GREYS[1:], strict=True),
        ("s", _THIRD),
        ("D", _OTHER),
        ("P", "#b2abd2"),
        ("o", _OURS),
    )
    for index, (name, (marker, color)) in enumerate(zip(_DYNAMIC, looks, strict=True)):
        rows = [said["laws"]["uniform"][name] for said in figures.values()]
        axes.errorbar(
            [place + (index - (len(_DYNAMIC) - 1) / 2) * 0.12 for place in range(len(rows))],
            [100 * row["over_everything"] for row in rows],
            yerr=[100 * row["over_everything_error"] for row in rows],
            fmt=marker,
            color=color,
            label=name,
            capsize=2,
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(figures)), [name.replace("-mnist", "\nMNIST") for name in figures])
    axes.set_ylabel("points over running all exits")
    _plain(axes, "y")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _expectations(figures: Figures) -> Figure:
    columns = 3
    rows = -(-len(figures) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(figures) :]:
        axes.set_visible(False)
    for axes, (name, said) in zip(grid, figures.items(), strict=False):
        skipped = [row["skipped"] for row in said["skipping"]]
        for key, color, style in (("planned", _GREYS[2], "s:"), ("expectation", _OTHER, "D--"), ("truth", _OURS, "o-")):
            axes.plot(skipped, [row[key] for row in said["skipping"]], style, color=color, label=key)
        axes.set(title=name, xticks=skipped, xlabel="exits skipped between two")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        _plain(axes)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def _laws(figures: Figures) -> Figure:
    laws = list(next(iter(figures.values()))["laws"])
    figure = Figure(figsize=(max(7.0, 1.35 * len(figures)), 2.6 * len(laws)), layout="constrained")
    for axes, law in zip(figure.subplots(len(laws), 1, sharex=True), laws, strict=True):
        for index, (name, color) in enumerate(zip(_BY_LAW, (_GREYS[1], _GREYS[3], _OURS), strict=True)):
            rows = [said["laws"][law][name] for said in figures.values()]
            places = [place + (index - 1) * 0.26 for place in range(len(rows))]
            axes.bar(places, [row["killed"] for row in rows], width=0.24, color=color, label=name)
        axes.set(ylabel=law, ylim=(0, 1))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _plain(axes, "y")
    axes.set_xticks(range(len(figures)), [name.replace("-mnist", "\nMNIST") for name in figures])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(_BY_LAW), frameon=False)
    return figure


def _plain(axes: Axes, grid: str = "both") -> None:
    axes.grid(alpha=0.25, axis=grid)  # type: ignore[arg-type]  # one of matplotlib's words
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
