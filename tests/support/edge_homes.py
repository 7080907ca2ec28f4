"""A served model and a device's settings, for tests of whole processes."""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kept_agent import KeptAgent
from placement_service import TOKEN, ServiceProcess, Wrap, free_port
from worlds import SHAPE, World, make_world

from meedge_ray.api.agent import AgentSettings
from meedge_ray.bundle.manifest import unit_store, write_bundle
from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import bytes_of
from meedge_ray.runtime.placing import Placer

SAMPLE = np.random.default_rng(3).integers(0, 256, SHAPE, dtype=np.uint8)


@dataclass(frozen=True)
class Home:
    """A folder with a bundle, its service, and what a device there keeps. `best_bytes` are of the best placement."""

    folder: Path
    world: World
    service: ServiceProcess

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def best(self) -> tuple[str, ...]:
        return Placer(self.world.bundle).points()[-1].branches

    @property
    def branch_bytes(self) -> int:
        return bytes_of(self.world.branch(name) for name in self.best)

    @property
    def best_bytes(self) -> int:
        return self.world.bundle.backbone_bytes + self.branch_bytes

    def settings(self, **changes: Any) -> AgentSettings:
        said = {"device": "pi-1", "service_url": self.service.url, "token": TOKEN, "model": self.world.bundle.model}
        return AgentSettings.model_validate({**said, "cache_dir": str(self.cache), "memory_bytes": 10**8, **changes})

    def is_right(self, answer: Any) -> bool:
        """Whether an answer is what its exit says."""
        return bool(answer.label == self.world.logits(SAMPLE[None])[answer.branch].argmax())

    def kept_files(self) -> list[Path]:
        """The files of the best placement's branches on the device."""
        store = UnitStore(self.cache)
        return [store.path(unit.sha256) for name in self.best for unit in self.world.branch(name).units]


class Asking:
    """A client that asks all the time, from a thread; whatever else than a right answer comes is kept in `failed`."""

    def __init__(self, home: Home, agent: KeptAgent) -> None:
        self._home, self._agent = home, agent
        self._over = threading.Event()
        self.answered = 0
        self.failed: list[str] = []
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                assert self._home.is_right(self._agent.client.infer(SAMPLE))
                self.answered += 1
            except Exception as error:
                self.failed.append(repr(error))

    def a_few_more(self, count: int = 20) -> None:
        """Wait until so many more were answered."""
        wanted = self.answered + count
        give_up = time.monotonic() + 30
        while self.answered < wanted:
            assert time.monotonic() < give_up
            time.sleep(0.01)


@contextmanager
def served_home(
    monkeypatch: Any, *, address: tuple[str, int] | None = None, wrap: Wrap = list, ballast: int = 100
) -> Iterator[Home]:
    """Have one while the context lasts; more ballast makes larger branches."""
    world = make_world(ballast=ballast)
    with tempfile.TemporaryDirectory(prefix="meedge-") as name:  # pytest's own are too long for a socket
        folder = Path(name)
        monkeypatch.setenv("MEEDGE_RUN_DIR", str(folder / "run"))
        store = unit_store(folder / "bundle")
        for data in world.units.values():
            store.put(data)
        write_bundle(folder / "bundle", world.bundle)
        service = ServiceProcess(folder / "bundle", address or ("127.0.0.1", free_port()), wrap)
        try:
            yield Home(folder, world, service)
        finally:
            service.kill()
