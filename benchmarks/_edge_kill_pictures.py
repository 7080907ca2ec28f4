"""The picture of accuracy over deadlines that are known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

_LOOKS = {"anytime": ("anytime", "#4477aa", "--"), "finiteTime": ("finite-time", "#cc3311", "-")}


def preemption_picture(figures: Mapping[str, Any], path: Path) -> None:
    """Draw both modes' accuracy over the deadline, alone and beside a real-time process."""
    known = figures["known"]
    titles = {"alone": "alone", "beside": f"a real-time process takes {known['duty']:.0%} of the core"}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (load, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for mode, (label, color, line) in _LOOKS.items():
            axes.plot(
                known["deadlines_ms"],
                known[load][mode]["accuracy"],
                color=color,
                linestyle=line,
                marker=".",
                label=label,
            )
        axes.axvline(figures["single_exit_ms"], color="#999999", linewidth=1, label="the network alone, by profile")
        axes.set(title=title, xlabel="time there is (ms)", ylim=(0, 1))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("right answers at the deadline")
    figure.axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=144)
