from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_objects import JSON, SPECS, STATUSES, mutated, valid

from meedge_ray.api.kinds import KINDS, FieldProblem, Kind

KIND = {kind.name: kind for kind in KINDS}
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
REASONS = {"FieldValueInvalid", "FieldValueRequired", "FieldValueNotSupported", "FieldValueForbidden"}


def change(kind: str, *path: Any, to: Any) -> dict[str, Any]:
    content = valid(kind)
    parent: Any = content
    for part in path[:-1]:
        parent = parent[part]
    parent[path[-1]] = to
    return content


def only(problems: list[FieldProblem]) -> FieldProblem:
    [problem] = problems
    return problem


@each_kind
def test_nothing_is_wrong_with_what_is_right(kind: Kind) -> None:
    content = valid(kind.name)
    assert kind.problems(content, content) == []
    assert kind.status_problems(content["status"]) == []
    assert kind.status_problems({}) == []


MISTAKES = [
    ("ElasticModel", ("spec", "zoo", "convolutions", 1, "kind"), "x", "spec.zoo.convolutions[1].kind"),
    ("ElasticModel", ("spec", "zoo", "convolutions", 1, "kernelSize"), "3", "spec.zoo.convolutions[1].kernelSize"),
    ("ElasticModel", ("spec", "zoo", "fullyConnected"), [], "spec.zoo.fullyConnected"),
    ("ElasticModel", ("spec", "zoo", "fullyConnected", 0, "pooledSize"), 4.0, "spec.zoo.fullyConnected[0].pooledSize"),
    ("ElasticModel", ("spec", "sharing", "fullyConnected", 0), "pool9", "spec.sharing.fullyConnected[0]"),
    ("ElasticModel", ("spec", "data", "path"), None, "spec.data.path"),
    ("ElasticModel", ("spec", "data", "split", "seed"), -1, "spec.data.split.seed"),
    ("ElasticModel", ("spec", "model", "arguments", "blocks"), 0.5, "spec.model.arguments.blocks"),
    ("ElasticModel", ("spec", "model", "arguments", "a.b"), [], "spec.model.arguments[a.b]"),
    ("ElasticModel", ("spec", "cultivation", "epochs"), "3", "spec.cultivation.epochs"),
    ("ElasticModel", ("spec", "cultivation", "epochs"), True, "spec.cultivation.epochs"),
    ("ElasticModel", ("spec", "cultivation", "memory"), "1Pi", "spec.cultivation.memory"),
    ("ElasticModel", ("spec", "cultivation", "memory"), "64Mi\n", "spec.cultivation.memory"),
    ("ElasticModel", ("spec", "supernet", "shrunk", 0), "1.5", "spec.supernet.shrunk[0]"),
    ("ElasticModel", ("spec", "suspend"), "true", "spec.suspend"),
    ("ElasticModel", ("spec", "activeDeadlineSeconds"), 0, "spec.activeDeadlineSeconds"),
    ("ElasticModel", ("metadata", "name"), "a..b", "metadata.name"),
    ("ElasticModel", ("metadata", "labels", "app"), "no spaces", "metadata.labels.app"),
    ("ElasticModel", ("metadata", "labels", "a/b/c"), "", "metadata.labels"),
    ("ElasticModel", ("metadata", "annotations", "note"), "x" * 2**18, "metadata.annotations"),
    ("ElasticModel", ("metadata",), 3, "metadata"),
    ("ElasticModel", ("apiVersion",), "meedge.dev/v1", "apiVersion"),
    ("ElasticModel", ("kind",), "ElasticService", "kind"),
    ("ElasticModel", ("sauce",), 1, "sauce"),
    ("ElasticModel", ("spec",), [], "spec"),
    ("ElasticService", ("spec", "modelRefs"), [], "spec.modelRefs"),
    ("ElasticService", ("spec", "modelRefs", 1, "name"), "digits", "spec.modelRefs[1].name"),
    ("ElasticService", ("spec", "replicas"), 2, "spec.replicas"),
    ("ElasticService", ("spec", "autoscaling", "minReplicas"), 5, "spec.autoscaling.minReplicas"),
    ("DeviceFleet", ("spec", "selector", "matchLabels", "a"), "-", "spec.selector.matchLabels.a"),
    ("DeviceFleet", ("spec", "template", "horizonMilliseconds"), 2.5, "spec.template.horizonMilliseconds"),
    ("DeviceFleet", ("spec", "template", "horizonMilliseconds"), 0, "spec.template.horizonMilliseconds"),
    (
        "EdgeDevice",
        ("spec", "timeDistribution", "histogram", "probabilities", 1),
        "0.5",
        "spec.timeDistribution.histogram.probabilities",
    ),
    (
        "EdgeDevice",
        ("spec", "timeDistribution", "histogram", "edgesMilliseconds", 1),
        "3",
        "spec.timeDistribution.histogram.edgesMilliseconds",
    ),
    (
        "EdgeDevice",
        ("spec", "timeDistribution", "normal"),
        {"meanMilliseconds": 1, "standardDeviationMilliseconds": 1},
        "spec.timeDistribution",
    ),
    ("EdgeDevice", ("spec", "memory"), "0", "spec.memory"),
    ("EdgeDevice", ("spec", "device"), "", "spec.device"),
]


