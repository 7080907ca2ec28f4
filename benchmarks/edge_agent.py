"""An agent's speed and size: switches, memory given back, what it holds and where that goes, what a request costs.

AlexNet on CIFAR-10, and ResNet-20 for what an agent holds, in an environment that has the base install alone.

Run with MEEDGE_SHARED: python benchmarks/edge_agent.py
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _edge_agents import agent_process, placed
from _edge_bundle import TOKEN, edge_bundle, serving
from _edge_thin import Crowd
from _networks import manifest, networks
from _results import write_results
from numpy.typing import NDArray

from meedge_ray.actors.cluster import cluster
from meedge_ray.actors.service.serving import run_service, stop_service
from meedge_ray.agent.client import AgentClient
from meedge_ray.agent.npy import encoded
from meedge_ray.agent.places import AgentPlace
from meedge_ray.cli.output import Bars, show, table
from meedge_ray.domain.elastic import Bundle, bytes_of
from meedge_ray.train.build import build

DROPS, ASKED, QUICK = 100, 5000, 5
SMALL = "resnet20-cifar10"
# Each is imported after the ones before, in the order in which an agent comes to need them.
IMPORTS = ("numpy", "onnxruntime", "pydantic", "httpx", "safetensors.numpy", "psutil", "uvicorn", "httptools")
_WHERE = """
import importlib, json, sys
def rss():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
said = {"the interpreter": rss()}
for name in sys.argv[1:]:
    importlib.import_module(name)
    said[name] = rss()
