"""An agent's figures for Prometheus, in its text format 0.0.4."""

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Literal, NamedTuple

from meedge_ray.agent.status import AgentStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From a tiny network's first exit to a deep one on a busy board.
_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """How long things took, counted by bounds in seconds. Thread-safe."""

    def __init__(self, bounds_s: tuple[float, ...] = _BOUNDS_S) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0
        self._lock = Lock()

    def observe(self, seconds: float) -> None:
        """Count one."""
        place = bisect_left(self._bounds_s, seconds)
        with self._lock:
            self._counts[place] += 1
            self._sum_s += seconds

    def read(self) -> tuple[list[tuple[str, int]], float]:
        """Return how many took at most each bound, the last one being "+Inf", and the sum of all in seconds."""
        with self._lock:
            counts, sum_s = self._counts.copy(), self._sum_s
        read, total = [], 0
        for bound, count in zip([*map(repr, self._bounds_s), "+Inf"], counts, strict=True):
            total += count
            read.append((bound, total))
        return read, sum_s


class _Metric(NamedTuple):
    name: str
    kind: Literal["counter", "gauge"]
    help: str
    value: float | Mapping[str, float] | None  # None: not known; of several by ending


def prometheus(status: AgentStatus, latencies: Histogram) -> str:
    """Return a page for Prometheus; what is not known now is not on it."""
    lines: list[str] = []
    for metric in (*_inferences(status), *_memory(status), *_running(status), *_process(status)):
        lines += _written(metric)
    return "\n".join([*lines, *_histogram(latencies)]) + "\n"


def _inferences(status: AgentStatus) -> Iterable[_Metric]:
    counts = status.counts
    endings = {
        "completed": counts.completed,
        "deadline": counts.deadline,
        "preempted": counts.preempted,
        "failed": counts.failed,
    }
    yield _Metric("meedge_inferences_total", "counter", "Inferences by how they ended.", endings)
    yield _Metric(
        "meedge_inferences_empty_total", "counter", "Inferences that ended before any result was at hand.", counts.empty
    )
    yield _Metric(
        "meedge_deadline_seconds",
        "gauge",
        "Deadline of an inference that names none.",
        None if status.latency_ms is None else status.latency_ms / 1e3,
    )


def _memory(status: AgentStatus) -> Iterable[_Metric]:
    memory = status.memory
    yield _Metric("meedge_memory_limit_bytes", "gauge", "Memory the device may use.", memory.limit_bytes)
    yield _Metric("meedge_memory_used_bytes", "gauge", "What counts against the limit.", memory.used_bytes)
    yield _Metric(
        "meedge_memory_pressure_ratio", "gauge", "Share of time that tasks stalled for memory.", memory.pressure
    )
    yield _Metric("meedge_memory_allowed_bytes", "gauge", "What units may take now.", memory.allowed_bytes)
    yield _Metric("meedge_memory_rss_bytes", "gauge", "Resident memory of the agent.", memory.rss_bytes)
    yield _Metric("meedge_memory_drops_total", "counter", "Sudden drops of the memory there is.", status.counts.drops)


def _running(status: AgentStatus) -> Iterable[_Metric]:
    running = status.running
    yield _Metric("meedge_ready", "gauge", "Whether a model is loaded.", int(running is not None))
    yield _Metric("meedge_problem", "gauge", "Whether something is the matter.", int(status.problem is not None))
    if running is None:
        return
    yield _Metric("meedge_memory_budget_bytes", "gauge", "Budget of the units, as declared.", running.memory_bytes)
    yield _Metric("meedge_resident_bytes", "gauge", "Bytes of the units loaded.", running.resident_bytes)
    yield _Metric("meedge_branches", "gauge", "Branches resident.", len(running.branches))
    yield _Metric("meedge_expectation", "gauge", "Mean accuracy expectation of the placement.", running.expectation)


def _process(status: AgentStatus) -> Iterable[_Metric]:
    uptime_s = max(0.0, time.time() - status.started_at)  # the clock may have been set
    yield _Metric("meedge_fetched_bytes_total", "counter", "Bytes downloaded.", status.counts.fetched_bytes)
    yield _Metric("meedge_uptime_seconds", "gauge", "Time since the agent began.", uptime_s)


def _written(metric: _Metric) -> list[str]:
    if metric.value is None:
        return []
    lines = [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
    if isinstance(metric.value, Mapping):
        return lines + [f'{metric.name}{{ending="{ending}"}} {value}' for ending, value in metric.value.items()]
    return [*lines, f"{metric.name} {metric.value}"]


def _histogram(latencies: Histogram) -> list[str]:
    name = "meedge_inference_seconds"
    read, sum_s = latencies.read()
    return [
        f"# HELP {name} Time of an inference in the agent.",
        f"# TYPE {name} histogram",
        *(f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in read),
        f"{name}_sum {sum_s}",
        f"{name}_count {read[-1][1]}",
    ]
