import pytest
import torch
from torch import nn

from meedge_ray.api.elastic_model import Convolution, FullyConnected, Zoo
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.nn.branches import branch_name, build_branch, build_convolution, build_head, check_zoo, zoo_branches

KINDS = ["none", "standard", "depthwise", "separable", "spatiallySeparable", "dilated"]


def convolution(kind, kernel_size=3, layers=1):
    return Convolution.model_validate({"kind": kind, "kernelSize": kernel_size, "layers": layers})


def fc(pooled_size, *hidden):
    return FullyConnected.model_validate({"pooledSize": pooled_size, "hidden": hidden})


def zoo(convolutions, heads):
    return Zoo.model_validate(
        {
            "convolutions": [{"kind": kind, "kernelSize": kernel} for kind, kernel in convolutions],
            "fullyConnected": [{"pooledSize": size} for size in heads],
        }
    )


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_turns_a_feature_map_into_logits(kind, kernel_size):
    branch = build_branch(convolution(kind, kernel_size), fc(2, 16, 8), (6, 7, 9), 5).eval()
    features = torch.randn(3, 6, 7, 9)
    assert branch.get_submodule("convolution")(features).shape == features.shape
    assert branch(features).shape == (3, 5)


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("none", 0),
        ("standard", 16 * 16 * 25),
        ("depthwise", 16 * 25),
        ("separable", 16 * 25 + 16 * 16),
        ("spatiallySeparable", 2 * 16 * 5),
        ("dilated", 16 * 25),
    ],
)
def test_a_convolution_has_the_weights_its_kind_promises(kind, weights):
    branch = build_branch(convolution(kind, 5), fc(1), (16, 8, 8), 10)
    convolutions = [part for part in branch.modules() if isinstance(part, nn.Conv2d)]
    assert sum(part.weight.numel() for part in convolutions) == weights
    assert all(part.bias is None for part in convolutions)


@pytest.mark.parametrize(
    ("kind", "rows", "columns"),
    [("depthwise", 5, 5), ("separable", 5, 5), ("spatiallySeparable", 5, 5), ("dilated", 9, 9)],
)
def test_a_convolution_sees_as_far_as_its_kind_promises(kind, rows, columns):
    body = build_branch(convolution(kind, 5), fc(1), (2, 15, 15), 3).get_submodule("convolution").eval()
    for part in body.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.ones_(part.weight)
    impulse = torch.zeros(1, 2, 15, 15)
    impulse[0, 0, 7, 7] = 1
    seen = body(impulse)[0, 0].nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [rows, columns]


@pytest.mark.parametrize(
    ("kind", "mixes"),
    [
        ("standard", True),
        ("separable", True),
        ("depthwise", False),
        ("dilated", False),
        ("spatiallySeparable", False),
    ],
)
def test_only_full_and_separable_convolutions_mix_channels(kind, mixes):
    body = build_branch(convolution(kind), fc(1), (2, 5, 5), 3).get_submodule("convolution").eval()
    for part in body.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.ones_(part.weight)
    one_channel = torch.zeros(1, 2, 5, 5)
    one_channel[0, 0] = 1
    assert bool(body(one_channel)[0, 1].any()) is mixes


@pytest.mark.parametrize(("side", "size"), [(8, 4), (8, 8), (7, 4), (7, 2), (5, 3), (4, 1), (32, 5)])
def test_pooling_covers_the_map_with_a_plain_average(side, size):
    head = build_branch(convolution("none"), fc(size), (2, side, side), 3).get_submodule("head")
    assert head[-1].in_features == 2 * size * size
    assert not any(isinstance(part, nn.AdaptiveAvgPool2d) for part in head)
    if side % size == 0:
        features = torch.randn(1, 2, side, side)
        expected = nn.functional.adaptive_avg_pool2d(features, size).flatten(1)
        assert torch.allclose(nn.Sequential(*head[:-1])(features), expected, atol=1e-6)
    corner = torch.zeros(1, 2, side, side)
    corner[..., -1, -1] = 1  # the last pixel is not left over
    assert nn.Sequential(*head[:-1])(corner).any()


def test_hidden_layers_are_linear_and_relu():
    head = build_branch(convolution("none"), fc(1, 64, 32), (8, 4, 4), 10).get_submodule("head")
    assert [type(part).__name__ for part in head] == [
        "AvgPool2d",
        "Flatten",
        "Linear",
        "ReLU",
        "Linear",
        "ReLU",
        "Linear",
    ]
    assert [part.out_features for part in head if isinstance(part, nn.Linear)] == [64, 32, 10]


def test_a_map_smaller_than_the_pooled_size_is_refused(says):
    with pytest.raises(InvalidInputError) as caught:
        build_branch(convolution("none"), fc(4), (8, 3, 5), 10)
    says(
        caught.value,
        what="the feature map of 3x5 cannot be pooled to 4x4",
        where="spec.zoo.fullyConnected.pooledSize",
        do="at most 3",
    )


def test_a_branch_s_name_says_exit_convolution_and_fc():
    assert branch_name(3, convolution("depthwise"), fc(4, 64)) == "e03.depthwise3.pool4-fc64"
    assert branch_name(0, convolution("none"), fc(1)) == "e00.none.pool1"
    assert branch_name(123, convolution("dilated", 7), fc(2)) == "e123.dilated7.pool2"


