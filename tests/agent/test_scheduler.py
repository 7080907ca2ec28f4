"""The scheduler's four parts together, on a real device and its service; the memory there is is scripted."""

import threading
import time

import numpy as np
import pytest
from worlds import SHAPE

from meedge_ray.agent import scheduler as scheduler_module
from meedge_ray.agent.scheduler import Scheduler
from meedge_ray.api.agent import MemoryPolicy
from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.errors import BudgetError
from meedge_ray.runtime import client as client_module
from meedge_ray.runtime import model_loader
from meedge_ray.runtime.cache import Cache
from meedge_ray.runtime.client import ServiceClient
from meedge_ray.runtime.device import Device
from meedge_ray.runtime.latency_budget import LatencyBudget
from meedge_ray.runtime.memory_budget import MemoryBudget
from meedge_ray.runtime.memory_sources import MemoryReading
from meedge_ray.runtime.placing import Placer

MODEST = MemoryPolicy(headroom_bytes=0, hysteresis=0.0, grow_after_s=0.0)
EVERYTHING = 10**9


class Script:
    """Memory as the test says: the units are all that is used of it."""

    def __init__(self):
        self.limit_bytes = 10 * EVERYTHING
        self.used_bytes = lambda: 0

    def read(self):
        return MemoryReading("script", self.limit_bytes, self.used_bytes())

    def pressure(self):
        return None


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class HoldingPlanner:
    """Runs everything; an inference waits after its first result, once, until it is let go."""

    name = "holding"

    def __init__(self):
        self.entered, self.hold = threading.Event(), threading.Event()
        self.wanted = (True,) * 7

    def begin(self, deadline_ms=None):
        return self

    def after(self, result, logits, elapsed_ms):
        self.entered.set()
        self.hold.wait()


class SlowSample:
    """Becomes numbers only when it is let go: an inference that has begun and has no result."""

    def __init__(self, numbers):
        self.numbers = numbers
        self.asked, self.hold = threading.Event(), threading.Event()

    def __array__(self, dtype=None, copy=None):
        self.asked.set()
        self.hold.wait()
        return self.numbers


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(client_module, "BACK_OFF_S", (0.0,))


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def device(service, tmp_path):
    with ServiceClient(service.url, service.token, timeout_s=60) as client:
        yield Device(Cache(client, UnitStore(tmp_path / "cache")), "tiny")


@pytest.fixture
def scheduler(device, script, clock):
    """Not started: it looks and asks when the test says so."""
    script.used_bytes = lambda: device.resident_bytes
    memory = MemoryBudget(EVERYTHING, MODEST, script, clock=clock)
    scheduler = Scheduler(device, memory, LatencyBudget(None))
    scheduler.look()
    yield scheduler
    scheduler.close()


def until(condition):
    while not condition():
        time.sleep(0.001)


def best(world, memory_bytes):
    return Placer(world.bundle).place(memory_bytes).branches


def test_a_sudden_drop_ends_the_running_inference_with_its_best_and_the_next_one_fits(
    scheduler, device, script, world, sample, background, monkeypatch
):
    planner = HoldingPlanner()
    monkeypatch.setattr(model_loader, "planner_for", lambda *_, **__: planner)
    scheduler.set_memory(EVERYTHING)
    assert device.status().branches
    running = background(scheduler.infer, sample)
    planner.entered.wait()
    script.limit_bytes = world.bundle.backbone_bytes  # not a byte for branches
    looking = background(scheduler.look)
    until(lambda: not device.can_unload)  # unloaded before the inference has returned
    planner.hold.set()
    answer = running.result()
    looking.result()
    assert (answer.ending, len(answer.outputs)) == ("preempted", 1)
    assert answer.label == answer.outputs[0].label
    assert device.resident_bytes == world.bundle.backbone_bytes
    assert scheduler.drops == 1
    assert scheduler.infer(sample).ending == "completed"


