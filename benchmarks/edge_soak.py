"""Everything that can happen to an agent, at random and for long, while clients ask it all the time.

Run: python benchmarks/edge_soak.py [--minutes 10] [--work FOLDER] [--quick]
"""

import argparse
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from _edge_link import NAME, link_bundle, run_folder, sample_of
from _results import RESULTS, write_results
from kept_agent import KeptAgent, is_placed, kept
from links import SERVICE, joined
from matplotlib.figure import Figure
from placement_service import TOKEN, ServiceProcess
from soaking import FAST_BPS, Bundles, Clients, Soak, seen

from meedge_ray.api.agent import AgentSettings

CLIENTS, SEED = 2, 7
WARM_UP_S, REST_S, SAMPLE_S, PAUSE_S = 20.0, 8.0, 0.5, 0.3

Figures = dict[str, Any]


def soaked(source: Path, sample: Any, seconds: float, folder: Path) -> Figures:  # noqa: ANN401 - as the client's
    """Let things happen for so long, and return what was seen."""
    bundles = Bundles(source, folder / "bundle")
    with joined(FAST_BPS) as link:
        service = ServiceProcess(bundles.folder, (SERVICE, 8000), link.service.command)
        settings = AgentSettings(
            device="pi-1",
            service_url=service.url,
            token=TOKEN,
            model=NAME,
            cache_dir=str(folder / "cache"),
            memory_bytes=bundles.most_bytes,
        )
        try:
            with kept(settings, link.device.entered()) as agent:
                agent.until(is_placed)
                pid, soak = agent.pid, Soak(agent, service, link, bundles, seed=SEED)
                process = psutil.Process(pid)
                with Clients(agent, sample, CLIENTS) as clients:
                    happened, rows = watched(soak, clients, process, seconds)
                soak.close()
                quiet = at_rest(agent, process, bundles)
                return {
                    "seconds": seconds,
                    "requests": dict(clients.counts.most_common()),
                    "longest_request_s": clients.longest_s,
                    "broken": [*clients.broken, *soak.broken],
                    "changes_refused": dict(soak.refusals),
                    "happened": count(happened),
                    "same_process": agent.pid == pid,
                    "drops": agent.client.status().counts.drops,
                    "fetched_bytes": agent.client.status().counts.fetched_bytes,
                    "flat": flat(rows, seconds),
                    "at_rest": quiet,
                    "rows": rows,
                    "when": happened,
                }
        finally:
            service.kill()


def watched(
    soak: Soak, clients: Clients, process: psutil.Process, seconds: float
) -> tuple[list[tuple[float, str]], list[Figures]]:
    """Let things happen and look at the process meanwhile."""
    start, happened, rows, over = time.monotonic(), [], [], threading.Event()

    def look() -> None:
        before = 0
        while not over.wait(SAMPLE_S):
            answered = clients.counts.total()
            row = {"at_s": time.monotonic() - start, "requests": answered - before, **seen(process)}
            before = answered
            rows.append(row)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        while time.monotonic() < start + seconds:
            at_s = time.monotonic() - start
            happened.append((at_s, soak.step()))
            time.sleep(PAUSE_S)
    finally:
        over.set()
        looking.join()
    return happened, rows


def at_rest(agent: KeptAgent, process: psutil.Process, bundles: Bundles) -> Figures:
    """Return what is seen of the agent when all is over, with the best placement and with the bare backbone."""
    found = {}
    for name, memory_bytes in (("best", bundles.most_bytes), ("backbone", bundles.least_bytes)):
        running = agent.client.set_memory(memory_bytes).running
        agent.client.close()
        time.sleep(REST_S)
        found[name] = {"resident_bytes": 0 if running is None else running.resident_bytes, **seen(process)}
    return found


def count(happened: list[tuple[float, str]]) -> Figures:
    """Return how often each thing happened."""
    names = [name for _, name in happened]
    return {name: names.count(name) for name in sorted(set(names))}


def flat(rows: list[Figures], seconds: float) -> Figures:
    """Return the median of the first third, without the warm-up, and that of the last."""
    warm = min(WARM_UP_S, seconds / 6)
    span = (seconds - warm) / 3
    thirds = {
        "first": [row for row in rows if warm <= row["at_s"] < warm + span],
        "last": [row for row in rows if row["at_s"] >= seconds - span],
    }
    return {
        name: {third: statistics.median(row[name] for row in chosen) for third, chosen in thirds.items()}
        for name in ("rss_bytes", "files", "threads")
    }


def picture(figures: Figures, path: Path) -> None:
    """Draw the process over time, and what happened."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    memory, counts, requests, events = figure.subplots(4, 1, sharex=True, height_ratios=(2, 2, 1.5, 2.5))
    at_s = [row["at_s"] for row in figures["rows"]]
    memory.plot(at_s, [row["rss_bytes"] / 2**20 for row in figures["rows"]], color="#1b6ca8", linewidth=1)
    memory.set(ylabel="resident (MiB)", ylim=(0, None))
    counts.plot(at_s, [row["files"] for row in figures["rows"]], color="#c05621", linewidth=1, label="open files")
    counts.plot(at_s, [row["threads"] for row in figures["rows"]], color="#2f855a", linewidth=1, label="threads")
    counts.set(ylim=(0, None))
    counts.legend(loc="upper right", ncols=2)
    requests.plot(at_s, [row["requests"] / SAMPLE_S for row in figures["rows"]], color="#555555", linewidth=0.8)
    requests.set(ylabel="requests/s", ylim=(0, None))
    names = sorted({name for _, name in figures["when"]})
    for number, name in enumerate(names):
        times = [at for at, other in figures["when"] if other == name]
        events.plot(times, [number] * len(times), "|", color="#1b6ca8", markersize=9)
    events.set_yticks(range(len(names)), names)
    events.set(xlabel="time (s)", xlim=(0, figures["seconds"]))
    for axes in (memory, counts, requests, events):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=144)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--work", type=Path, default=Path("work"), help="where the model is built and kept")
    parser.add_argument("--quick", action="store_true", help="a few seconds on a smaller model; writes nothing")
    arguments = parser.parse_args()
    source, bundle = link_bundle(arguments.work, quick=arguments.quick)
    seconds = 15.0 if arguments.quick else 60 * arguments.minutes
    with run_folder() as folder:
        figures = soaked(source, sample_of(bundle), seconds, folder)
    print({name: said for name, said in figures.items() if name not in ("rows", "when")})
    if not arguments.quick:
        picture(figures, RESULTS / "edge-soak.png")
        write_results("edge_soak", {name: said for name, said in figures.items() if name not in ("rows", "when")})


if __name__ == "__main__":
    main()
