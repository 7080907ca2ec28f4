"""A device behind a slow link: what changes of its memory move and take, against sending the whole model each time.

Run: python benchmarks/edge_link.py [--work FOLDER] [--quick]
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from _edge_link import NAME, link_bundle, run_folder, sample_of
from _edge_link_parts import Whole, device, felt, rates, revived, sequence, served
from _results import RESULTS, write_results
from links import Link, joined
from matplotlib.figure import Figure

from meedge_ray.cli.output import show, table
from meedge_ray.domain.elastic import Bundle
from meedge_ray.runtime.placing import Placer

LINKS: dict[str, dict[str, float]] = {
    "85 Mbit/s": {"rate_bps": 85e6},
    "5 Mbit/s, 100 ms, 1 % lost": {"rate_bps": 5e6, "delay_ms": 100, "loss": 0.01},
}
IN_TIME_MS = {"85 Mbit/s": (50, 100, 200), "5 Mbit/s, 100 ms, 1 % lost": (1000, 2000, 4000)}
ROUNDS = {"85 Mbit/s": 20, "5 Mbit/s, 100 ms, 1 % lost": 4}
CHANGES, TRIALS, KILLS, ALONE_S = 12, 10, 5, 0.5
RATE_LIMIT_BPS = 2e6

Figures = dict[str, Any]


def measured(name: str, source: Path, bundle: Bundle, *, quick: bool) -> Figures:
    """Return all that is measured over one link."""
    changes, trials, rounds, kills = (4, 2, 2, 1) if quick else (CHANGES, TRIALS, ROUNDS[name], KILLS)
    with joined(**LINKS[name]) as link, served(source, link) as url:
        figures: Figures = changed(url, link, source, bundle, changes)
        print(name, "changes done", flush=True)
        figures["in_time"] = [in_time(url, link, bundle, ms, trials) for ms in IN_TIME_MS[name]]
        print(name, "in time done", flush=True)
        with tempfile.TemporaryDirectory() as cache, device(url, link, bundle, Path(cache)) as here:
            sample = sample_of(bundle)
            figures["felt"] = summary(felt(here, sample, rounds, ALONE_S))
            figures["back_after_s"] = {"linked": revived(here, sample, kills)}
            link.cut()
            figures["back_after_s"]["cut off"] = revived(here, sample, kills)
            link.mend()
        if "delay_ms" not in LINKS[name]:
            with (
                tempfile.TemporaryDirectory() as cache,
                device(url, link, bundle, Path(cache), rate_limit_bps=RATE_LIMIT_BPS) as here,
            ):
                mean_bps, peak_bps = rates(here, link)
                figures["limited"] = {"limit_bps": RATE_LIMIT_BPS, "mean_bps": mean_bps, "peak_bps": peak_bps}
    return figures


def changed(url: str, link: Link, source: Path, bundle: Bundle, count: int) -> Figures:
    """Change the memory so often; return what each change moved and took, ours and with the whole model.

    Ours began with the backbone, which moved once; the other begins with nothing.
    """
    rows, before = [], link.device.moved()
    with (
        tempfile.TemporaryDirectory() as cache,
        tempfile.TemporaryDirectory() as files,
        device(url, link, bundle, Path(cache)) as here,
        Whole(source, link, Path(files), bundle) as whole,
    ):
        moved = link.device.moved().since(before)
        begun_bytes = moved.received_bytes + moved.sent_bytes - whole.first_bytes
        for memory_bytes in sequence(Placer(bundle), count, seed=1):
            ours = here.placed(memory_bytes)
            assert here.branches == Placer(bundle).place(memory_bytes).branches
            rows.append({"ours": ours, "whole": whole.placed(here.branches)})
    return {"begun_bytes": begun_bytes, "changes": rows}


def in_time(url: str, link: Link, bundle: Bundle, transfer_ms: float, trials: int) -> Figures:
    """Ask for placements that are to be complete within a time, nothing but the backbone at hand each time."""
    rows = []
    with (
        tempfile.TemporaryDirectory() as cache,
        device(url, link, bundle, Path(cache), transfer_ms=transfer_ms) as here,
    ):
        for memory_bytes in sequence(Placer(bundle), trials, seed=2):
            here.forget()
            rows.append(here.placed(memory_bytes) | {"best": Placer(bundle).place(memory_bytes).expectation})
    took_ms = [1e3 * row["seconds"] for row in rows]
    late_ms = [ms - transfer_ms for ms in took_ms if ms > transfer_ms]
    return {
        "transfer_ms": transfer_ms,
        "placements": trials,
        "median_ms": statistics.median(took_ms),
        "slowest_ms": max(took_ms),
        "late": len(late_ms),
        "latest_by_ms": max(late_ms, default=0.0),
        "share_of_best": statistics.mean(row["expectation"] / row["best"] for row in rows),
    }


def summary(latencies: dict[str, list[tuple[float, float]]]) -> Figures:
    """Return the distribution of each."""
    found: Figures = {}
    for name, pairs in latencies.items():
        for what, values in zip(("engine_ms", "caller_ms"), zip(*pairs, strict=True), strict=True):
            ordered = sorted(values)
            found.setdefault(name, {"inferences": len(ordered)})[what] = {
                "p50": ordered[len(ordered) // 2],
                "p99": ordered[int(0.99 * len(ordered))],
                "max": ordered[-1],
            }
    return found


def picture(figures: Figures, path: Path) -> None:
    """Draw, of every link, the bytes moved up to each change and the time to the new placement."""
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    grid = figure.subplots(2, len(figures), squeeze=False)
    looks = {"whole": ("the whole model each time", "#c05621"), "ours": ("meedge-ray", "#1b6ca8")}
    for column, (name, said) in enumerate(figures.items()):
        numbers = range(1, len(said["changes"]) + 1)
        for method, (label, color) in looks.items():
            moved = [row[method]["moved_bytes"] for row in said["changes"]]
            begun = said["begun_bytes"] if method == "ours" else 0
            total = [(begun + sum(moved[:count])) / 2**20 for count in range(len(moved) + 1)]
            grid[0, column].step([0, *numbers], total, where="post", color=color, label=label)
            seconds = [row[method]["seconds"] for row in said["changes"]]
            shift = -0.2 if method == "whole" else 0.2
            grid[1, column].bar([number + shift for number in numbers], seconds, width=0.38, color=color)
        grid[0, column].set(title=name, ylabel="moved in all (MiB)", ylim=(0, None))
        grid[1, column].set(xlabel="change of memory", ylabel="until placed (s)", ylim=(0, None))
        for axes in grid[:, column]:
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=144)


def told(figures: Figures) -> None:
    """Print what was measured."""
    rows = []
    for name, said in figures.items():
        for method in ("ours", "whole"):
            begun = said["begun_bytes"] if method == "ours" else 0
            moved = (begun + sum(row[method]["moved_bytes"] for row in said["changes"])) / 2**20
            seconds = [row[method]["seconds"] for row in said["changes"]]
            rows.append([name, method, f"{moved:.2f}", f"{statistics.median(seconds):.3f}", f"{max(seconds):.3f}"])
    show(table(["link", "method", "MiB moved>", "median s>", "slowest s>"], rows))
    for name, said in figures.items():
        for row in said["in_time"]:
            print(name, row)
        print(name, said["felt"], said["back_after_s"], said.get("limited"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work"), help="where the model is built and kept")
    parser.add_argument("--quick", action="store_true", help="little of it, on a smaller model; writes nothing")
    arguments = parser.parse_args()
    source, bundle = link_bundle(arguments.work, quick=arguments.quick)
    assert bundle.model == NAME
    with run_folder():
        figures = {name: measured(name, source, bundle, quick=arguments.quick) for name in LINKS}
    told(figures)
    if not arguments.quick:
        longest_block_ms = max(max(profile.block_ms) for profile in bundle.profiles.values())
        picture(figures, RESULTS / "edge-link.png")
        write_results("edge_link", {"links": figures, "longest_block_ms": longest_block_ms})


if __name__ == "__main__":
    main()
