"""A client that asks several processes in turn, on and on, with another image and another moment of the kill."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

from meedge_ray.agent.client import AgentClient
from meedge_ray.domain.errors import UnavailableError

ROUND_S = 0.02  # in which each is asked once


@dataclass(frozen=True)
class Images:
    """Raw test images [N, 3, 32, 32] and their labels [N]."""

    x: Any
    y: Any


@dataclass(frozen=True)
class Asked:
    """One request: when, whether anybody answered, whether that was right, and whether it was empty without cause."""

    at_s: float
    answered: bool
    right: bool = False
    empty: bool = False
    for_nothing: bool = False  # empty, though its deadline had not come
    took_ms: float = 0.0


class Asking(Thread):
    """Asks until `end`; kills come uniformly over the horizon, and `unhurried` of the requests have none.

    All get the same images and kills in the same minutes, one at a time.
    """

    def __init__(
        self,
        clients: Mapping[str, AgentClient],
        images: Images,
        horizon_ms: float,
        start_s: float,
        *,
        unhurried: float = 0.0,
    ) -> None:
        super().__init__(daemon=True)
        self._clients, self._images, self._horizon_ms, self._start_s = clients, images, horizon_ms, start_s
        self._unhurried, self._random, self._over = unhurried, random.Random(0), Event()
        self._asked: dict[str, list[Asked]] = {name: [] for name in clients}

    def run(self) -> None:
        """Ask on and on."""
        draw, next_s = self._random, time.perf_counter()
        while not self._over.is_set():
            which = draw.randrange(len(self._images.y))
            deadline_ms = None if draw.random() < self._unhurried else draw.uniform(0, self._horizon_ms)
            for name, client in self._clients.items():
                self._asked[name].append(self._ask(client, which, deadline_ms))
            next_s = max(next_s + ROUND_S, time.perf_counter())
            time.sleep(max(0.0, next_s - time.perf_counter()))

    def _ask(self, client: AgentClient, which: int, deadline_ms: float | None) -> Asked:
        start = time.perf_counter()
        try:
            answer = client.infer(self._images.x[which], deadline_ms=deadline_ms)
        except UnavailableError:
            return Asked(start - self._start_s, answered=False)
        took_ms = (time.perf_counter() - start) * 1e3
        in_time = deadline_ms is None or took_ms < deadline_ms or answer.ending != "deadline"
        return Asked(
            start - self._start_s,
            answered=True,
            right=answer.label == int(self._images.y[which]),
            empty=answer.label is None,
            for_nothing=answer.label is None and in_time,
            took_ms=took_ms,
        )

    def end(self) -> dict[str, list[Asked]]:
        """Stop; return all that each was asked."""
        self._over.set()
        self.join()
        return self._asked
