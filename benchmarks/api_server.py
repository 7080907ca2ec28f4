"""The API server under load: a table of 1,000 devices, writes, 1,000 watchers, memory and processor when idle.

Run: python benchmarks/api_server.py
"""

import asyncio
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import psutil
from _results import write_results

from meedge_ray.cli.output import show, table
from meedge_ray.operator.client.api_client import ApiClient
from meedge_ray.operator.client.kubeconfig import read_kubeconfig
from meedge_ray.operator.client.resources import DEVICES
from meedge_ray.operator.keeping.certificate import make_certificate

DEVICES_COUNT, WATCHERS, WRITERS = 1000, 1000, 16
WRITING_S, IDLE_S, ROUNDS = 10.0, 20.0, 10
TARGETS = {"get_ms": 300, "writes_per_s": 200, "watchers_s": 1.0}

Figures = dict[str, Any]


@contextmanager
def server(home: Path) -> Iterator[psutil.Process]:
    """Run an API server with TLS in a process of its own."""
    certificate, key = home / "certificate.pem", home / "key.pem"
    make_certificate(certificate, key)
    command = [sys.executable, "-m", "meedge_ray.operator.server", f"--home={home}", "--port=0"]
    process = subprocess.Popen([*command, f"--tls-cert={certificate}", f"--tls-key={key}"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()  # it is ready
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def device(number: int) -> Figures:
    """Return an EdgeDevice as its fleet makes it."""
    name = f"pi-{number:04d}"
    spec = {"device": name, "serviceRef": {"name": "edge"}, "modelRef": {"name": "digits"}, "memory": "2Mi"}
    metadata = {"name": name, "namespace": "default", "labels": {"fleet": "pis"}}
    return {"apiVersion": "meedge.dev/v1alpha1", "kind": "EdgeDevice", "metadata": metadata, "spec": spec}


def written(kubeconfig: Path) -> Figures:
    """Make the devices, then write statuses for some seconds, from several threads."""
    with ApiClient(kubeconfig) as api, ThreadPoolExecutor(WRITERS) as threads:
        start = time.perf_counter()
        list(threads.map(lambda n: api.create(DEVICES, "default", device(n), manager="bench"), range(DEVICES_COUNT)))
        created_s = time.perf_counter() - start
        latencies_ms: list[float] = []

        def patch_on(first: int) -> None:
            number = first
            while time.perf_counter() < ends:
                begun = time.perf_counter()
                status = {"status": {"residentBytes": int(begun * 1e6), "branches": number % 7}}
                name = f"pi-{number % DEVICES_COUNT:04d}"
                api.patch(DEVICES, "default", name, status, manager="bench", subresource="status")
                latencies_ms.append(1e3 * (time.perf_counter() - begun))
                number += WRITERS

        ends = time.perf_counter() + WRITING_S
        list(threads.map(patch_on, range(WRITERS)))
    ordered = sorted(latencies_ms)
    return {
        "creates_per_s": DEVICES_COUNT / created_s,
        "writes_per_s": len(ordered) / WRITING_S,
        "write_ms": {"p50": median(ordered), "p99": ordered[int(0.99 * len(ordered))]},
    }


def got(kubeconfig: Path) -> list[float]:
    """Return what `kubectl get edgedevices` takes, ms, the whole command, after one that fills its caches."""
    command = [
        "kubectl",
        f"--kubeconfig={kubeconfig}",
        f"--cache-dir={kubeconfig.parent}/kubectl",
        "get",
        "edgedevices",
    ]
    took = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        took.append(1e3 * (time.perf_counter() - start))
        assert len(lines) == DEVICES_COUNT + 1
    return took[1:]


async def watched(kubeconfig: Path) -> Figures:
    """Return when the last of the watchers heard of a change, several times."""
    connection = read_kubeconfig(kubeconfig)
    url = urlsplit(connection.server)
    assert isinstance(connection.tls, ssl.SSLContext)
    with ApiClient(kubeconfig) as api:
        since = api.list(DEVICES, "default")["metadata"]["resourceVersion"]
        path = f"{DEVICES.path('default')}?watch=true&resourceVersion={since}"
        head = f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {connection.token}\r\n\r\n"
        streams = []
        for _ in range(WATCHERS):
            reader, writer = await asyncio.open_connection(url.hostname, url.port, ssl=connection.tls)
            writer.write(head.encode())
            await reader.readuntil(b"\r\n\r\n")
            streams.append((reader, writer))
        took_s = []
        for turn in range(ROUNDS):
            heard = [asyncio.create_task(reader.readuntil(f'"heard-{turn}"'.encode())) for reader, _ in streams]
            start = time.perf_counter()
            change = {"metadata": {"labels": {"turn": f"heard-{turn}"}}}
            await asyncio.to_thread(api.patch, DEVICES, "default", "pi-0000", change, manager="bench")
            await asyncio.gather(*heard)
            took_s.append(time.perf_counter() - start)
        for _, writer in streams:
            writer.close()
    return {"watchers": WATCHERS, "median_s": median(took_s), "slowest_s": max(took_s)}


def idle(process: psutil.Process) -> Figures:
    """Return what the server takes while nobody asks for anything."""
    before = sum(process.cpu_times()[:2])
    time.sleep(IDLE_S)
    share = (sum(process.cpu_times()[:2]) - before) / IDLE_S
    return {"core_share": share, "resident_mib": process.memory_info().rss / 2**20}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with server(home) as process:
            kubeconfig = home / "kubeconfig"
            empty = idle(process)
            figures: Figures = {"empty": empty} | written(kubeconfig)
            took = got(kubeconfig)
            figures |= {"get_ms": {"median": median(took), "slowest": max(took)}}
            figures |= {"watch": asyncio.run(watched(kubeconfig)), "after": idle(process)}
    write_results("api_server", figures | {"devices": DEVICES_COUNT, "writers": WRITERS, "targets": TARGETS})
    rows = [
        ["kubectl get of 1,000 devices", f"{figures['get_ms']['median']:.0f} ms", "300 ms"],
        ["writes a second", f"{figures['writes_per_s']:.0f}", "200"],
        ["a write, median / p99", f"{figures['write_ms']['p50']:.1f} / {figures['write_ms']['p99']:.1f} ms", ""],
        ["1,000 watchers have heard, slowest of ten", f"{figures['watch']['slowest_s']:.2f} s", "1 s"],
        ["resident, empty / after", f"{empty['resident_mib']:.0f} / {figures['after']['resident_mib']:.0f} MiB", ""],
        ["idle, share of a core", f"{figures['after']['core_share']:.2%}", ""],
    ]
    show(table(["what", "measured>", "target>"], rows))


if __name__ == "__main__":
    main()
