"""The whole path on one machine: build on Ray, serve, attach an edge node, take its memory and time away, report.

python examples/01-digits/demo.py --report demo-report
"""

import argparse
import secrets
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from meedge_ray.actors.cluster import Cluster, attach_edge_node, cluster
from meedge_ray.actors.device import RemoteDevice, find_device
from meedge_ray.actors.fleet import fleet_devices, start_fleet, stop_fleet
from meedge_ray.actors.service.serving import run_service, stop_service
from meedge_ray.actors.waiting import eventually
from meedge_ray.api.agent import DeviceSettings
from meedge_ray.api.elastic_model import Data
from meedge_ray.cli.output import Bars, show, table
from meedge_ray.domain.elastic import Bundle, bytes_of
from meedge_ray.domain.errors import MeedgeError, UnavailableError
from meedge_ray.domain.quantity import format_bytes
from meedge_ray.jobs.tasks import run_on_ray
from meedge_ray.runtime.placing import HORIZON_FACTOR
from meedge_ray.train.build import build
from meedge_ray.train.data import load_data
from meedge_ray.train.evaluation import Evaluation, evaluate
from meedge_ray.train.manifest import read_manifest
from meedge_ray.train.report import MemoryChange, write_report
from meedge_ray.train.samples import Samples

HERE = Path(__file__).resolve().parent
DEVICE = "pi-1"
# The memory left for branches, as a share of what the multi-exit network's branches need: full, then seven changes.
SHARES = (1.0, 0.5, 0.08, 0.25, 0.0, 0.04, 0.75, 0.15)
REQUESTS = 400  # a budget


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, default=Path("demo-report"), help="folder for everything it makes")
    parser.add_argument("--manifest", type=Path, default=HERE / "model.yaml", help="what to make elastic")
    parser.add_argument("--kills", type=int, default=10_000, help="killed inferences a method")
    arguments = parser.parse_args()
    started = time.perf_counter()
    console = Console(stderr=True, highlight=False)
    directory = arguments.report / "bundle"
    with Bars(console) as bars:
        with cluster() as head:
            bundle = build(read_manifest(arguments.manifest), directory, run=run_on_ray, report=bars)
            trace = live_on_the_edge(head, directory, bundle, console)
        # The cluster is gone: from here on the machine is quiet enough to measure times on.
        budget_bytes = max(change.memory_bytes for change in trace)
        evaluation = evaluate(directory, memory_bytes=budget_bytes, kills=arguments.kills, report=bars)
    write_report(arguments.report, evaluation, trace)
    show_results(evaluation, trace, arguments.report)
    console.print(f"done in {time.perf_counter() - started:.0f} s")


def live_on_the_edge(head: Cluster, directory: Path, bundle: Bundle, console: Console) -> list[MemoryChange]:
    """Serve the bundle, attach a second Ray node as an edge device, and change its memory budget seven times."""
    token = secrets.token_urlsafe(32)
    url = run_service([directory], token, port=free_port())
    console.print(f"serving placements and units at {url}")
    needed = bytes_of(bundle.baselines["multi_exit_fc"])
    budgets = [bundle.backbone_bytes + round(share * needed) for share in SHARES]
    test = load_data(Data.model_validate(dict(bundle.data)), HERE).test
    with tempfile.TemporaryDirectory(prefix="meedge-cache-") as cache_dir:
        settings = DeviceSettings(
            service_url=url, token=token, model=bundle.model, cache_dir=cache_dir, memory_bytes=budgets[0]
        )
        start_fleet(settings)
        try:
            with attach_edge_node(head, DEVICE):
                device = wait_for_device()
                console.print(f"edge node {DEVICE} joined; its device runs {bundle.model}")
                horizon_ms = HORIZON_FACTOR * full_run_ms(device, test)
                return [change_memory(device, budget, test, horizon_ms) for budget in budgets]
        finally:
            stop_fleet()
            stop_service()


def full_run_ms(device: RemoteDevice, test: Samples) -> float:
    """Return the median time of an inference that is let finish, as the device has it between requests."""
    return statistics.median(device.infer(sample).elapsed_ms for sample in test.x[:100])


def change_memory(device: RemoteDevice, memory_bytes: int, test: Samples, horizon_ms: float) -> MemoryChange:
    """Give the device another budget while requests keep coming, then ask under random deadlines."""
    fetched_before = device.status().fetched_bytes
    answers: list[int | None] = []
    switched = threading.Event()

    def keep_asking() -> None:
        index = 0
        while not switched.is_set():
            answers.append(device.infer(test.x[index % len(test)]).label)
            index += 1

    asking = threading.Thread(target=keep_asking)
    asking.start()
    start = time.perf_counter()
    try:
        status = device.set_memory(memory_bytes)
        switch_ms = (time.perf_counter() - start) * 1e3
    finally:
        switched.set()
        asking.join()
    random = np.random.default_rng(len(status.branches))
    chosen = random.permutation(np.resize(np.arange(len(test)), REQUESTS))
    deadlines_ms = random.permutation((np.arange(REQUESTS) + 0.5) / REQUESTS * horizon_ms)
    labels = [
        device.infer(test.x[index], float(deadline_ms)).label
        for index, deadline_ms in zip(chosen, deadlines_ms, strict=True)
    ]
    return MemoryChange(
        memory_bytes=memory_bytes,
        resident_bytes=status.resident_bytes,
        accuracy=float(np.mean([label == test.y[index] for label, index in zip(labels, chosen, strict=True)])),
        answered=float(np.mean([label is not None for label in answers])),
        fetched_bytes=status.fetched_bytes - fetched_before,
        switch_ms=switch_ms,
        branches=len(status.branches),
    )


def wait_for_device() -> RemoteDevice:
    """Return the device that the fleet gives the node."""

    def answers() -> bool:
        return any(device.name == DEVICE and device.status is not None for device in fleet_devices())

    if not eventually(answers, timeout_s=60.0):
        raise UnavailableError("the fleet attached no device", where=DEVICE, do="Look at the log of its node")
    return find_device(DEVICE)


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def show_results(evaluation: Evaluation, trace: list[MemoryChange], report: Path) -> None:
    """Print what was measured."""
    methods = [
        [name, f"{method.mae:.1%}", f"{method.killed:.1%}", format_bytes(method.resident_bytes)]
        + [str(len(method.branches))]
        for name, method in evaluation.methods.items()
    ]
    changes = [
        [format_bytes(change.memory_bytes), format_bytes(change.resident_bytes), str(change.branches)]
        + [format_bytes(change.fetched_bytes), f"{change.switch_ms:.1f}", f"{change.answered:.0%}"]
        + [f"{change.accuracy:.1%}"]
        for change in trace
    ]
    show(
        table(["method", "mAE predicted>", "under kills>", "memory>", "branches>"], methods),
        "",
        table(
            ["memory>", "resident>", "branches>", "fetched>", "switched in ms>", "answered meanwhile>", "accuracy>"],
            changes,
        ),
        "",
        f"pictures and figures: {report / 'index.html'}",
    )


if __name__ == "__main__":
    try:
        main()
    except MeedgeError as error:
        sys.exit(f"error: {error}")