def test_freed_memory_is_given_back_before_it_counts_against_the_units(
    scheduler, device, script, world, clock, monkeypatch
):
    freed_bytes = [60_000]
    monkeypatch.setattr(scheduler_module, "release_to_os", lambda: freed_bytes.__setitem__(0, 0))
    monkeypatch.setattr(scheduler_module, "_TRIM_S", 1e9)
    scheduler.look()
    script.used_bytes = lambda: device.resident_bytes + freed_bytes[0]
    script.limit_bytes = world.bundle.backbone_bytes + 60_000
    scheduler.set_memory(EVERYTHING)
    assert device.resident_bytes == world.bundle.backbone_bytes
    assert freed_bytes == [60_000]
    monkeypatch.setattr(scheduler_module, "_TRIM_S", 0.0)
    clock.now += 1
    scheduler.look()
    scheduler.set_memory(EVERYTHING)
    assert device.resident_bytes > world.bundle.backbone_bytes


def test_an_inference_that_memory_cuts_before_any_result_is_begun_again_and_answers(
    scheduler, device, script, world, sample, background
):
    scheduler.set_memory(EVERYTHING)
    slow = SlowSample(sample)
    running = background(scheduler.infer, slow)
    slow.asked.wait()
    script.limit_bytes = world.bundle.backbone_bytes
    looking = background(scheduler.look)
    until(lambda: not device.can_unload)
    slow.hold.set()
    answer = running.result()
    looking.result()
    assert (answer.ending, answer.resident) == ("completed", 0)
    assert answer.label == world.logits(sample[None])[None][0].argmax()


def test_one_that_its_caller_ends_is_not_begun_again(scheduler, sample, background):
    scheduler.set_memory(EVERYTHING)
    slow = SlowSample(sample)
    running = background(scheduler.infer, slow)
    slow.asked.wait()
    scheduler.latency.end(for_memory=False)
    slow.hold.set()
    assert (running.result().ending, running.result().label) == ("preempted", None)
    assert scheduler.infer(sample, deadline_ms=0.0).ending == "deadline"


def test_a_foreseen_drop_ends_an_inference_at_its_time_but_not_without_an_answer(scheduler, sample):
    scheduler.set_memory(EVERYTHING)
    scheduler.memory.foresee(1, 1.0)  # long ago by the clock that inferences look at
    assert scheduler.memory.next_drop_s(time.monotonic()) == 0.0
    answer = scheduler.infer(sample)
    assert (answer.ending, answer.label is None) == ("completed", False)
    assert scheduler.infer(sample, deadline_ms=0.0).label is None


@pytest.mark.parametrize("rises", [False, True])
def test_what_a_foreseen_change_wants_is_there_before_and_taken_without_the_network(
    scheduler, device, service, clock, world, rises
):
    little, much = world.bundle.backbone_bytes + 3000, EVERYTHING
    before, after = (little, much) if rises else (much, little)
    assert best(world, before) != best(world, after)
    scheduler.memory.declare(before)
    scheduler.look()
    scheduler.memory.foresee(after, 5.0)
    scheduler.start()
    assert [each["memory_bytes"] for each in service.placements[:2]] == [after, before]
    assert device.status().branches == best(world, before)
    scheduler.close()  # from here on nobody speaks with the service
    scheduler.look()
    assert device.status().branches == best(world, before)
    clock.now = 5.0
    scheduler.look()
    status = device.status()
    assert (status.branches, status.source, status.problem) == (best(world, after), "service", "")


def test_what_is_prepared_for_a_drop_is_not_taken_before_it(scheduler, device, clock, script, world):
    little = world.bundle.backbone_bytes + 3000
    scheduler.memory.foresee(little, 5.0)
    scheduler.start()
    scheduler.close()
    everything = device.status().branches
    script.limit_bytes = EVERYTHING - 1  # another limit, and still room for all
    scheduler.look()
    assert device.status().branches == everything
    clock.now = 5.0
    scheduler.look()
    assert device.status().branches == best(world, little)
    assert device.follows_service


