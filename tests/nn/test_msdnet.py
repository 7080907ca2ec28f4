import onnxruntime
import pytest
import torch
from torch import nn

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.nn.backbones import build_backbone
from meedge_ray.nn.backbones.msdnet import MSDNet
from meedge_ray.nn.export import export_unit
from meedge_ray.nn.multi_exit import MultiExit, own_heads
from meedge_ray.nn.partition import partition

TINY = {"blocks": 4, "step": 1, "base": 1, "channels": 4}


def build(shape=(3, 32, 32), **arguments):
    return build_backbone("msdnet", input_shape=shape, classes=10, arguments=arguments)


@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize(("blocks", "step", "base", "channels"), [(21, 2, 4, 16), (40, 1, 2, 8), (2, 3, 1, 4)])
def test_every_block_is_an_exit(side, blocks, step, base, channels):
    model = build((1, side, side), blocks=blocks, step=step, base=base, channels=channels)
    chain = partition(model, (1, side, side))
    assert len(chain.pieces) == blocks
    assert [len(block.layers) for block in model.exit_blocks] == [base] + [step] * (blocks - 1)
    network = MultiExit((piece.module for piece in chain.pieces), (head.module for head in own_heads(model)))
    x = torch.rand(2, 1, side, side)
    with torch.no_grad():
        logits = network(x)
        assert [tuple(each.shape) for each in logits] == [(2, 10)] * blocks
        assert torch.equal(logits[-1], model(x))


@pytest.mark.parametrize(("side", "sides"), [(28, [28, 14, 7]), (32, [32, 16, 8])])
def test_after_each_third_of_the_layers_the_finest_scale_is_dropped(side, sides):
    chain = partition(build((3, side, side), blocks=9, step=1, base=1, channels=4), (3, side, side))
    # A drop is in the layer after: it still reads the finer scale.
    assert [chain.map_shape(index)[1] for index in range(8)] == [sides[0]] * 3 + [sides[1]] * 3 + [sides[2]] * 2


def test_scales_hold_1_2_4_times_the_channels_and_a_transition_halves_them():
    model = build(blocks=3, step=2, base=1, channels=16)  # layers 1 to 5, drops in the 3rd and the 5th
    layers = [layer for block in model.exit_blocks for layer in block.layers]
    channels = [[shape[0] for shape in layer.maps.shapes] for layer in layers]
    assert channels == [
        [16 + 4, 32 + 8, 64 + 16],
        [16 + 8, 32 + 16, 64 + 32],
        [(48 + 8) // 2, (96 + 16) // 2],
        [28 + 8, 56 + 16],
        [(72 + 16) // 2],
    ]


def test_a_coarse_scale_reads_its_own_and_the_finer_one():
    layer = build(**TINY | {"base": 2}).exit_blocks[0].layers[1]
    same, down = ([part[1][0] for part in parts] for parts in (layer.same, layer.down))
    assert [convolution.out_channels for convolution in same] == [4, 4, 8]
    assert [(convolution.out_channels, convolution.stride) for convolution in down] == [(4, (2, 2)), (8, (2, 2))]
    assert [part[0][0].out_channels for part in layer.same] == [4, 8, 32]  # 1, 2, 4 times as wide


def test_a_classifier_is_one_convolution_and_two_fc_layers():
    for classifier in build(**TINY).exit_classifiers:
        weighty = [type(part) for part in classifier.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        assert weighty == [nn.Conv2d, nn.Linear, nn.Linear]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 20)])
def test_blocks_and_classifiers_run_as_in_torch(shape, age):
    model = build(shape, **TINY).eval()
    age(model)
    chain = partition(model, shape)
    x = torch.randn(3, *shape)
    for piece, classifier in zip(chain.pieces, [*model.exit_classifiers[:-1], nn.Identity()], strict=True):
        with torch.no_grad():
            after = piece.module(x)
            expected = [(piece.module, piece.input_shape, x, after)]
            if len(piece.output_shape) == 3:
                expected.append((classifier, piece.output_shape, after, classifier(after)))
        for module, input_shape, before, result in expected:
            session = onnxruntime.InferenceSession(export_unit(module, input_shape), providers=["CPUExecutionProvider"])
            (found,) = session.run(["y"], {"x": before.numpy()})
            torch.testing.assert_close(torch.from_numpy(found), result, rtol=1e-4, atol=1e-4)
        x = after


@pytest.mark.parametrize(
    ("arguments", "what", "field"),
    [
        ({"blocks": 1}, "blocks is 1, and must be a whole number of at least 2", "blocks"),
        ({"blocks": "21"}, "blocks is '21', and must be a whole number", "blocks"),
        ({"step": 0}, "step is 0, and must be a whole number of at least 1", "step"),
        ({"base": True}, "base is True, and must be a whole number", "base"),
        ({"channels": 6}, "channels is 6, and must be a multiple of 4", "channels"),
        ({"channels": 0}, "channels is 0, and must be a multiple of 4", "channels"),
    ],
)
def test_arguments_it_cannot_be_built_with_are_refused(arguments, what, field, says):
    with pytest.raises(InvalidInputError) as caught:
        build(**arguments)
    says(caught.value, what=what, where=f"spec.model.arguments.{field}", do="blocks 21 and 40")


@pytest.mark.parametrize(
    ("shape", "what", "do"),
    [
        ((3, 4, 8), "images of at least 8x8, not 4x8", "imageSize to 32"),
        ((3, 30, 30), "30x30 does not divide by 4", "imageSize to 32"),
        ((3, 32, 33), "32x33 does not divide by 4", "imageSize to 36"),
    ],
)
def test_images_that_do_not_halve_twice_are_refused(shape, what, do, says):
    with pytest.raises(InvalidInputError) as caught:
        build(shape)
    says(caught.value, what=what, where="spec.model.architecture", do=do)


def test_the_same_seed_draws_the_same_weights():
    first, second = (torch.manual_seed(3) and MSDNet((3, 8, 8), 10, **TINY) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
