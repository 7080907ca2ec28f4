"""An agent behind a slow link: what its placements move and take, and what its inferences feel of it."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kept_agent import KeptAgent, is_placed, kept
from links import SERVICE, End, Link
from numpy.typing import NDArray
from placement_service import TOKEN, ServiceProcess

from meedge_ray.api.agent import AgentSettings
from meedge_ray.bundle.manifest import bundle_units, unit_store
from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import MeedgeError
from meedge_ray.runtime.placing import Placer

PORT, WHOLE_PORT = 8000, 8001
LOOK_S, WINDOW_S = 0.02, 1.0

Figures = dict[str, Any]


class Device:
    """One device's agent at the far end of a link, its cache in a folder."""

    def __init__(self, agent: KeptAgent, link: Link, bundle: Bundle, cache: Path) -> None:
        self.agent, self.bundle, self._link = agent, bundle, link
        self._store = UnitStore(cache)
        self.branches: tuple[str, ...] = ()  # placed last

    def forget(self) -> None:
        """Leave nothing but the backbone, in memory and on the disk."""
        self.agent.client.set_memory(self.bundle.backbone_bytes)
        kept = {block.unit.sha256 for block in self.bundle.blocks}
        for unit in bundle_units(self.bundle):
            if unit.sha256 not in kept:
                self._store.path(unit.sha256).unlink(missing_ok=True)

    def placed(self, memory_bytes: int) -> Figures:
        """Change the memory; return what moved until the new placement was complete, and what that is."""
        before, start = self._link.device.moved(), time.perf_counter()
        status = self.agent.client.set_memory(memory_bytes)
        if not is_placed(status):  # a request was lost; the agent asks again
            status = self.agent.until(is_placed)
        assert status.running is not None
        seconds = time.perf_counter() - start
        moved = self._link.device.moved().since(before)
        self.branches = status.running.branches
        return {
            "memory_bytes": memory_bytes,
            "resident_bytes": status.running.resident_bytes,
            "expectation": status.running.expectation,
            "moved_bytes": moved.received_bytes + moved.sent_bytes,
            "seconds": seconds,
        }


@contextmanager
def served(folder: Path, link: Link) -> Iterator[str]:
    """Serve a bundle at the near end of a link."""
    service = ServiceProcess(folder, (SERVICE, PORT), link.service.command)
    try:
        yield service.url
    finally:
        service.kill()


@contextmanager
def device(url: str, link: Link, bundle: Bundle, cache: Path, **settings: Any) -> Iterator[Device]:  # noqa: ANN401
    """Have a device with an empty cache, its backbone loaded."""
    said = {"device": "pi-1", "service_url": url, "token": TOKEN, "model": bundle.model, "cache_dir": str(cache)}
    given = AgentSettings.model_validate({**said, "memory_bytes": bundle.backbone_bytes, **settings})
    with kept(given, link.device.entered()) as agent:
        agent.until(is_placed, timeout_s=120)
        yield Device(agent, link, bundle, cache)


class Whole:
    """Sends the whole model, one file, for every placement; at the far end a process of its own takes it."""

    def __init__(self, folder: Path, link: Link, files: Path, bundle: Bundle) -> None:
        self.first_bytes = 0
        self._store, self._files, self._link, self._bundle = unit_store(folder), files, link, bundle
        self._sizes = {unit.sha256: unit for unit in bundle_units(bundle)}
        server = ["-m", "http.server", str(WHOLE_PORT), "--bind", SERVICE, "--directory", str(files)]
        self._server = _process(link.service, server)
        self._taker = _process(link.device, [str(Path(__file__).with_name("_edge_link_whole.py"))])

    def __enter__(self) -> "Whole":
        self.first_bytes = int(self.placed([])["moved_bytes"])  # to see that the server has started
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._taker, self._server):
            process.kill()
            process.communicate()

    def placed(self, branches: Sequence[str]) -> Figures:
        """Send the backbone and these branches; return what that moved, and took."""
        chosen = [branch for branch in self._bundle.branches if branch.name in branches]
        units = [block.unit for block in self._bundle.blocks]
        units += [unit for branch in chosen for unit in branch.units if unit not in units]
        data = b"".join(self._store.read(unit.sha256) for unit in dict.fromkeys(units))
        (self._files / "model").write_bytes(data)
        before = self._link.device.moved()
        seconds = self._taken()
        moved = self._link.device.moved().since(before)
        return {"moved_bytes": moved.received_bytes + moved.sent_bytes, "seconds": seconds}

    def _taken(self) -> float:
        assert self._taker.stdin is not None
        assert self._taker.stdout is not None
        self._taker.stdin.write(f"http://{SERVICE}:{WHOLE_PORT}/model\n")
        self._taker.stdin.flush()
        return float(self._taker.stdout.readline())


