"""Pictures and one page of an evaluation."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from meedge_ray.bundle.files import write_atomically
from meedge_ray.domain.quantity import format_bytes
from meedge_ray.train.curves import Curve
from meedge_ray.train.evaluation import Evaluation

# Okabe and Ito's palette: told apart by everybody.
LOOKS = {  # name in pictures, colour, line
    "single_exit": ("single exit", "#000000", "--"),
    "multi_exit_fc": ("multi-exit, one FC each", "#E69F00", "-."),
    "spinn": ("SPINN", "#0072B2", ":"),
    "branchynet": ("BranchyNet", "#009E73", (0, (4, 1, 1, 1, 1, 1))),
    "einet": ("EINet's exits", "#CC79A7", (0, (6, 2))),
    "trained_together": ("its own exits", "#56B4E9", (0, (1, 1))),
    "meedge": ("meedge-ray", "#D55E00", "-"),
}
_MARKERS = {
    "single_exit": "o",
    "multi_exit_fc": "v",
    "spinn": "P",
    "branchynet": "D",
    "einet": "s",
    "trained_together": "^",
}
_PREDICTED = "#777777"
_MIB = 2.0**20


@dataclass(frozen=True, slots=True)
class MemoryChange:
    """One step of a device's life: the budget it was given, and how it answered under it.

    `answered` is the share of requests that got a label, also while units were being moved.
    """

    memory_bytes: int
    resident_bytes: int
    accuracy: float
    answered: float
    fetched_bytes: int
    switch_ms: float
    branches: int


def write_report(folder: Path, evaluation: Evaluation, trace: Sequence[MemoryChange] = ()) -> None:
    """Write report.json, the pictures and index.html, which holds the pictures inside.

    Args:
        folder: made where it is not there.
        evaluation: what was measured.
        trace: a device's memory changes, where there was one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, tuple[Figure, str]] = {
        "accuracy-over-time": (_over_time(evaluation), _OVER_TIME),
        "finite-time": (_finite_time(evaluation), _FINITE_TIME),
        "kills": (_kills(evaluation), _KILLS),
        "equal-memory": (_equal_memory(evaluation), _EQUAL_MEMORY),
        "mae-over-memory": (_over_memory(evaluation), _OVER_MEMORY),
    }
    if trace:
        pictures["memory-changes"] = (_trace(evaluation, trace), _TRACE)
    for name, (figure, _) in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=144)
    content = evaluation.as_json() | {"trace": [asdict(change) for change in trace]}
    write_atomically(folder / "report.json", json.dumps(content, indent=2).encode())
    (folder / "index.html").write_text(_page(folder, evaluation, {name: text for name, (_, text) in pictures.items()}))


_OVER_TIME = (
    "Accuracy of the best result at hand when the inference is stopped at a time. The original network has nothing "
    "before its end; the area under a curve, over the horizon, is its mean accuracy expectation (mAE)."
)
_FINITE_TIME = (
    "Accuracy where the time is known beforehand: only the one resident branch that is best within it runs, or the "
    "original network's end. The figures are means over the horizon."
)
_KILLS = (
    "Inferences killed on the running engine at times drawn within the horizon: how many had the right result "
    "at hand, beside what was predicted from unit times and exit accuracies."
)
_EQUAL_MEMORY = (
    "The same kills, ours beside each other method at the memory that one takes, and what ours gains relative to it. "
    "Beside the single exit, whose memory holds no branches, ours has the memory budget above."
)
_OVER_MEMORY = "Mean accuracy expectation of the best placement for every memory budget. Points are the baselines."
_TRACE = (
    "An edge node through changes of its memory budget: what it keeps resident, and how accurate its answers are "
    "under deadlines drawn over 1.25 times its own full run. Where the budget is below a baseline's line, that network "
    "would have been killed."
)


def _axes(height: float = 4.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), layout="constrained")
    axes: Axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _over_time(evaluation: Evaluation) -> Figure:
    curves = {name: (method.curve, f"mAE {method.mae:.1%}") for name, method in evaluation.methods.items()}
    return _curves(curves, evaluation.horizon_ms, "time until the kill (ms)", "accuracy at hand")


