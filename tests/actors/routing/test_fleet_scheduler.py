"""Requests routed over two devices on real edge nodes."""

import os
import signal
import threading
import time
from contextlib import contextmanager

import psutil
import pytest
import ray

from meedge_ray.actors.cluster import attach_edge_node
from meedge_ray.actors.device import attach_device, detach_device
from meedge_ray.actors.routing.fleet_scheduler import find_scheduler, start_scheduler, stop_scheduler
from meedge_ray.api.agent import DeviceSettings
from meedge_ray.domain.errors import InvalidInputError, NotFoundError, UnavailableError

pytestmark = pytest.mark.ray

EVERYTHING = 10**9


def eventually(ask, holds, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not holds(said := ask()):
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    return said


@pytest.fixture(scope="module")
def nodes(own_cluster, edge_node):
    with attach_edge_node(own_cluster, "pi-9") as other:
        yield edge_node, other


@pytest.fixture(scope="module")
def devices(nodes, http, token, tmp_path_factory):
    def attached(name):
        cache = str(tmp_path_factory.mktemp(name))
        return attach_device(
            name,
            DeviceSettings(
                service_url=str(http.base_url), token=token, model="tiny", cache_dir=cache, memory_bytes=EVERYTHING
            ),
        )

    yield {node.device: attached(node.device) for node in nodes}
    for node in nodes:
        detach_device(node.device)


@pytest.fixture(scope="module")
def scheduler(devices):
    scheduler = start_scheduler()
    yield scheduler
    stop_scheduler()


@pytest.fixture
def fleet(scheduler, devices):
    """The scheduler, once all devices are as they are at first."""
    for device in devices.values():
        device.set_memory(EVERYTHING)
    everything_known(scheduler)
    return scheduler


def loads(scheduler):
    return {load.candidate.name: load.candidate for load in scheduler.report().devices}


def everything_known(scheduler):
    expectations = eventually(
        lambda: loads(scheduler),
        lambda seen: len(seen) == 2 and all(not each.aside and not each.ahead for each in seen.values()),
    )
    return expectations


def worker_of(node):
    [worker] = [
        child
        for child in psutil.Process(node.process.pid).children(recursive=True)
        if "DeviceActor" in "".join(child.cmdline())
    ]
    return worker.pid


@contextmanager
def stopped(*nodes):
    pids = [worker_of(node) for node in nodes]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def favour(fleet, devices, world, favoured):
    """Leave the others the bare backbone, so that the favoured device's answers are worth most."""
    for name, device in devices.items():
        if name != favoured:
            device.set_memory(world.bundle.backbone_bytes)
    eventually(
        lambda: loads(fleet),
        lambda seen: all(seen[favoured].expectation > seen[name].expectation for name in devices if name != favoured),
    )


def routed(fleet, name):
    [load] = [load for load in fleet.report().devices if load.candidate.name == name]
    return load.routed


def test_a_request_goes_to_the_device_with_the_best_expectation(fleet, devices, world, sample):
    favour(fleet, devices, world, "pi-9")
    before = fleet.report()
    answer = fleet.infer("tiny", sample)
    after = fleet.report()
    assert answer.resident > 0
    assert answer.label == world.logits(sample[None])[answer.branch].argmax()
    assert (after.asked, after.answered) == (before.asked + 1, before.answered + 1)
    with pytest.raises(UnavailableError, match=f"pi-1 has {world.bundle.backbone_bytes} of"):
        fleet.infer("tiny", sample, least_memory_bytes=EVERYTHING + 1)


def test_a_silent_device_is_hedged_put_aside_and_back_with_its_report(fleet, devices, nodes, world, sample):
    favour(fleet, devices, world, "pi-1")
    before = fleet.report()
    with stopped(nodes[0]):
        answer = fleet.infer("tiny", sample, 1e4)
        assert answer.label == world.logits(sample[None])[answer.branch].argmax()
        assert answer.resident == 0
        assert fleet.report().hedged == before.hedged + 1
        assert loads(fleet)["pi-1"].aside == "is silent"
        sent = routed(fleet, "pi-1")
        fleet.infer("tiny", sample, 1e4)
        assert routed(fleet, "pi-1") == sent
    everything_known(fleet)
    assert fleet.infer("tiny", sample).resident > 0


def test_where_every_device_is_silent_the_request_is_refused_in_time(fleet, nodes, sample):
    with stopped(*nodes):
        with pytest.raises(UnavailableError, match="no answer came in time") as late:
            fleet.infer("tiny", sample, 1500.0)
        assert "pi-1, pi-9" in late.value.what or "pi-9, pi-1" in late.value.what
        with pytest.raises(UnavailableError, match="pi-1 is silent; pi-9 is silent") as shed:
            fleet.infer("tiny", sample, 1500.0)
        assert shed.value.do == "Come again in 1000 ms"
    everything_known(fleet)
    assert fleet.infer("tiny", sample).label is not None


def test_a_lost_device_s_requests_move_to_the_other(fleet, devices, nodes, world, sample):
    favour(fleet, devices, world, "pi-1")
    os.kill(worker_of(nodes[0]), signal.SIGKILL)
    assert fleet.infer("tiny", sample, 1e4).label is not None
    everything_known(fleet)
    assert loads(fleet)["pi-1"].expectation > 0


def test_of_a_rush_every_request_is_answered_or_refused(fleet, devices, sample):
    before = fleet.report()
    told = []

    def one(deadline_ms):
        try:
            told.append(fleet.infer("tiny", sample, deadline_ms).label)
        except UnavailableError as error:
            told.append(error.do)

    rush = [threading.Thread(target=one, args=[None if number % 2 else 30.0]) for number in range(100)]
    for thread in rush:
        thread.start()
    for thread in rush:
        thread.join()
    assert len(told) == 100
    assert all(told_one is not None and told_one != "" for told_one in told)
    after = fleet.report()
    assert after.asked - before.asked == 100
    ended = [each.answered + each.shed + each.late + each.wrong for each in (before, after)]
    assert ended[1] - ended[0] == 100


def test_a_request_at_fault_is_told_so_and_held_against_no_device(fleet, sample):
    with pytest.raises(NotFoundError, match="model other"):
        fleet.infer("other", sample)
    with pytest.raises(InvalidInputError) as caught:
        fleet.infer("tiny", sample[0])
    assert caught.value.__cause__ is None
    with pytest.raises(InvalidInputError, match="deadline_ms"):
        fleet.infer("tiny", sample, -1.0)
    with pytest.raises(UnavailableError, match="when idle"):
        fleet.infer("tiny", sample, 0.0)
    assert not any(each.aside for each in loads(fleet).values())


def test_the_scheduler_comes_back_by_itself_and_knows_its_devices_again(fleet, sample):
    ray.kill(find_scheduler().actor, no_restart=False)

    def answer():
        try:
            return find_scheduler().infer("tiny", sample)
        except UnavailableError as error:
            return error

    eventually(answer, lambda said: not isinstance(said, UnavailableError))
    assert len(everything_known(fleet)) == 2
