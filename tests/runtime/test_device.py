import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from meedge_ray.api.serving import PlacementRequest
from meedge_ray.api.time_distribution import TimeDistribution
from meedge_ray.bundle.manifest import bundle_sha256
from meedge_ray.bundle.store import sha256_of
from meedge_ray.domain.elastic import Calibration, Predictor, Unit, bytes_of, units_of
from meedge_ray.domain.errors import BudgetError, InvalidInputError, NotFoundError, UnavailableError
from meedge_ray.runtime import client as client_module
from meedge_ray.runtime.cache import Cache
from meedge_ray.runtime.client import ServiceClient
from meedge_ray.runtime.device import Device
from meedge_ray.runtime.placing import Placer

# Kills that come when the final exit has long answered.
LATE = TimeDistribution.model_validate({"normal": {"mean_ms": 7.5, "standard_deviation_ms": 0.3}})


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(client_module, "BACK_OFF_S", (0.0,))


def test_a_device_starts_with_the_backbone_and_answers(device, world, samples):
    status = device.status()
    assert (status.branches, status.resident_bytes) == ((), world.bundle.backbone_bytes)
    assert status.memory_bytes is None
    assert status.bundle_sha256 == bundle_sha256(world.bundle)
    assert status.process_rss_bytes > 0
    assert device.infer(samples[0]).label == world.logits(samples[:1])[None][0].argmax()


def test_a_new_device_gets_its_whole_backbone_in_one_answer(service, store, world):
    with ServiceClient(service.url, service.token) as client:
        Device(Cache(client, store), "tiny")
    [units] = service.asked()
    assert len(units) == len({block.unit.sha256 for block in world.bundle.blocks}) > 1


def test_the_service_places_and_only_missing_units_travel(device, service, world, whole_bytes):
    best = Placer(world.bundle).place(whole_bytes)
    service.requests.clear()
    status = device.set_memory(whole_bytes)
    assert status.branches == best.branches
    assert status.expectation == pytest.approx(best.expectation)
    assert (status.source, status.problem, status.memory_bytes) == ("service", "", whole_bytes)
    sent = units_of(world.branch(name) for name in best.branches)
    assert sorted(service.fetched()) == sorted(unit.sha256 for unit in sent)
    assert status.fetched_bytes == world.bundle.backbone_bytes + sum(unit.size_bytes for unit in sent)
    service.requests.clear()
    device.set_memory(world.bundle.backbone_bytes)
    assert device.set_memory(whole_bytes).branches == best.branches
    assert service.fetched() == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(steps=st.lists(st.tuples(st.integers(0, 25_000), st.booleans()), min_size=1, max_size=5))