@pytest.mark.parametrize(("kind", "path", "value", "field"), MISTAKES)
def test_a_mistake_is_named_by_its_path_once(kind: str, path: tuple[Any, ...], value: Any, field: str) -> None:
    content = change(kind, *path, to=value)
    assert only(KIND[kind].problems(content)).field == field


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (
            ("spec", "data", "source"),
            "sauce",
            FieldProblem(
                "spec.data.source",
                "FieldValueNotSupported",
                'Unsupported value: "sauce": supported values: '
                '"digits", "cifar10", "cifar100", "mnist", "imageFolder", "npz"',
            ),
        ),
        (
            ("spec", "data", "sauce"),
            "digits",
            FieldProblem("spec.data.sauce", "FieldValueForbidden", "Forbidden: unknown field"),
        ),
        (
            ("spec", "model"),
            {"weights": "x"},
            FieldProblem("spec.model.architecture", "FieldValueRequired", "Required value"),
        ),
        (
            ("spec", "cultivation", "epochs"),
            0,
            FieldProblem("spec.cultivation.epochs", "FieldValueInvalid", "Invalid value: 0: must be greater than 0"),
        ),
        (
            ("spec", "zoo", "convolutions"),
            "none",
            FieldProblem("spec.zoo.convolutions", "FieldValueInvalid", 'Invalid value: "none": must be a list'),
        ),
        (
            ("spec", "cultivation", "learningRate"),
            0.001,
            FieldProblem(
                "spec.cultivation.learningRate",
                "FieldValueInvalid",
                'Invalid value: specs hold no floats; write it in quotes: "0.001"',
            ),
        ),
        (
            ("spec", "model", "weights"),
            "x",
            FieldProblem(
                "spec.model",
                "FieldValueInvalid",
                "Invalid value: say exactly one of weights (a .safetensors file) and pretrain (train it here)",
            ),
        ),
    ],
)
def test_a_mistake_is_told_as_kubernetes_tells_it(path: tuple[str, ...], value: Any, problem: FieldProblem) -> None:
    assert only(KIND["ElasticModel"].problems(change("ElasticModel", *path, to=value))) == problem


def test_every_mistake_is_named_not_the_first_alone() -> None:
    content = change("ElasticModel", "spec", "cultivation", to={"epochs": 0, "batchsize": 3})
    content["metadata"].pop("name")
    assert [problem.field for problem in KIND["ElasticModel"].problems(content)] == [
        "metadata.name",
        "spec.cultivation.epochs",
        "spec.cultivation.batchsize",
    ]


def test_a_wrong_item_of_a_list_is_not_told_as_one_too_few() -> None:
    content = change("ElasticService", "spec", "modelRefs", to=[{"name": "No"}])
    assert only(KIND["ElasticService"].problems(content)).field == "spec.modelRefs[0].name"