def test_a_large_map_takes_every_combination_in_the_zoo_s_order():
    pairs = zoo_branches(Zoo(), (16, 32, 32))
    assert [(c.name, f.name) for c, f in pairs] == [
        (c.name, f.name) for c in Zoo().convolutions for f in Zoo().fully_connected
    ]


def test_a_small_map_leaves_out_what_exceeds_it():
    choices = zoo([("none", 3), ("depthwise", 3), ("depthwise", 5), ("dilated", 3)], [1, 4, 8])
    names = [(c.name, f.name) for c, f in zoo_branches(choices, (16, 4, 6))]
    assert names == [("none", "pool1"), ("none", "pool4"), ("depthwise3", "pool1"), ("depthwise3", "pool4")]


def test_every_default_branch_of_every_map_can_be_built():
    for side in range(1, 9):
        for choice in zoo_branches(Zoo(), (4, side, side)):
            assert build_branch(*choice, (4, side, side), 3).eval()(torch.zeros(1, 4, side, side)).shape == (
                1,
                3,
            )


@pytest.mark.parametrize(
    ("choices", "where", "do"),
    [
        (zoo([("dilated", 3)], [1]), "spec.zoo.convolutions", "a dilated one counts 2k - 1) of at most 2"),
        (zoo([("none", 3)], [4]), "spec.zoo.fullyConnected", "a pooledSize of at most 2"),
    ],
)
def test_a_zoo_of_which_nothing_fits_is_refused(choices, where, do, says):
    with pytest.raises(InvalidInputError) as caught:
        zoo_branches(choices, (16, 2, 3))
    says(caught.value, what="none of the choices fits a feature map of 2x3", where=where, do=do)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_repeat_the_whole_choice_each_with_norm_and_relu(kind):
    one, three = (build_convolution(convolution(kind, layers=layers), 6) for layers in (1, 3))
    assert [type(part) for part in three] == 3 * [type(part) for part in one]
    parameters = [parameter for part in three for parameter in part.parameters()]
    assert len({id(parameter) for parameter in parameters}) == len(parameters)
    features = torch.randn(2, 6, 7, 7)
    assert three(features).shape == features.shape
    if kind != "none":
        assert isinstance(three[-1], nn.ReLU)


def test_a_stack_fits_where_one_layer_fits():
    stacked = Zoo.model_validate(
        {"convolutions": [{"kind": "separable", "layers": 3}], "fullyConnected": [{"pooledSize": 1}]}
    )
    assert [c.name for c, _ in zoo_branches(stacked, (4, 3, 3))] == ["separable3-x3"]
    with pytest.raises(InvalidInputError):
        zoo_branches(stacked, (4, 2, 2))


def test_a_branch_is_its_convolution_and_its_head():
    branch = build_branch(convolution("separable"), fc(2, 16), (6, 8, 8), 5)
    parts = build_convolution(convolution("separable"), 6), build_head(fc(2, 16), (6, 8, 8), 5)
    for child, part in zip(branch.children(), parts, strict=True):
        shapes = {key: value.shape for key, value in part.state_dict().items()}
        assert {key: value.shape for key, value in child.state_dict().items()} == shapes


def test_the_default_zoo_fits_the_networks_of_the_papers():
    assert len(Zoo().convolutions) * len(Zoo().fully_connected) == 105
    check_zoo(Zoo(), [(16, 32, 32), (32, 16, 16), (64, 8, 8)], 10, 64 * 2**20)


@pytest.mark.parametrize(
    ("choices", "memory_bytes", "what", "where", "do"),
    [
        (zoo([("none", 3), ("dilated", 5)], [1]), None, "dilated5 sees 9 pixels", "zoo.convolutions.1", "kernelSize"),
        (zoo([("none", 3)], [1, 9]), None, "pooled to 9x9", "zoo.fullyConnected.1", "pooledSize"),
        # (64 * 16 + 1) * 10 weights of four bytes, four times
        (zoo([("none", 3)], [1, 4]), 163_999, "pool4 takes 160Ki", "zoo.fullyConnected.1", "cultivation.memory"),
    ],
)
def test_a_choice_that_can_be_had_at_no_exit_is_refused(choices, memory_bytes, what, where, do, says):
    with pytest.raises(InvalidInputError) as caught:
        check_zoo(choices, [(16, 8, 8), (64, 4, 4)], 10, memory_bytes)
    says(caught.value, what=what, where=where, do=do)


def test_a_choice_that_fits_at_one_exit_is_not_refused():
    check_zoo(zoo([("dilated", 5)], [9]), [(16, 9, 9), (64, 4, 4)], 10, None)
    check_zoo(zoo([("none", 3)], [1, 4]), [(16, 8, 8), (64, 4, 4)], 10, 164_000)


def test_of_the_default_zoo_what_fits_nowhere_is_left_out() -> None:
    shapes = [(16, 6, 6), (32, 3, 3)]
    check_zoo(Zoo(), shapes, 10, None)
    names = {convolution.name for convolution, _ in zoo_branches(Zoo(), shapes[0])}
    assert "depthwise5" in names
    assert "dilated5" not in names
    written = Zoo.model_validate({"convolutions": [{"kind": "none"}, {"kind": "dilated", "kernelSize": 5}]})
    with pytest.raises(InvalidInputError, match=r"spec\.zoo\.convolutions\.1"):
        check_zoo(written, shapes, 10, None)