def test_a_foreseen_change_that_the_service_refuses_does_not_keep_it_from_placing(scheduler, device, service, world):
    scheduler.memory.foresee(1, 5.0)  # below the backbone
    scheduler.start()
    assert device.status().branches == best(world, EVERYTHING)
    assert device.follows_service


def test_a_change_foreseen_while_it_runs_is_prepared_for(scheduler, service, world):
    scheduler.start()
    little = world.bundle.backbone_bytes + 3000
    scheduler.foresee(little, 1000.0)
    until(lambda: little in [each["memory_bytes"] for each in service.placements])


def test_no_budget_waits_for_a_service_that_hangs(scheduler, device, service, script, world, sample, background):
    scheduler.set_memory(EVERYTHING)
    service.hangs = "/v1/models/tiny/placements"
    following = background(device.follow)
    until(lambda: service.hanging)
    script.limit_bytes = world.bundle.backbone_bytes + 3000
    scheduler.look()
    assert device.resident_bytes <= script.limit_bytes
    script.limit_bytes = 10 * EVERYTHING
    scheduler.look()
    device.limit(world.bundle.backbone_bytes)
    assert device.resident_bytes == world.bundle.backbone_bytes
    assert scheduler.infer(sample).label is not None
    assert device.status().branches == ()
    assert service.hanging == 1
    service.go_on.set()
    following.result()


def test_memory_that_falls_while_units_travel_ends_their_journey(scheduler, device, service, world, background):
    service.hangs = "/v1/units"
    following = background(device.follow)
    until(lambda: service.hanging)
    scheduler.memory.declare(world.bundle.backbone_bytes)
    scheduler.look()
    service.go_on.set()
    following.result()
    status = device.status()
    assert (status.source, status.branches) == ("local", ())
    assert "shrank while units were fetched" in status.problem


def test_after_a_drop_the_service_is_asked_and_followed_again(scheduler, device, script, world):
    scheduler.start()
    script.limit_bytes = world.bundle.backbone_bytes + 3000
    until(lambda: scheduler.drops == 1)
    until(lambda: device.follows_service)
    assert device.resident_bytes <= script.limit_bytes
    script.limit_bytes = 10 * EVERYTHING
    until(lambda: device.status().branches == best(world, EVERYTHING))


def test_below_the_backbone_it_goes_on_alone(scheduler, device, world, sample):
    scheduler.set_memory(EVERYTHING)
    with pytest.raises(BudgetError, match=str(world.bundle.backbone_bytes)):
        scheduler.set_memory(world.bundle.backbone_bytes - 1)
    assert device.resident_bytes == world.bundle.backbone_bytes
    assert "backbone alone" in device.status().problem
    assert scheduler.infer(sample).ending == "completed"
    scheduler.set_memory(EVERYTHING)
    assert device.status().branches == best(world, EVERYTHING)


def test_memory_taken_by_others_below_the_backbone_leaves_it_answering(scheduler, device, script, sample):
    scheduler.set_memory(EVERYTHING)
    script.limit_bytes = 1
    scheduler.look()
    assert not device.can_unload
    assert scheduler.infer(sample).ending == "completed"


def test_whatever_memory_does_every_inference_answers_and_the_units_fit(scheduler, device, script, world, background):
    samples = np.random.default_rng(3).integers(0, 256, (400, *SHAPE), dtype=np.uint8)
    scheduler.start()
    answers = [background(lambda part: [scheduler.infer(x) for x in part], part) for part in np.split(samples, 2)]
    random = np.random.default_rng(4)
    while not all(part.done() for part in answers):
        script.limit_bytes = world.bundle.backbone_bytes + int(random.integers(0, 12_000))
        scheduler.look()
        assert device.resident_bytes <= script.limit_bytes
    assert all(answer.label is not None for part in answers for answer in part.result())