def test_a_flood_of_mistakes_is_cut_short() -> None:
    content = change("DeviceFleet", "spec", to={f"field{i}": i for i in range(10_000)})
    assert len(KIND["DeviceFleet"].problems(content)) == 100


@pytest.mark.parametrize(
    ("kind", "path", "value", "field"),
    [
        ("DeviceFleet", ("spec", "selector"), {}, "spec.selector"),
        ("DeviceFleet", ("spec", "selector", "matchLabels", "more"), "x", "spec.selector"),
        ("EdgeDevice", ("spec", "device"), "pi-2", "spec.device"),
    ],
)
def test_what_is_immutable_cannot_be_changed(kind: str, path: tuple[str, ...], value: Any, field: str) -> None:
    after = change(kind, *path, to=value)
    assert KIND[kind].problems(after) == []
    problem = only(KIND[kind].problems(after, valid(kind)))
    assert problem == (field, "FieldValueForbidden", "Forbidden: cannot be changed: make a new object instead")


def test_all_else_can_be_changed() -> None:
    after = change("DeviceFleet", "spec", "template", "memory", to="1Mi")
    assert KIND["DeviceFleet"].problems(after, valid("DeviceFleet")) == []


@pytest.mark.parametrize(
    ("kind", "path", "value", "field"),
    [
        ("ElasticModel", ("stages", 1, "progress"), "some", "status.stages[1].progress"),
        ("ElasticModel", ("stages", 1, "state"), "Done", "status.stages[1].state"),
        ("ElasticModel", ("conditions", 0, "reason"), "not a word", "status.conditions[0].reason"),
        ("ElasticModel", ("bundle", "finalAccuracy"), 0.5, "status.bundle.finalAccuracy"),
        ("EdgeDevice", ("heartbeatTime",), "yesterday", "status.heartbeatTime"),
        ("EdgeDevice", ("heartbeatTime",), "2026-02-30T12:00:00Z", "status.heartbeatTime"),
        ("EdgeDevice", ("heartbeatTime",), "2026-02-01T12:00:00", "status.heartbeatTime"),
        ("DeviceFleet", ("sauce",), 1, "status.sauce"),
    ],
)
def test_a_mistake_in_a_status_is_named_by_its_path(kind: str, path: tuple[Any, ...], value: Any, field: str) -> None:
    assert only(KIND[kind].status_problems(change(kind, "status", *path, to=value)["status"])).field == field


def well_said(problems: list[FieldProblem]) -> bool:
    return all(
        isinstance(problem.field, str) and problem.reason in REASONS and len(problem.message) < 1000
        for problem in problems
    )


@each_kind
@given(data=st.data())
def test_no_json_at_all_breaks_the_validation(kind: Kind, data: st.DataObject) -> None:
    content, before = data.draw(JSON), data.draw(JSON)
    assert kind.problems(content, before)
    assert well_said(kind.problems(content, before))
    assert well_said(kind.status_problems(content))


@each_kind
@given(data=st.data())
def test_no_mutation_of_what_is_right_breaks_the_validation(kind: Kind, data: st.DataObject) -> None:
    content, before = data.draw(mutated(valid(kind.name))), data.draw(mutated(valid(kind.name)))
    assert well_said(kind.problems(content, before))
    assert well_said(kind.status_problems(content.get("status")))


@each_kind
def test_what_is_nested_too_deeply_is_refused(kind: Kind) -> None:
    deep: Any = {}
    for _ in range(5_000):
        deep = {"a": deep}
    assert kind.problems(deep)
    assert kind.problems({**valid(kind.name), "spec": deep}, {"spec": deep})
    assert kind.status_problems(deep)


def test_the_objects_of_these_tests_say_every_field_of_their_specs() -> None:
    for kind in KINDS:
        said = set(SPECS[kind.name]) | ({"replicas"} if kind.name == "ElasticService" else set())
        assert said == set(kind.schema()["properties"]["spec"]["properties"])
        assert {"observedGeneration", *STATUSES[kind.name]} == set(kind.schema()["properties"]["status"]["properties"])
