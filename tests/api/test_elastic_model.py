from typing import Any

import pytest
from pydantic import ValidationError

from meedge_ray.api.elastic_model import ElasticModel, ElasticModelSpec, json_schema


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "ElasticModel",
        "metadata": {"name": "digits"},
        "spec": {"model": {"architecture": "resnet20", "pretrain": {"epochs": 1}}, **spec},
    }


def problem(document: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as raised:
        ElasticModel.model_validate(document)
    return str(raised.value)


def test_the_default_zoo_combines_fifteen_convolutions_with_seven_fc_choices() -> None:
    zoo = ElasticModel.model_validate(manifest()).spec.zoo
    kinds = ("depthwise", "separable", "spatiallySeparable", "dilated")
    assert [choice.name for choice in zoo.convolutions] == [
        "none",
        *(f"{kind}{size}" for kind in kinds for size in (3, 5, 7)),
        "separable3-x2",
        "separable3-x3",
    ]
    assert len(zoo.convolutions) * len(zoo.fully_connected) == 105
    assert {len(choice.hidden) + 1 for choice in zoo.fully_connected} == {1, 2, 3}
    assert {choice.pooled_size for choice in zoo.fully_connected} == {1, 2, 4}


def test_a_manifest_survives_a_round_trip() -> None:
    model = ElasticModel.model_validate(manifest(data={"source": "npz", "path": "x.npz"}))
    assert ElasticModel.model_validate_json(model.model_dump_json(by_alias=True)) == model


def test_the_exits_of_a_manifest_are_one_convolution_and_two_fc_layers_unless_said() -> None:
    model = {"architecture": "vgg16", "pretrain": {"epochs": 1, "exits": {}}}
    spec = ElasticModel.model_validate(manifest(model=model, zoo=None)).spec
    assert spec.zoo is None
    assert spec.model.pretrain is not None
    assert spec.model.pretrain.exits is not None
    assert spec.model.pretrain.exits.convolution.name == "standard3"
    assert spec.model.pretrain.exits.fully_connected.name == "pool4-fc64"


@pytest.mark.parametrize(
    ("nothing", "field"),
    [
        ({"zoo": {"convolutions": []}, "sharing": None}, "zoo"),
        ({"zoo": None, "sharing": None}, "zoo"),
        ({"sharing": {"fullyConnected": []}}, "sharing"),
        ({"sharing": None}, "sharing"),
    ],
)
def test_what_kubectl_drops_can_be_said_without_a_null(nothing: dict[str, Any], field: str) -> None:
    spec = ElasticModel.model_validate(manifest(**nothing)).spec
    assert getattr(spec, field) is None
    assert getattr(ElasticModel.model_validate(manifest()).spec, field) is not None
    assert ElasticModelSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"data": {"sauce": "digits"}}, "spec.data.sauce"),
        ({"data": {"source": "npz"}}, "needs a path"),
        ({"data": {"split": {"validationPercent": 50, "testPercent": 45}}}, "under 10 %"),
        ({"cultivation": {"learningRate": 0.001}}, 'write it in quotes: "0.001"'),
        ({"cultivation": {"epochs": 0}}, "spec.cultivation.epochs"),
        ({"model": {"architecture": "resnet20"}}, "exactly one of weights"),
        ({"zoo": {"convolutions": [{"kind": "none"}, {"kind": "none", "kernelSize": 5}]}}, "named twice: none"),
        ({"zoo": {"fullyConnected": []}}, "spec.zoo.fullyConnected"),
        ({"zoo": None, "sharing": {"fullyConnected": ["pool4-fc128"]}}, "the zoo is null"),
        ({"model": {"architecture": "x", "weights": "x", "pretrain": {"epochs": 1, "exits": {}}}}, "exactly one of"),
        ({"zoo": {"convolutions": [{"kind": "dilated", "layers": 4}]}}, "spec.zoo.convolutions.0.layers"),
        ({"cultivation": {"memory": "plenty"}}, "spec.cultivation.memory"),
        ({"cultivation": {"disk": "0"}}, "spec.cultivation.disk"),
        ({"cultivation": {"resources": {"gpus": 0.25}}}, 'write it in quotes: "0.25"'),
        ({"sharing": {"fullyConnected": ["pool4"]}}, "pool4 is one FC layer and has no hidden neurons to merge"),
        ({"sharing": {"fullyConnected": ["pool9"]}}, "sharing.fullyConnected.0: the zoo has no pool9"),
    ],
)
def test_a_mistake_is_refused_with_the_fields_path(spec: dict[str, Any], said: str) -> None:
    assert said in problem(manifest(**spec))


def test_names_are_kubernetes_names() -> None:
    assert "metadata.name" in problem({**manifest(), "metadata": {"name": "No Spaces"}})


def test_the_schema_names_fields_as_manifests_do() -> None:
    schema = json_schema()
    assert "fullyConnected" in schema["$defs"]["Zoo"]["properties"]
    assert schema["$defs"]["Zoo"]["additionalProperties"] is False
