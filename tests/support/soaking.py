"""What happens to an agent in a soak, the clients that ask it all the while, and what is seen of its process."""

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import psutil
from kept_agent import KeptAgent
from links import Link
from numpy.typing import NDArray
from placement_service import ServiceProcess

from meedge_ray.bundle.manifest import bundle_units, read_bundle, unit_store, write_bundle
from meedge_ray.bundle.store import sha256_of
from meedge_ray.domain.elastic import Bundle, Unit
from meedge_ray.domain.errors import MeedgeError
from meedge_ray.runtime.placing import Placer

DEADLINES_MS = (None, 0.5, 2.0, 5.0, 20.0)
FAST_BPS, SLOW_BPS = 85e6, 2e6
SILENT = 100
MALFORMED = (
    b"\x00\x01\x02 what\r\n\r\n",
    b"POST /v1/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nno-sample",
    b"POST /v1/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n",
    b'PUT /v1/memory HTTP/1.1\r\nhost: a\r\ncontent-length: 19\r\n\r\n{"memory_bytes": -1',
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
)


class Clients:
    """Ask for answers all the time, each from a thread of its own; nothing may happen to a request but an answer."""

    def __init__(self, agent: KeptAgent, sample: NDArray[Any], count: int) -> None:
        self._agent, self._sample = agent, sample
        self._lock, self._over = threading.Lock(), threading.Event()
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []
        self.longest_s = 0.0
        self._threads = [threading.Thread(target=self._ask_on, args=(seed,)) for seed in range(count)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._over.is_set():
            start = time.monotonic()
            outcome = self._ask(chance.choice(DEADLINES_MS))
            with self._lock:
                self.counts[outcome] += 1
                self.longest_s = max(self.longest_s, time.monotonic() - start)

    def _ask(self, deadline_ms: float | None) -> str:
        try:
            answer = self._agent.client.infer(self._sample, deadline_ms=deadline_ms)
        except MeedgeError as error:
            return f"refused: {type(error).__name__}: {error.what}"
        except Exception as error:
            self.broken.append(repr(error))
            return "broken"
        return "empty" if answer.label is None else answer.ending


class Soak:
    """All that can happen: `actions` by name. Every one is over, or soon will be, when it returns."""

    def __init__(
        self,
        agent: KeptAgent,
        service: ServiceProcess,
        link: Link,
        bundles: "Bundles",
        *,
        seed: int,
        longest_s: float = 3.0,
    ) -> None:
        self._agent, self._service, self._link, self._bundles = agent, service, link, bundles
        self._chance, self._longest_s = random.Random(seed), longest_s
        self._aside = ThreadPoolExecutor(4)
        self.refusals: Counter[str] = Counter()
        self.broken: list[str] = []
        self.actions: dict[str, Callable[[], None]] = {
            "sudden": self._sudden,
            "foreseen": self._foreseen,
            "too little": self._too_little,
            "link cut": self._link_cut,
            "link slow": self._link_slow,
            "service killed": self._service_killed,
            "preempted": self._preempted,
            "stopped": self._stopped,
            "silent clients": self._silent,
            "malformed": self._malformed,
            "rebuilt": self._rebuilt,
        }

    def close(self) -> None:
        """Wait for what was asked for aside."""
        self._aside.shutdown()

    def step(self) -> str:
        """Let one thing happen, by chance; return what."""
        name = self._chance.choice(sorted(self.actions))
        self.actions[name]()
        return name

    def _told(self, work: Callable[[], object]) -> None:
        def do() -> None:
            try:
                work()
            except MeedgeError as error:
                self.refusals[type(error).__name__] += 1
            except Exception as error:
                self.broken.append(repr(error))

        self._aside.submit(do)

    def _wait(self, share: float = 1.0) -> None:
        time.sleep(self._chance.uniform(0.1, 1) * share * self._longest_s)

    def _budget(self) -> int:
        return round(self._chance.uniform(self._bundles.least_bytes, self._bundles.most_bytes))

    def _sudden(self) -> None:
        memory_bytes = self._budget()
        self._told(lambda: self._agent.client.set_memory(memory_bytes))

    def _foreseen(self) -> None:
        memory_bytes, in_ms = self._budget(), self._chance.uniform(0.1, 1) * 1e3 * self._longest_s
        self._told(lambda: self._agent.client.set_memory(memory_bytes, in_ms=in_ms))

    def _too_little(self) -> None:
        self._told(lambda: self._agent.client.set_memory(self._bundles.least_bytes // 2))

    def _link_cut(self) -> None:
        self._link.cut()
        self._wait()
        self._link.mend()

    def _link_slow(self) -> None:
        self._link.shape(SLOW_BPS)
        self._wait()
        self._link.shape(FAST_BPS)

    def _service_killed(self) -> None:
        self._service.kill()
        self._wait()
        self._service.start()

    def _preempted(self) -> None:
        for _ in range(20):
            self._told(self._agent.client.preempt)
            time.sleep(0.01)

    def _stopped(self) -> None:
        process = psutil.Process(self._agent.pid)
        process.suspend()
        self._wait(1 / 3)
        process.resume()

    def _silent(self) -> None:
        with connections(self._agent, SILENT):
            self._wait()

    def _malformed(self) -> None:
        for body in MALFORMED:
            # Some are answered before all was sent.
            with connections(self._agent, 1) as [connection], suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(body)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(2**16)

    def _rebuilt(self) -> None:
        self._bundles.swap()
        self._service.renew()


class Bundles:
    """A served model that is rebuilt again and again, in its folder: other bytes, which do the same."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder, self.rebuilt = folder, 0
        self._versions = [_version(source, number) for number in range(2)]
        self.least_bytes = max(bundle.backbone_bytes for bundle, _ in self._versions)
        self.most_bytes = Placer(self._versions[0][0]).points()[-1].size_bytes
        self._write()

    def swap(self) -> None:
        """Put the other version in place of the one there is; the service still has to be told."""
        self.rebuilt += 1
        self._write()

    def _write(self) -> None:
        bundle, units = self._versions[self.rebuilt % 2]
        store = unit_store(self.folder)
        for data in units:
            store.put(data)
        write_bundle(self.folder, bundle)


def _version(source: Path, number: int) -> tuple[Bundle, list[bytes]]:
    bundle, store = read_bundle(source), unit_store(source)
    bundle = replace(bundle, variants=(), baselines={}, confidences=None, predictor=None)
    units = {unit.sha256: _marked(store.read(unit.sha256), number) for unit in bundle_units(bundle)}

    def other(unit: Unit) -> Unit:
        data = units[unit.sha256]
        return Unit(sha256=sha256_of(data), size_bytes=len(data))

    blocks = (replace(block, unit=other(block.unit)) for block in bundle.blocks)
    branches = (replace(branch, units=tuple(map(other, branch.units))) for branch in bundle.branches)
    return replace(bundle, blocks=tuple(blocks), branches=tuple(branches)), list(units.values())


def _marked(data: bytes, number: int) -> bytes:
    model = onnx.load_from_string(data)
    model.doc_string = f"build {number}"
    return bytes(model.SerializeToString())


@contextmanager
def connections(agent: KeptAgent, count: int) -> Iterator[list[socket.socket]]:
    """Have connections to the agent that say nothing by themselves."""
    made = [socket.socket(socket.AF_UNIX) for _ in range(count)]
    try:
        for each in made:
            each.settimeout(30)
            each.connect(str(agent.place.socket))
        yield made
    finally:
        for each in made:
            each.close()


def seen(process: psutil.Process) -> dict[str, float]:
    """Return what the system says of a process now."""
    with process.oneshot():
        return {
            "rss_bytes": process.memory_info().rss,
            "files": process.num_fds(),
            "threads": process.num_threads(),
        }