def _finite_time(evaluation: Evaluation) -> Figure:
    curves = {
        name: (method.finite_time, f"{method.finite_time_mean:.1%}") for name, method in evaluation.methods.items()
    }
    return _curves(curves, evaluation.horizon_ms, "time there is, known beforehand (ms)", "accuracy")


def _curves(curves: Mapping[str, tuple[Curve, str]], horizon_ms: float, time: str, accuracy: str) -> Figure:
    figure, axes = _axes()
    for name, (curve, figure_text) in curves.items():
        label, color, line = LOOKS[name]
        x, y = steps(curve, horizon_ms)
        axes.step(x, y, where="post", color=color, linestyle=line, label=f"{label}: {figure_text}", linewidth=2)
    axes.set(xlabel=time, ylabel=accuracy, ylim=(0, 1), xlim=(0, horizon_ms))
    _percent(axes)
    axes.legend(loc="lower right", framealpha=0.9)
    return figure


def steps(curve: Curve, horizon_ms: float) -> tuple[list[float], list[float]]:
    """Return times and accuracies of the curve from 0 to the horizon, as stairs."""
    x = [0.0, *(time_ms for time_ms, _ in curve), horizon_ms]
    y = [0.0, *(accuracy for _, accuracy in curve), curve[-1][1]]
    return x, y


def _kills(evaluation: Evaluation) -> Figure:
    figure, axes = _axes(3.2)
    names = list(evaluation.methods)[::-1]
    for row, name in enumerate(names):
        method = evaluation.methods[name]
        color = LOOKS[name][1]
        axes.barh(row, method.killed, color=color, height=0.6)
        axes.plot([method.mae] * 2, [row - 0.4, row + 0.4], color=_PREDICTED, linewidth=2.5)
        axes.text(max(method.killed, method.mae) + 0.01, row, f"{method.killed:.1%}", va="center")
    axes.plot([], [], color=_PREDICTED, linewidth=2.5, label="predicted")
    axes.set_yticks(range(len(names)), [LOOKS[name][0] for name in names])
    axes.set(xlabel="right results at hand under random kills, measured", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="upper right")
    return figure


def _equal_memory(evaluation: Evaluation) -> Figure:
    figure, axes = _axes()
    ours_name, ours_color, _ = LOOKS["meedge"]
    places = []
    for place, (name, comparison) in enumerate(evaluation.comparisons.items()):
        label, color, _ = LOOKS[name]
        wrapped = label.replace(", ", ",\n")
        places.append(f"{wrapped}\n{format_bytes(comparison.memory_bytes)}")
        pair = ((evaluation.methods[name], color), (comparison.ours, ours_color))
        for offset, (method, bar_color) in zip((-0.2, 0.2), pair, strict=True):
            axes.bar(place + offset, method.killed, width=0.38, color=bar_color)
            axes.plot([place + offset - 0.19, place + offset + 0.19], [method.mae] * 2, color=_PREDICTED, linewidth=2.5)
        if comparison.killed_gain is not None:
            top = max(comparison.ours.killed, comparison.ours.mae) + 0.01
            axes.text(place + 0.2, top, f"{comparison.killed_gain:+.1%}", ha="center")
    axes.bar(0, 0, color=ours_color, label=f"{ours_name}, at the same memory")
    axes.plot([], [], color=_PREDICTED, linewidth=2.5, label="predicted")
    axes.set_xticks(range(len(places)), places)
    axes.set(ylabel="right results at hand\nunder random kills", ylim=(0, 1))
    _percent(axes)
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def _over_memory(evaluation: Evaluation) -> Figure:
    figure, axes = _axes()
    label, color, line = LOOKS["meedge"]
    axes.plot(
        [point.memory_bytes / _MIB for point in evaluation.over_memory],
        [point.mae for point in evaluation.over_memory],
        color=color,
        linestyle=line,
        marker=".",
        label=label,
    )
    for name, point in evaluation.baselines_over_memory.items():
        label, color, _ = LOOKS[name]
        axes.plot(point.memory_bytes / _MIB, point.mae, _MARKERS[name], color=color, label=label, markersize=8)
    axes.set(xlabel="memory of backbone and branches (MiB)", ylabel="mAE", ylim=(0, 1))
    _percent(axes)
    axes.legend(loc="lower right")
    return figure