importlib.import_module("meedge_ray.agent.__main__")
said["the agent's own code"] = rss()
print(json.dumps(said))
"""
TARGETS = {"switch_ms": 2, "release_ms": 50, "resident_mb": 120, "overhead_ms": 0.3, "placement_p99_ms": 50}
_HERE = Path(__file__).parent

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/edge"), help="where bundles are built and kept")
    parser.add_argument("--bundle", type=Path, help="AlexNet's bundle instead")
    parser.add_argument("--small", type=Path, help="ResNet-20's bundle instead")
    parser.add_argument("--quick", action="store_true", help="only see that it runs; results stay in the work folder")
    parser.add_argument("--thin", type=int, metavar="DEVICES", help="only so many devices without Ray; writes nothing")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    folder, bundle = edge_bundle(work, quick=arguments.quick, given=arguments.bundle)
    if arguments.thin:
        print(json.dumps(thin(folder, bundle, devices=arguments.thin, seconds=60), indent=2))
        return
    small = _small(work, arguments.small, quick=arguments.quick)
    python = base_install(work)
    figures: Figures = {"targets": TARGETS, "switching": switching(folder)}
    with tempfile.TemporaryDirectory(prefix="edge-") as name, serving(folder) as url:
        settings = {"service_url": url, "token": TOKEN, "model": bundle.model, "memory_bytes": 2**40, "http_port": 0}
        with agent_process(Path(name), python=python, device="pi-1", **settings) as (client, pid):
            figures["release"] = released(client, pid, bundle, QUICK if arguments.quick else DROPS)
            figures["overhead"] = overheads(client, Path(name) / "run", bundle, 50 if arguments.quick else ASKED)
    figures["resident"] = resident(small, python)
    figures["thin"] = thin(
        folder, bundle, devices=50 if arguments.quick else 1000, seconds=5 if arguments.quick else 60
    )
    if arguments.quick:
        (work / "edge_agent.json").write_text(json.dumps(figures))
    else:
        write_results("edge_agent", figures)
    _print(figures)


def _small(work: Path, given: Path | None, *, quick: bool) -> Path:
    if given is not None:
        return given
    output = work / (f"{SMALL}-quick" if quick else SMALL)
    with Bars() as bars:
        build(manifest(SMALL, networks(cifar100=False, quick=quick)[SMALL], work, None, bars), output, report=bars)
    return output


def base_install(work: Path) -> str:
    """Return the Python of an environment that has what a device installs, and nothing more."""
    folder, root = work / "base", _HERE.parent
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", str(root / "constraints.txt"), str(root)]
    subprocess.run(install, check=True)
    return python


def switching(folder: Path) -> Figures:
    """Return how long switches between resident placements take, and inferences meanwhile and without."""
    command = [sys.executable, str(_HERE / "_edge_switching.py"), str(folder)]
    said: Figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return said


def released(client: AgentClient, pid: int, bundle: Bundle, count: int) -> Figures:
    """Return how long it takes from a sudden drop's request until the memory is back with the system."""
    process, sample = psutil.Process(pid), _sample(bundle)
    took_ms, answered_ms, back_bytes = [], [], []
    for _ in range(count):
        client.set_memory(2**40)
        placed(client)
        client.infer(sample)
        before = process.memory_info().rss
        watch = subprocess.Popen(
            [sys.executable, str(_HERE / "_edge_watch.py"), str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert watch.stdin is not None
        assert watch.stdout is not None
        watch.stdout.readline()
        start_s = time.monotonic()
        client.set_memory(bundle.backbone_bytes)
        answered_ms.append((time.monotonic() - start_s) * 1e3)
        rows = json.loads(watch.communicate(b"\n")[0])
        settled = rows[-1][1]
        low = settled + 0.02 * (before - settled)
        at_s = next(at_s for at_s, rss in rows if at_s > start_s and rss <= low)
        took_ms.append((at_s - start_s) * 1e3)
        back_bytes.append(before - settled)
    return {
        "drops": count,
        "unit_bytes": bundle.backbone_bytes,
        "back_bytes": float(np.median(back_bytes)),
        "down_ms": _spread(took_ms),
        "answered_ms": _spread(answered_ms),
    }


def overheads(client: AgentClient, run: Path, bundle: Bundle, count: int) -> Figures:
    """Return what a request takes beside its inference, over the Unix socket and over loopback HTTP, in turn."""
    place, sample = AgentPlace("pi-1", run), _sample(bundle)
    record = place.record()
    assert record is not None
    assert record.http_port is not None
    connection = HTTPConnection("127.0.0.1", record.http_port)
    headers = {"Authorization": f"Bearer {place.token_file.read_text().strip()}"}

    def by_http() -> float:
        connection.request("POST", "/v1/infer", b"".join(encoded(sample)), headers)
        return float(json.loads(connection.getresponse().read())["elapsed_ms"])

    ways = {"unix": lambda: client.infer(sample).elapsed_ms, "http": by_http}
    beside: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(count):
        for way, ask in ways.items():
            beside[way].append(_beside_ms(ask))
    return {way: _spread(values) for way, values in beside.items()} | {"requests": count}


def _beside_ms(ask: Callable[[], float]) -> float:
    start = time.perf_counter()
    inference_ms = ask()
    return (time.perf_counter() - start) * 1e3 - inference_ms


def resident(folder: Path, python: str) -> Figures:
    """Return what an agent holds that runs ResNet-20 with its best placement, and where it goes."""
    command = [python, "-c", _WHERE, *IMPORTS]
    after: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    where, before = {}, 0
    for name, size_bytes in after.items():
        where[name], before = size_bytes - before, size_bytes
    with tempfile.TemporaryDirectory(prefix="edge-") as name, serving(folder) as url:
        settings = {"service_url": url, "token": TOKEN, "model": SMALL, "memory_bytes": 2**40, "device": "pi-2"}
        with agent_process(Path(name), python=python, **settings) as (client, pid):
            status = placed(client)
            assert status.running is not None
            sample = np.zeros((3, 32, 32), np.uint8)
            for _ in range(1000):
                client.infer(sample)
            memory = psutil.Process(pid).memory_full_info()
            modules = _maps(pid)
    where["threads, model, and work"] = memory.rss - before
    return {
        "rss_bytes": memory.rss,
        "uss_bytes": memory.uss,
        "unit_bytes": status.running.resident_bytes,
        "branches": len(status.running.branches),
        "where": where,
        "heavy": modules,
    }


def _maps(pid: int) -> bool:
    """Return whether torch or Ray are in a process."""
    return any(word in Path(f"/proc/{pid}/maps").read_text() for word in ("libtorch", "_raylet"))


def thin(folder: Path, bundle: Bundle, *, devices: int, seconds: float) -> Figures:
    """Return what became of a thousand devices' requests without Ray, served by one Serve application."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with cluster():
        url = run_service([folder], TOKEN, port=port)
        try:
            whole_bytes = bundle.backbone_bytes + bytes_of(bundle.branches)
            crowd = Crowd(
                url=url,
                token=TOKEN,
                model=bundle.model,
                least_bytes=bundle.backbone_bytes,
                most_bytes=whole_bytes,
                devices=devices,
                seconds=seconds,
            )
            command = [sys.executable, str(_HERE / "_edge_thin.py"), crowd.json()]
            said: Figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        finally:
            stop_service()
    return said


def _sample(bundle: Bundle) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, bundle.input.shape, dtype=np.uint8)


def _spread(values_ms: Sequence[float]) -> Figures:
    middle, high, most = np.percentile(values_ms, [50, 99, 100]).tolist()
    return {"p50": middle, "p99": high, "max": most}


def _print(figures: Figures) -> None:
    def both(said: Figures) -> str:
        return f"{said['p50']:.2f} / {said['p99']:.2f} ms"

    switch, held = figures["switching"], figures["resident"]
    rows = [
        ["a switch between resident placements", both(switch["switch_ms"]), "2 ms"],
        ["an inference while they are switched", both(switch["inference_ms_meanwhile"]), ""],
        ["an inference without", both(switch["inference_ms_alone"]), ""],
        ["memory back after a sudden drop", both(figures["release"]["down_ms"]), "50 ms"],
        ["a request beside its inference, Unix socket", both(figures["overhead"]["unix"]), "0.3 ms"],
        ["the same, loopback HTTP", both(figures["overhead"]["http"]), ""],
        ["a placement, 1,000 thin agents", both(figures["thin"]["placement"]["took_ms"]), "50 ms"],
        ["a heartbeat of theirs", both(figures["thin"]["heartbeat"]["took_ms"]), ""],
        ["resident with ResNet-20", f"{held['rss_bytes'] / 1e6:.1f} MB", "120 MB"],
        *([f"  {name}", f"{size / 1e6:.1f} MB", ""] for name, size in held["where"].items()),
    ]
    show(table(["what", "median / p99>", "target>"], rows))


if __name__ == "__main__":
    main()
