"""The device's actor as the plain class it is, before a real service; on Ray in test_on_ray."""

from meedge_ray.actors import device as device_module
from meedge_ray.actors.device import DeviceActor, DeviceSettings
from meedge_ray.api.time_distribution import TimeDistribution
from meedge_ray.runtime.client import ServiceClient
from meedge_ray.runtime.placing import Placer

EVERYTHING = 10**9


def test_a_device_plans_as_its_settings_say(http, token, tmp_path, world, sample, monkeypatch):
    law = TimeDistribution.model_validate({"normal": {"mean_ms": 1.25, "standard_deviation_ms": 0.05}})
    settings = DeviceSettings(
        base_url=str(http.base_url),
        token=token,
        model="tiny",
        cache_dir=str(tmp_path),
        memory_bytes=EVERYTHING,
        planning="static",
        horizon_ms=8.0,
        distribution=law,
    )
    with ServiceClient(settings.base_url, settings.token) as client:
        # An actor's own is closed when its process ends.
        monkeypatch.setattr(device_module, "ServiceClient", lambda *_: client)
        actor = DeviceActor(settings)
        status = actor.status()
        answer = actor.infer(sample)
    assert status.branches == Placer(world.bundle, horizon_ms=8.0, distribution=law).place(EVERYTHING).branches
    assert (status.planning, status.planner, answer.planner) == ("static", "static", "static")