def _trace(evaluation: Evaluation, trace: Sequence[MemoryChange]) -> Figure:
    figure = Figure(figsize=(8, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    moments = list(range(len(trace) + 1))
    for values, label, color in (
        ([change.memory_bytes for change in trace], "memory budget", "#000000"),
        ([change.resident_bytes for change in trace], "resident: backbone and branches", LOOKS["meedge"][1]),
    ):
        stairs = [value / _MIB for value in values]
        top.step(moments, [*stairs, stairs[-1]], where="post", label=label, color=color, linewidth=2)
    for name, method in evaluation.methods.items():
        if name != "meedge":
            label, color, line = LOOKS[name]
            top.axhline(method.resident_bytes / _MIB, color=color, linestyle=line, label=f"{label} needs", zorder=1)
    top.set(ylabel="MiB")
    top.margins(y=0.15)
    figure.legend(loc="outside upper center", fontsize=8, ncols=3)
    accuracies = [change.accuracy for change in trace]
    bottom.step(moments, [*accuracies, accuracies[-1]], where="post", color=LOOKS["meedge"][1], linewidth=2)
    for moment, change in enumerate(trace):
        above = change.accuracy < 0.3
        bottom.annotate(
            f"{change.accuracy:.0%}\n{change.branches} branches",
            (moment + 0.5, change.accuracy),
            ha="center",
            va="bottom" if above else "top",
            fontsize=8,
            xytext=(0, 4 if above else -4),
            textcoords="offset points",
        )
    bottom.set(ylabel="accuracy under\nrandom deadlines", xlabel="memory changes", ylim=(0, 1), xticks=moments)
    _percent(bottom)
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _page(folder: Path, evaluation: Evaluation, captions: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(LOOKS[name][0])}</td><td>{method.mae:.1%}</td><td>{method.killed:.1%}</td>"
        f"<td>{method.final_accuracy:.1%}</td><td>{format_bytes(method.resident_bytes)}</td>"
        f"<td>{len(method.branches)}</td></tr>"
        for name, method in evaluation.methods.items()
    )
    compared = "".join(
        f"<tr><td>{html.escape(LOOKS[name][0])}</td><td>{format_bytes(comparison.memory_bytes)}</td>"
        f"<td>{evaluation.methods[name].mae:.1%}</td><td>{comparison.ours.mae:.1%}</td>"
        f"<td>{_signed(comparison.mae_gain)}</td><td>{evaluation.methods[name].killed:.1%}</td>"
        f"<td>{comparison.ours.killed:.1%}</td><td>{_signed(comparison.killed_gain)}</td></tr>"
        for name, comparison in evaluation.comparisons.items()
    )
    pictures = "".join(
        f'<figure><img alt="{html.escape(text)}" src="data:image/png;base64,{_encoded(folder / f"{name}.png")}">'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
        for name, text in captions.items()
    )
    facts: dict[str, Any] = {
        "model": f"{evaluation.model} ({evaluation.architecture})",
        "device type": evaluation.device_type,
        "memory budget": format_bytes(evaluation.memory_bytes),
        "horizon": f"{evaluation.horizon_ms:.3f} ms",
        "kills come": json.dumps(evaluation.distribution) if evaluation.distribution else "at any time alike",
        "test samples": evaluation.test_samples,
        "kills a method": evaluation.kills_per_method,
    }
    listed = "".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items())
    title = html.escape(f"{evaluation.model}, elastic")
    return _PAGE.format(title=title, facts=listed, rows=rows, compared=compared, pictures=pictures)


def _signed(gain: float | None) -> str:
    return "" if gain is None else f"{gain:+.1%}"


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
dl {{ display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem; }} dd {{ margin: 0; }}
figure {{ margin: 2rem 0; }} img {{ width: 100%; }} figcaption {{ color: #555; font-size: .9rem; }}
</style></head><body>
<h1>{title}</h1>
<dl>{facts}</dl>
<table><thead><tr><th>method</th><th>mAE predicted</th><th>under kills, measured</th><th>if let finish</th>
<th>memory</th><th>branches</th></tr></thead><tbody>{rows}</tbody></table>
<h2>Ours beside each, at its memory</h2>
<table><thead><tr><th>method</th><th>memory</th><th>mAE</th><th>ours</th><th>gain</th><th>under kills</th><th>ours</th>
<th>gain</th></tr></thead><tbody>{compared}</tbody></table>
{pictures}
</body></html>
"""
