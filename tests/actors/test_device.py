"""The device's actor as the plain class it is, before a real service; on Ray in test_on_ray."""

import dataclasses
import threading
from contextlib import ExitStack

import pytest

from meedge_ray.actors import device as device_module
from meedge_ray.actors.device import DeviceActor, DeviceReport, DeviceSettings
from meedge_ray.api.time_distribution import TimeDistribution
from meedge_ray.domain.errors import BudgetError
from meedge_ray.runtime.client import ServiceClient
from meedge_ray.runtime.placing import Placer

EVERYTHING = 10**9


@pytest.fixture
def settings(http, token, tmp_path, monkeypatch):
    settings = DeviceSettings(
        base_url=str(http.base_url), token=token, model="tiny", cache_dir=str(tmp_path), memory_bytes=EVERYTHING
    )
    with ExitStack() as stack:
        # An actor's own is closed when its process ends.
        monkeypatch.setattr(device_module, "ServiceClient", lambda *to: stack.enter_context(ServiceClient(*to)))
        yield settings


def test_a_device_plans_as_its_settings_say(settings, world, sample):
    law = TimeDistribution.model_validate({"normal": {"mean_ms": 1.25, "standard_deviation_ms": 0.05}})
    actor = DeviceActor(dataclasses.replace(settings, planning="static", horizon_ms=8.0, distribution=law))
    status = actor.status()
    answer = actor.infer(sample)
    assert status.branches == Placer(world.bundle, horizon_ms=8.0, distribution=law).place(EVERYTHING).branches
    assert (status.planning, status.planner, answer.planner) == ("static", "static", "static")


def test_a_report_loads_nothing_and_says_what_was_the_matter(settings, world):
    actor = DeviceActor(settings)
    report = actor.report()
    assert report == DeviceReport(settings=settings, status=None, busy=False, problem=None)
    actor.place(1)
    report = actor.report()
    assert report.status is None
    assert type(report.problem) is BudgetError
    assert not report.busy
    actor.place(EVERYTHING)
    report = actor.report()
    assert report.problem is None
    assert report.status.branches == Placer(world.bundle).place(EVERYTHING).branches


def test_a_report_does_not_wait_for_what_the_device_is_busy_with(settings, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slowly(*_, **__):
        begun.set()
        assert go_on.wait(30)
        raise RuntimeError("a defect")

    monkeypatch.setattr(device_module, "Device", slowly)
    actor = DeviceActor(settings)

    def load():
        with pytest.raises(RuntimeError):
            actor.status()

    loading = threading.Thread(target=load)
    loading.start()
    assert begun.wait(30)
    assert actor.report().busy
    go_on.set()
    loading.join()
    report = actor.report()
    assert not report.busy
    assert "report it" in report.problem.do
