from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from sample_objects import TEMPLATE

from meedge_ray.api.agent import MemoryPolicy
from meedge_ray.api.edge_device import DeviceTemplate, object_name
from meedge_ray.api.fields import Name
from meedge_ray.api.time_distribution import UNIFORM, TimeDistribution

NAME: TypeAdapter[str] = TypeAdapter(Name)
LABEL_VALUES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", fullmatch=True)


def law(distribution: dict[str, Any]) -> TimeDistribution:
    return DeviceTemplate.model_validate({**TEMPLATE, "timeDistribution": distribution}).distribution()


def test_a_template_speaks_of_the_same_laws_as_requests_do() -> None:
    assert law({}) == UNIFORM
    assert law(
        {"histogram": {"edgesMilliseconds": [0, "2.5", 4], "probabilities": ["0.25", "0.75"]}}
    ) == TimeDistribution.model_validate({"histogram": {"edges_ms": [0, 2.5, 4], "probabilities": [0.25, 0.75]}})
    assert law(
        {"normal": {"meanMilliseconds": 3, "standardDeviationMilliseconds": "0.5"}}
    ) == TimeDistribution.model_validate({"normal": {"mean_ms": 3, "standard_deviation_ms": 0.5}})


def test_what_a_template_need_not_say() -> None:
    required = {field: TEMPLATE[field] for field in ("serviceRef", "modelRef", "memory")}
    template = DeviceTemplate.model_validate(required)
    assert (template.planning, template.horizon_milliseconds, template.threads) == ("auto", None, 1)
    assert template.distribution() == UNIFORM


def test_a_memory_policy_speaks_of_the_same_shares_as_devices_do() -> None:
    given_ = {"hysteresis": "0.1", "growAfterSeconds": 2, "pressure": "0.5"}
    policy = DeviceTemplate.model_validate({**TEMPLATE, "memoryPolicy": given_}).memory_policy.policy(5)
    assert policy == MemoryPolicy(headroom_bytes=5, hysteresis=0.1, grow_after_s=2.0, pressure=0.5)
    assert DeviceTemplate.model_validate(TEMPLATE).memory_policy.policy(8 * 2**20) == MemoryPolicy()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("memoryPolicy", {"hysteresis": 1}, "hysteresis"),
        ("memoryPolicy", {"pressure": 0}, "pressure"),
        ("memorySchedule", [{"at": "24:00", "memory": "1Mi"}], "memorySchedule.0.at"),
        ("latencyMilliseconds", 0, "latencyMilliseconds"),
        ("transferMilliseconds", "0.0", "transferMilliseconds"),
        ("mode", "sometimes", "mode"),
    ],
)
def test_bounds_that_cannot_be_are_refused_where_they_stand(field: str, value: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DeviceTemplate.model_validate({**TEMPLATE, field: value})


@pytest.mark.parametrize(
    ("device", "name"),
    [("pi-1", "pi-1"), ("Pi_1", "pi-1"), ("north.pi_1", "north.pi-1"), ("a-_.B", "a.b"), ("a..b", "a.b")],
)
def test_a_device_names_its_object(device: str, name: str) -> None:
    assert object_name(device) == name


@given(LABEL_VALUES)
def test_every_label_gives_a_name(device: str) -> None:
    assert NAME.validate_python(object_name(device))
