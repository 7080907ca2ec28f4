"""Processes under the same limits: who needs how much, and what becomes of each when memory is taken away."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _edge_asking import ROUND_S, Asking, Images
from _edge_fixed import SINGLE_EXIT
from _edge_group import AMPLE_BYTES, Enforced, MemoryGroup, Resident, Watch, held_bytes, memory_group

from meedge_ray.agent.client import AgentClient
from meedge_ray.api.agent import AgentSettings, MemoryPolicy
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import BudgetError, UnavailableError

OURS, OURS_BARE = "meedge", "meedge, backbone alone"
CONTESTANTS = (SINGLE_EXIT, "multi_exit_fc", "spinn", OURS)
ANNOUNCED_S = 1.0  # before a foreseen change
ANSWER_S = 5.0  # longest wait for one
EARLY_S = 0.1  # that the budget is told to begin before the limit does
# Quick to take memory again, so that there is something to give back at the next change.
GREEDY = MemoryPolicy(hysteresis=0.002, grow_after_s=0.3)
THIN = GREEDY.model_copy(update={"headroom_bytes": 3 * 2**20})
EVERYTHING_BYTES = 10**9
SETTLING_S = 2.0
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",  # one heap for all threads: in each process 2 MiB less, and no slower
    "PYTHONDONTWRITEBYTECODE": "",  # who compiles what it imports holds some MiB more
}

_LEAST_STEP_BYTES = 2**17
_TRIES, _TRY_S = 10, 0.02
_HERE = Path(__file__).parent

Figures = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """What the limit is from now on: `level` is its place between the lowest, 0, and the highest, 1."""

    level: float
    foreseen: bool


START = 1.0
CHANGES = (
    Change(0.5, foreseen=True),
    Change(0.0, foreseen=False),
    Change(0.6, foreseen=True),
    Change(0.02, foreseen=False),
    Change(1.0, foreseen=True),
    Change(0.0, foreseen=True),
    Change(0.8, foreseen=True),
)


@dataclass(frozen=True)
class Scene:
    """What all have in common."""

    folder: Path
    bundle: Bundle
    url: str
    token: str
    run_dir: Path
    images: Images
    horizon_ms: float
    policy: MemoryPolicy

    @contextmanager
    def running(self, name: str) -> Iterator[Resident]:
        """Run one of the contestants, in a group without a limit so far."""
        with memory_group(AMPLE_BYTES) as group:
            device = OURS if name == OURS_BARE else name.replace("_", "-")
            with AgentClient(device, run_dir=self.run_dir, timeout_s=ANSWER_S) as client:
                environment = {**ENVIRONMENT, "MEEDGE_RUN_DIR": str(self.run_dir)}
                resident = Resident(group, self._command(name, device), client, environment)
                try:
                    yield resident
                finally:
                    resident.kill()

    def _command(self, name: str, device: str) -> list[str]:
        if device != OURS:
            return [sys.executable, str(_HERE / "_edge_fixed.py"), str(self.folder), name, str(self.run_dir)]
        settings = AgentSettings(
            device=device,
            service_url=self.url,
            token=self.token,
            model=self.bundle.model,
            cache_dir=str(self.run_dir / "cache"),
            memory_bytes=self.bundle.backbone_bytes if name == OURS_BARE else EVERYTHING_BYTES,
            memory_policy=self.policy,
            horizon_ms=self.horizon_ms,
        )
        file = self.run_dir / "settings.json"
        file.write_text(settings.model_dump_json())
        return [sys.executable, "-m", "meedge_ray.agent", str(file)]


def single_exit_ms(scene: Scene, inferences: int = 300) -> float:
    """Return the median time of the single exit in its process, asked as often as all will be."""
    times = []
    with scene.running(SINGLE_EXIT) as resident:
        for _ in range(inferences):
            times.append(resident.client.infer(scene.images.x[0]).elapsed_ms)
            time.sleep(ROUND_S)
    return float(np.median(times))


def need_bytes(scene: Scene, name: str) -> int:
    """Return the lowest limit under which a process still answers, found by going down to where it does not.

    Of ours, which gives up branches on the way, what it holds where it has all that it wants.
    """
    with scene.running(name) as resident:
        time.sleep(SETTLING_S)  # ours takes its placement
        for _ in range(100):
            resident.client.infer(scene.images.x[0])
        if name == OURS:
            return held_bytes(resident.group)
        limit_bytes = held_bytes(resident.group) + 2**20
        least = limit_bytes
        while _is_taken(resident, limit_bytes):
            try:
                for _ in range(20):
                    resident.client.infer(scene.images.x[0])
            except UnavailableError:
                break
            least, limit_bytes = limit_bytes, limit_bytes - _LEAST_STEP_BYTES
    return least


def _is_taken(resident: Resident, limit_bytes: int) -> bool:
    """Return whether the kernel takes a limit at one of several tries: it does not find at once all it can give up."""
    for _ in range(_TRIES):
        if resident.group.set_limit(limit_bytes):
            return True
        time.sleep(_TRY_S)
    return False


def limited(
    scene: Scene, names: Sequence[str], levels: Sequence[int], foreseen: Sequence[bool], phase_s: float
) -> dict[str, Figures]:
    """Run contestants while the limit of each is the first level, then the others, by changes foreseen or sudden."""
    with ExitStack() as running:
        all_ = {name: running.enter_context(scene.running(name)) for name in names}
        stories, start_s = running.enter_context(_asked(scene, all_))
        pool = running.enter_context(ThreadPoolExecutor(len(all_)))
        for index, level in enumerate(levels):
            at_s, before = index * phase_s, levels[max(0, index - 1)]
            told = index > 0 and foreseen[index - 1]
            if told and level < before:
                _sleep_until(start_s + at_s - ANNOUNCED_S)
                for resident in all_.values():
                    tell(scene, resident, level, (ANNOUNCED_S - EARLY_S) * 1e3)
            _sleep_until(start_s + at_s)
            came_s = time.perf_counter() - start_s
            change_ = partial(change, level=level, rises=level > before)
            for name, result in zip(all_, pool.map(change_, all_.values()), strict=True):
                said = {"at_s": came_s, "limit_bytes": level, "foreseen": told, **asdict(result)}
                stories[name]["changes"].append(said)
        _sleep_until(start_s + len(levels) * phase_s)
        for name, resident in all_.items():
            stories[name]["kills"] = resident.kills
    return stories


def beside_balloon(scene: Scene, name: str, levels: Sequence[int], phase_s: float, rate_bps: float) -> Figures:
    """Run a contestant beside a neighbour that leaves it these levels; who is killed, the kernel chooses."""
    with scene.running(name) as resident, _balloon(resident.group) as (grow, balloon_bytes):
        limit_bytes = levels[0] + balloon_bytes
        resident.enforce(limit_bytes)
        with _asked(scene, {name: resident}) as (stories, start_s):
            story = stories[name]
            for index, level in enumerate(levels):
                _sleep_until(start_s + index * phase_s)
                kills = resident.group.oom_kills()
                grow(levels[0] - level, rate_bps)
                if not resident.alive and level > levels[index - 1]:
                    resident.start()
                    resident.enforce(limit_bytes)
                _sleep_until(start_s + (index + 0.95) * phase_s)
                killed = resident.group.oom_kills() - kills
                story["changes"].append({"at_s": index * phase_s, "left_bytes": level, "oom_kills": killed})
            story["kills"] = resident.kills
    return story


def change(resident: Resident, *, level: int, rises: bool) -> Enforced:
    """Change the limit; when it rises start again who was killed, and tell ours that it may have more."""
    if rises and not resident.alive:
        resident.start_again()
    result = resident.enforce(level)
    if rises and resident.alive:
        # Not even the head-room is free yet: it goes on, and takes more when it is. Or it ends meanwhile.
        with suppress(BudgetError, UnavailableError):
            resident.client.set_memory(EVERYTHING_BYTES)
    return result


def tell(scene: Scene, resident: Resident, limit_bytes: int, in_ms: float) -> None:
    """Tell ours of a limit that is to come, as the budget of units that fits it."""
    if not resident.alive:
        return
    with suppress(UnavailableError):  # it may be killed in just this moment
        _tell(scene, resident, limit_bytes, in_ms)


def _tell(scene: Scene, resident: Resident, limit_bytes: int, in_ms: float) -> None:
    status = resident.client.status()
    if status.running is None:  # not ours: it would not listen
        return
    spare = limit_bytes - held_bytes(resident.group) - scene.policy.headroom_bytes
    budget_bytes = status.running.resident_bytes + min(0, spare)
    resident.client.set_memory(max(1, budget_bytes), in_ms=in_ms)


@contextmanager
def _asked(scene: Scene, residents: Mapping[str, Resident]) -> Iterator[tuple[dict[str, Figures], float]]:
    """Ask and watch processes while the context lasts; at the end the stories hold what came of them."""
    stories: dict[str, Figures] = {name: {"changes": []} for name in residents}
    for resident in residents.values():
        for _ in range(50):
            resident.client.infer(scene.images.x[0])
    start_s = time.perf_counter()
    clients = {name: resident.client for name, resident in residents.items()}
    asking = Asking(clients, scene.images, scene.horizon_ms, start_s)
    watches = {name: Watch(resident, start_s) for name, resident in residents.items()}
    for thread in (asking, *watches.values()):
        thread.start()
    try:
        yield stories, start_s
    finally:
        asked = asking.end()
        for name, watch in watches.items():
            stories[name] |= {"asked": asked[name], "watched": watch.end()}


@contextmanager
def _balloon(group: MemoryGroup) -> Iterator[tuple[Any, int]]:
    """Run the neighbour; give what makes it as large as is asked, and what it holds when it holds nothing."""
    before = held_bytes(group)
    command = group.command([sys.executable, "-S", str(_HERE / "_edge_balloon.py")])
    neighbour = _Neighbour(command)
    try:
        neighbour.grow(4096, 1e9)
        yield neighbour.grow, held_bytes(group) - before
    finally:
        neighbour.end()


class _Neighbour:
    """The process that takes memory. The kernel, killing, now and then takes it besides: then there is another."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._start()

    def grow(self, size_bytes: float, rate_bps: float) -> None:
        """Return when it holds so much."""
        if self._process.poll() is not None:
            self._start()
        with suppress(BrokenPipeError):
            print(size_bytes, rate_bps, file=self._process.stdin, flush=True)
            self._said()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._said()

    def _said(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.readline()


def switches(folder: Path) -> Figures:
    """Return what `_edge_switching.py` measures, in a process of its own."""
    command = [sys.executable, str(_HERE / "_edge_switching.py"), str(folder)]
    figures: Figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return figures


def _sleep_until(moment_s: float) -> None:
    time.sleep(max(0.0, moment_s - time.perf_counter()))
