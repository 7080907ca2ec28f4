"""A small agent around a real engine, served for real in a thread of the test's own process."""

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worlds import World

from meedge_ray.agent.listening import Server
from meedge_ray.agent.metrics import Histogram
from meedge_ray.agent.places import AgentPlace
from meedge_ray.agent.status import AgentStatus, Counts, ForeseenBudget, MemoryState
from meedge_ray.domain.errors import BudgetError, MeedgeError
from meedge_ray.runtime.memory import rss_bytes
from meedge_ray.runtime.preemption import Preemption


class SmallAgent:
    """Answers with all branches. An inference waits while `hold` is cleared, a change of memory while `service` is."""

    def __init__(self, world: World) -> None:
        self.engine = world.engine(*(branch.name for branch in world.bundle.branches))
        self.latencies = Histogram()
        self.sample_bytes = 8 * 2 * 4 * 4
        self.hold, self.service = threading.Event(), threading.Event()
        self.hold.set()
        self.service.set()
        self.entered = threading.Event()  # an inference waits
        self.failing: Exception | None = None
        self.least_bytes = 1000
        self.tokens, self.foreseen = [], ()
        self.memory_bytes, self.latency_ms = 10_000, None
        self._counts, self._running, self._lock = Counter(), set(), threading.Lock()

    def infer(self, sample, *, deadline_ms=None):
        preemption = Preemption()
        with self._lock:
            self._running.add(preemption)
        try:
            self.entered.set()
            self.hold.wait()
            if self.failing is not None:
                raise self.failing
            answer = self.engine.infer(sample, deadline_ms=deadline_ms, preemption=preemption)
        except MeedgeError:
            self._count("failed")
            raise
        finally:
            with self._lock:
                self._running.remove(preemption)
        self.latencies.observe(answer.elapsed_ms / 1e3)
        self._count("inferences", answer.ending)
        return answer

    def status(self):
        return AgentStatus(
            device="pi-1",
            pid=os.getpid(),
            version="1",
            started_at=time.time(),
            settings_sha256="0" * 64,
            busy=False,
            problem=None,
            running=None,
            mode="anytime",
            latency_ms=self.latency_ms,
            memory=MemoryState(
                source="cgroup v2",
                limit_bytes=None,
                used_bytes=None,
                pressure=None,
                allowed_bytes=self.memory_bytes,
                rss_bytes=rss_bytes(),
            ),
            counts=Counts(**self._counts),
            foreseen=self.foreseen,
        )

    def set_memory(self, memory_bytes, *, in_ms=0.0):
        self.service.wait()
        if memory_bytes < self.least_bytes:
            raise BudgetError("is below the backbone", where="memory_bytes", do="Give more")
        if in_ms:
            self.foreseen = (ForeseenBudget(memory_bytes=memory_bytes, in_s=in_ms / 1e3),)
        else:
            self.memory_bytes = memory_bytes
        return self.status()

    def set_latency(self, latency_ms):
        self.latency_ms = latency_ms
        return self.status()

    def renew_token(self, token):
        self.tokens.append(token)

    def preempt(self):
        with self._lock:
            running = list(self._running)
        for preemption in running:
            preemption.trip()
        return len(running)

    def _count(self, *names):
        with self._lock:
            self._counts.update(names)


@contextmanager
def served(agent: SmallAgent, run_dir: Path, device: str = "pi-1", http_port: int | None = None) -> Iterator[Server]:
    """Serve while the context lasts."""
    place = AgentPlace(device, run_dir)
    with place.claimed():
        server = Server(agent, place, http_port=http_port)
        thread = threading.Thread(target=server.serve_place)
        thread.start()
        try:
            yield server
        finally:
            agent.hold.set()
            agent.service.set()
            server.stop()
            thread.join()


def connected(run_dir: Path, device: str = "pi-1") -> socket.socket:
    """A connection whose other end may be slow, but not silent for ever."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    while True:
        try:
            connection.connect(os.fspath(AgentPlace(device, run_dir).socket))
        except BlockingIOError:  # many wait
            time.sleep(0.01)
        else:
            return connection