def _process(end: End, arguments: list[str]) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    command = end.command([sys.executable, *arguments])
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    time.sleep(1.0)  # the server says nothing
    return process


def sequence(placer: Placer, count: int, seed: int) -> list[int]:
    """Return memories that change at random, from the backbone alone to the best placement."""
    chance, points = random.Random(seed), placer.points()
    least, most = points[0].size_bytes, points[-1].size_bytes
    return [round(chance.uniform(least, most)) for _ in range(count)]


def felt(device: Device, sample: NDArray[Any], rounds: int, alone_s: float) -> dict[str, list[tuple[float, float]]]:
    """Return the latencies of inferences of the bare backbone alone, and while branches come in, taken by turns.

    Each is what the engine took and what its caller waited, in ms.
    """
    latencies: dict[str, list[tuple[float, float]]] = {"alone": [], "during": []}
    most = Placer(device.bundle).points()[-1].size_bytes
    for _ in range(rounds):
        device.forget()
        until = time.perf_counter() + alone_s
        while time.perf_counter() < until:
            latencies["alone"].append(_latency(device, sample)[1])
        with ExitStack() as both:
            changing = threading.Thread(target=device.agent.client.set_memory, args=(most,))
            changing.start()
            both.callback(changing.join)
            while changing.is_alive():
                resident, latency = _latency(device, sample)
                if not resident and changing.is_alive():
                    latencies["during"].append(latency)
    return latencies


def _latency(device: Device, sample: NDArray[Any]) -> tuple[int, tuple[float, float]]:
    start = time.perf_counter()
    answer = device.agent.client.infer(sample)
    return answer.resident, (answer.elapsed_ms, (time.perf_counter() - start) * 1e3)


def revived(device: Device, sample: NDArray[Any], times: int) -> list[float]:
    """Kill the agent so often; return the seconds until it answered, from its cache."""
    seconds = []
    for _ in range(times):
        start, pid = time.perf_counter(), device.agent.kill()
        while True:
            try:
                device.agent.client.infer(sample)
                break
            except MeedgeError:
                time.sleep(LOOK_S)
        seconds.append(time.perf_counter() - start)
        assert device.agent.pid != pid
    return seconds


def rates(device: Device, link: Link) -> tuple[float, float]:
    """Return the mean rate on the wire while a placement comes, and the highest within a second, in bits/s."""
    device.forget()
    counts: list[tuple[float, int]] = []
    most = Placer(device.bundle).points()[-1].size_bytes
    changing = threading.Thread(target=device.agent.client.set_memory, args=(most,))
    changing.start()
    while changing.is_alive():
        counts.append((time.perf_counter(), link.device.moved().received_bytes))
        time.sleep(LOOK_S)
    (begin, first), (end, last) = counts[0], counts[-1]
    peaks = [
        8 * (after - before) / (until - since)
        for since, before in counts
        for until, after in counts
        if WINDOW_S <= until - since < WINDOW_S + 3 * LOOK_S
    ]
    return 8 * (last - first) / (end - begin), max(peaks, default=0.0)