def test_the_budget_holds_and_the_device_answers_whatever_happens(device, service, world, samples, steps):
    for extra_bytes, away in steps:
        service.away = away
        memory_bytes = world.bundle.backbone_bytes + extra_bytes
        status = device.set_memory(memory_bytes)
        assert status.resident_bytes <= memory_bytes
        assert status.source == ("local" if away else "service")
        outputs = device.infer(samples[0]).outputs
        assert tuple(output.branch for output in outputs) == (*status.branches, None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(steps=st.lists(st.tuples(st.integers(0, 25_000), st.booleans()), min_size=1, max_size=5))
def test_the_budget_holds_where_branches_share_units(service, store, worlds, samples, steps):
    service.world = world = worlds(shared=True, blocks=2, final_accuracy=0.3)
    service.away = False
    with ServiceClient(service.url, service.token) as client:
        device = Device(Cache(client, store), "tiny")
        for extra_bytes, away in steps:
            service.away = away
            memory_bytes = world.bundle.backbone_bytes + extra_bytes
            status = device.set_memory(memory_bytes)
            resident = [world.branch(name) for name in status.branches]
            assert status.resident_bytes == world.bundle.backbone_bytes + bytes_of(resident) <= memory_bytes
            assert status.source == ("local" if away else "service")
            # The final exit is poorer than most branches: it runs only where none is resident that beats it.
            answer = device.infer(samples[0])
            assert answer.planner == status.planner
            ran = [output.branch for output in answer.outputs]
            assert ran
            assert set(ran) <= {*status.branches, None}


def with_predictor(world, gain):
    slots = len(world.bundle.blocks)
    shapes = {"weight0": (slots, 2), "bias0": 2, "weight1": (2, 2), "bias1": 2, "weight2": (2, slots), "bias2": slots}
    data = save({name: np.full(shape, 0.1, np.float32) for name, shape in shapes.items()})
    unit = Unit(sha256=sha256_of(data), size_bytes=len(data))
    calibrations = {branch.name: Calibration() for branch in world.bundle.branches}
    predictor = Predictor(unit=unit, hidden=(2, 2), calibrations=calibrations, error=0.1, gain=gain, gain_error=0.001)
    bundle = replace(world.bundle, predictor=predictor)
    return replace(world, bundle=bundle, units=world.units | {unit.sha256: data})


@pytest.mark.parametrize(
    ("planning", "gain", "planner"),
    [("auto", 0.01, "samplewise"), ("auto", 0.001, "none"), ("samplewise", -0.1, "samplewise"), ("static", 1, "none")],
)
def test_a_device_plans_sample_by_sample_where_that_pays_or_is_asked(
    service, store, world, samples, whole_bytes, planning, gain, planner
):
    service.world = world = with_predictor(world, gain)
    with ServiceClient(service.url, service.token) as client:
        device = Device(Cache(client, store), "tiny", planning=planning)
        assert (world.bundle.predictor.unit.sha256 in service.fetched()) == (planner == "samplewise")
        device.set_memory(whole_bytes)
        answer = device.infer(samples[0])
        status = device.status()
    assert answer.planner == planner
    assert (status.planning, status.planner) == (planning, planner)
    assert answer.resident == len(status.branches)


def test_without_its_predictor_a_device_plans_statically_unless_told_otherwise(service, store, world, samples):
    service.world = world = with_predictor(world, 1.0)
    del world.units[world.bundle.predictor.unit.sha256]
    with ServiceClient(service.url, service.token) as client:
        with pytest.raises(NotFoundError):
            Device(Cache(client, store), "tiny", planning="samplewise")
        assert Device(Cache(client, store), "tiny").infer(samples[0]).planner == "none"


def test_placements_and_plans_are_for_the_law_of_the_kills_time(client, store, service, samples, whole_bytes):
    device = Device(Cache(client, store), "tiny", horizon_ms=8.0, distribution=LATE)
    placed = device.set_memory(whole_bytes)
    assert TimeDistribution.model_validate(service.placements[-1]["distribution"]) == LATE
    assert placed.branches  # this service knows uniform kills alone
    assert placed.planner == "static"
    assert [output.branch for output in device.infer(samples[0]).outputs] == [None]
    service.away = True
    status = device.set_memory(whole_bytes)
    assert (status.source, status.branches, status.planner) == ("local", (), "none")


def test_a_shared_unit_travels_once(service, store, worlds):
    service.world = world = worlds(shared=True, blocks=2, final_accuracy=0.3)
    with ServiceClient(service.url, service.token) as client:
        device = Device(Cache(client, store), "tiny")
        service.requests.clear()
        status = device.set_memory(10**9)
    assert any(
        f"exit{index}-small" in status.branches and f"exit{index}-large" in status.branches for index in range(3)
    )
    assert sorted(service.fetched()) == sorted(unit.sha256 for unit in units_of(map(world.branch, status.branches)))


def test_without_the_server_the_best_of_the_held_units_is_placed(device, service, store, world, whole_bytes):
    device.set_memory(whole_bytes)
    held = store.held()
    service.away = True
    memory_bytes = whole_bytes // 2
    status = device.set_memory(memory_bytes)
    best = Placer(world.bundle, held=held).place(memory_bytes)
    assert status.branches == best.branches
    assert status.source == "local"
    assert "does not answer" in status.problem
    service.away = False
    assert device.set_memory(memory_bytes).source == "service"


def test_below_the_backbone_the_bare_backbone_goes_on(device, world, whole_bytes, samples):
    device.set_memory(whole_bytes)
    with pytest.raises(BudgetError, match=str(world.bundle.backbone_bytes)):
        device.set_memory(world.bundle.backbone_bytes - 1)
    status = device.status()
    assert (status.branches, status.resident_bytes) == ((), world.bundle.backbone_bytes)
    assert status.memory_bytes == world.bundle.backbone_bytes - 1
    assert "backbone alone needs" in status.problem
    assert device.infer(samples[0]).label is not None


def test_a_device_starts_again_without_the_server(device, service, store, whole_bytes):
    placed = device.set_memory(whole_bytes).branches
    service.away = True
    with ServiceClient(service.url, service.token) as client:
        again = Device(Cache(client, store), "tiny")
        assert again.set_memory(whole_bytes).branches == placed


def test_a_device_that_never_saw_the_model_needs_the_server(service, store):
    service.away = True
    with ServiceClient(service.url) as client, pytest.raises(UnavailableError, match=service.url):
        Device(Cache(client, store), "tiny")


def test_a_damaged_unit_of_the_cache_is_fetched_again(device, service, store, world, whole_bytes):
    name = device.set_memory(whole_bytes).branches[0]
    device.set_memory(world.bundle.backbone_bytes)
    [unit] = world.branch(name).units
    store.path(unit.sha256).write_bytes(b"damaged")
    service.requests.clear()
    assert name in device.set_memory(whole_bytes).branches
    assert service.fetched() == [unit.sha256]


def test_a_damaged_unit_is_done_without_while_the_server_is_away(device, service, store, world, whole_bytes, samples):
    names = device.set_memory(whole_bytes).branches
    device.set_memory(world.bundle.backbone_bytes)
    service.away = True
    store.path(world.branch(names[0]).units[0].sha256).write_bytes(b"damaged")
    status = device.set_memory(whole_bytes)
    assert names[0] not in status.branches
    assert set(status.branches) <= set(names)
    assert device.infer(samples[0]).label is not None


def test_a_transmission_cut_for_good_leaves_the_device_answering(device, service, world, whole_bytes, samples):
    for branch in world.bundle.branches:
        service.break_after[branch.units[0].sha256] = [10] * 10
    status = device.set_memory(whole_bytes)
    assert (status.branches, status.source) == ((), "local")
    assert device.infer(samples[0]).label is not None


@pytest.mark.parametrize("change", [{"branches": ["unheard"]}, {"branches": ["exit0-small"] * 2, "extra": 1}])
def test_nonsense_from_the_service_is_not_followed(device, client, service, world, whole_bytes, change):
    answer = client.place("tiny", PlacementRequest(memory_bytes=whole_bytes))
    service.answers["/v1/models/tiny/placements"] = (200, json.dumps(answer.model_dump() | change).encode())
    status = device.set_memory(whole_bytes)
    assert status.source == "local"
    assert status.problem


def test_a_placement_too_large_is_not_followed(device, client, service, world, whole_bytes):
    answer = client.place("tiny", PlacementRequest(memory_bytes=whole_bytes))
    service.answers["/v1/models/tiny/placements"] = (200, answer.model_dump_json().encode())
    status = device.set_memory(world.bundle.backbone_bytes)
    assert status.resident_bytes <= world.bundle.backbone_bytes
    assert "more than fits" in status.problem


def test_a_rebuilt_model_is_taken_over(device, service, worlds, whole_bytes, samples):
    device.set_memory(whole_bytes)
    rebuilt = worlds(seed=5)
    service.world = rebuilt
    status = device.set_memory(whole_bytes)
    assert status.bundle_sha256 == bundle_sha256(rebuilt.bundle)
    assert status.source == "service"
    assert status.branches
    np.testing.assert_allclose(
        device.infer(samples[0]).confidences,
        _softmax(rebuilt.logits(samples[:1])[None][0]),
        atol=1e-5,
    )


def test_a_rebuilt_model_that_cannot_be_had_leaves_the_old_one_answering(device, service, worlds, whole_bytes, samples):
    old = device.set_memory(whole_bytes)
    service.world = worlds(seed=5)
    service.answers["/v1/units"] = (503, b"")
    status = device.set_memory(whole_bytes)
    assert (status.bundle_sha256, status.branches) == (old.bundle_sha256, old.branches)
    assert status.source == "local"
    assert len(device.infer(samples[0]).outputs) == len(old.branches) + 1


def test_it_answers_from_other_threads_while_branches_are_exchanged(device, world, whole_bytes, samples):
    expected = world.logits(samples[:1])
    done, answers, failures = threading.Event(), [], []

    def infer():
        try:
            while not done.is_set():
                answers.append(device.infer(samples[0]))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=infer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(20):
        device.set_memory(whole_bytes if turn % 2 else world.bundle.backbone_bytes + 5_000)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert {answer.ending for answer in answers} == {"completed"}
    assert all(output.label == expected[output.branch][0].argmax() for answer in answers for output in answer.outputs)


def test_a_device_type_or_horizon_that_cannot_be_is_said_at_the_start(client, store):
    with pytest.raises(NotFoundError, match="board-1t"):
        Device(Cache(client, store), "tiny", device_type="phone")
    with pytest.raises(InvalidInputError, match="horizon"):
        Device(Cache(client, store), "tiny", horizon_ms=0.5)
    with pytest.raises(InvalidInputError, match=r"distribution\.normal\.mean_ms"):
        Device(Cache(client, store), "tiny", horizon_ms=4.0, distribution=LATE)
    with pytest.raises(InvalidInputError, match="auto, static, samplewise"):
        Device(Cache(client, store), "tiny", planning="sometimes")


def test_the_latency_budget_is_sent_once_the_rate_is_known(client, store, service, world, whole_bytes):
    device = Device(Cache(client, store), "tiny", latency_budget_ms=1000, horizon_ms=8.0, device_type="board-1t")
    assert device.set_memory(whole_bytes).source == "service"
    sent = service.placements[-1]
    assert (sent["latency_budget_ms"], sent["horizon_ms"], sent["device_type"]) == (1000, 8.0, "board-1t")
    assert sent["rate_bps"] > 0
    assert set(sent["held"]) == {block.unit.sha256 for block in world.bundle.blocks}


def test_a_model_that_is_not_served_is_not_found(service, store, world):
    service.world = replace(world, bundle=replace(world.bundle, model="other"))
    with ServiceClient(service.url, service.token) as client, pytest.raises(NotFoundError):
        Device(Cache(client, store), "tiny")


def _softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()
