import sys

import pytest
import torch
from torch import nn

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.nn.backbones import build_backbone


def build(architecture, shape=(3, 32, 32), classes=10, **arguments):
    return build_backbone(architecture, input_shape=shape, classes=classes, arguments=arguments)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        ("lenet", (1, 28, 28)),
        ("lenet", (3, 32, 32)),
        ("alexnet", (1, 32, 32)),
        ("vgg16", (4, 32, 32)),
        ("resnet8", (3, 32, 32)),
        ("resnet20", (1, 28, 28)),
        ("resnet14", (2, 9, 13)),
        ("mobilenetv2", (3, 32, 32)),
        ("torchvision/resnet18", (3, 32, 32)),
    ],
)
def test_a_backbone_gives_one_logit_a_class(architecture, shape):
    model = build(architecture, shape, classes=7).eval()
    with torch.no_grad():
        assert model(torch.randn(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(("depth", "weight_layers"), [(8, 8), (20, 20), (56, 56), (110, 110)])
def test_a_resnet_has_as_many_weight_layers_as_its_depth(depth, weight_layers):
    model = build(f"resnet{depth}")
    assert sum(isinstance(part, nn.Conv2d | nn.Linear) for part in model.modules()) == weight_layers


def test_resnet20_has_the_published_number_of_parameters():
    assert sum(parameter.numel() for parameter in build("resnet20").parameters()) == 269_722


def test_mobilenetv2_has_the_published_number_of_parameters_and_fewer_where_it_is_narrower():
    # 2.2 million without the classifier of ImageNet (Sandler et al. 2018, table 4: 3.4 million with it).
    parameters = sum(parameter.numel() for parameter in build("mobilenetv2", classes=1000).parameters())
    assert parameters == 3_504_872
    narrow = build("mobilenetv2", width_percent=50)
    assert sum(parameter.numel() for parameter in narrow.parameters()) < 0.35 * parameters


def test_a_resnet_shortcut_pads_new_channels_with_zeros_on_both_sides():
    block = build("resnet8").layer2[0].eval()
    nn.init.zeros_(block.bn2.weight)  # silences everything but the shortcut
    x = torch.rand(1, 16, 8, 8)
    with torch.no_grad():
        y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_an_own_model_gets_what_its_signature_names(tmp_path, monkeypatch):
    (tmp_path / "own_backbone.py").write_text(
        "from torch import nn\n"
        "def bare(width): return nn.Conv2d(3, width, 1)\n"
        "def told(input_shape, classes): return nn.Conv2d(input_shape[0], classes, 1)\n"
        "def broken(): raise OSError('no disk')\n"
        "def word(): return 'model'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build("own_backbone:bare", width=5).out_channels == 5
    told = build("own_backbone:told", (2, 8, 8), classes=4)
    assert (told.in_channels, told.out_channels) == (2, 4)
    monkeypatch.delitem(sys.modules, "own_backbone")


@pytest.mark.parametrize(
    ("architecture", "arguments", "what", "where", "do"),
    [
        ("alexnett", {}, "no architecture 'alexnett'", "architecture", "Did you mean alexnet? Choose one of"),
        ("xyz", {}, "no architecture 'xyz'", "architecture", "torchvision/NAME"),
        ("resnet18", {}, "no resnet of depth 18", "architecture", "resnet20, or torchvision/resnet18?"),
        ("resnet2", {}, "no resnet of depth 2", "architecture", "resnet8"),
        ("resnet9998", {}, "no resnet of depth 9998", "architecture", "resnet1202"),
        (
            "torchvision/resnet19",
            {},
            "no classification model 'resnet19'",
            "architecture",
            "Did you mean resnet1",
        ),
        ("torchvision/resnet18", {"depth": 3}, "depth=3: TypeError", "arguments", "keyword arguments"),
        ("lenet", {"width": 3}, "width=3: TypeError", "arguments", "keyword arguments"),
        ("no_such_package.x:y", {}, "cannot be imported: ModuleNotFoundError", "architecture", "PYTHONPATH"),
        ("json:dumb", {}, "json has no callable 'dumb'", "architecture", "Did you mean dump"),
        (":", {}, "cannot be imported: ValueError", "architecture", "package.module:callable"),
        (
            "json:dumps",
            {"obj": 1},
            "returned str, which is no torch.nn.Module",
            "architecture",
            "Name a class",
        ),
    ],
)
def test_a_name_that_cannot_be_built_is_refused(architecture, arguments, what, where, do, says):
    with pytest.raises(InvalidInputError) as caught:
        build(architecture, **arguments)
    says(caught.value, what=what, where=f"spec.model.{where}", do=do)


@pytest.mark.parametrize(("architecture", "side", "least"), [("lenet", 15, 16), ("alexnet", 7, 8), ("vgg16", 31, 32)])
def test_images_too_small_for_a_backbone_are_refused(architecture, side, least, says):
    build(architecture, (3, least, least))
    with pytest.raises(InvalidInputError) as caught:
        build(architecture, (3, 40, side))
    says(
        caught.value,
        what=f"{architecture} needs images of at least {least}x{least}, not 40x{side}",
        where="spec.model.architecture",
        do="Set spec.data.imageSize to 32",
    )
