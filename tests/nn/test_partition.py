"""Every backbone, and random ones, as a chain that computes what the model computes."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.nn import functional

from meedge_ray.nn.partition import Chain, partition

BACKBONES = [
    # architecture, input shape, blocks, some of their names
    ("lenet", (1, 28, 28), 3, ["stem", "conv2", "tail"]),
    ("alexnet", (3, 32, 32), 6, ["features.3", "features.10"]),
    ("vgg16", (3, 32, 32), 14, ["features.3", "features.40"]),
    ("resnet20", (3, 32, 32), 11, ["stem", "layer1.0", "layer2.0", "layer3.2", "tail"]),
    ("resnet110", (1, 28, 28), 56, ["layer3.17"]),
    ("torchvision/resnet18", (3, 64, 64), 10, ["layer1.0", "layer4.1"]),
    ("torchvision/mobilenet_v2", (3, 32, 32), 25, ["features.3.conv", "features.13.conv"]),
    ("torchvision/vgg11", (3, 32, 32), 9, ["features.16"]),
    ("torchvision/densenet121", (3, 32, 32), 8, ["features.denseblock1", "features.transition3.conv"]),
    ("torchvision/squeezenet1_1", (3, 64, 64), 18, ["features.3.squeeze", "features.12"]),
    ("torchvision/googlenet", (3, 64, 64), 13, ["inception3a", "inception5b"]),
    ("torchvision/efficientnet_b0", (3, 32, 32), 28, ["features.2.1.block"]),
]


def assert_a_true_chain(model: nn.Module, chain: Chain, x: Tensor, expected: Tensor) -> None:
    """`expected` is what the model returned for x, before anything else ran."""
    with torch.no_grad():
        features = chain.features(x.clone())
        kept = [feature.clone() for feature in features]
        assert torch.equal(chain.run(x.clone()), expected)
        assert torch.equal(chain.pieces[-1].module(features[-1]), expected)
        for feature, before in zip(features, kept, strict=True):
            assert torch.equal(feature, before)
    assert len(features) == chain.exit_count == len(chain.pieces) - 1
    shapes = [tuple(value.shape[1:]) for value in (x, *features, expected)]
    assert [piece.input_shape for piece in chain.pieces] == shapes[:-1]
    assert [piece.output_shape for piece in chain.pieces] == shapes[1:]
    for feature in features:
        assert feature.dim() == 4
        assert feature.shape[2] * feature.shape[3] > 1
    assert len({piece.name for piece in chain.pieces}) == len(chain.pieces)
    assert all(piece.flops > 0 for piece in chain.pieces[:-1])
    assert not any(part.training for piece in chain.pieces for part in piece.module.children())


@pytest.mark.parametrize(("architecture", "shape", "blocks", "names"), BACKBONES)
def test_a_backbone_is_the_chain_of_its_blocks(backbone, architecture, shape, blocks, names):
    case = backbone(architecture, shape)
    assert_a_true_chain(case.model, case.chain, case.x, case.logits)
    assert len(case.chain.pieces) == blocks
    found = [piece.name for piece in case.chain.pieces]
    assert [name for name in found if name in names] == names
    parameters = sum(parameter.numel() for parameter in case.model.parameters())
    assert sum(piece.parameters for piece in case.chain.pieces) == parameters


def test_pieces_count_the_parameters_and_flops_of_one_sample(backbone):
    stem, block, *_, tail = backbone("resnet20", (3, 32, 32)).chain.pieces
    assert stem.parameters == 16 * 3 * 9 + 2 * 16
    assert stem.flops == 2 * 16 * 3 * 9 * 32 * 32
    assert block.flops == 2 * 2 * 16 * 16 * 9 * 32 * 32
    assert (tail.parameters, tail.flops) == (64 * 10 + 10, 2 * 64 * 10)


def test_pieces_share_parameters_with_the_model_under_the_model_s_keys(backbone):
    case = backbone("resnet20", (3, 32, 32))
    merged = {key: value for piece in case.chain.pieces for key, value in piece.module.state_dict().items()}
    model = case.model.state_dict()
    assert merged.keys() == model.keys()
    assert all(merged[key].data_ptr() == model[key].data_ptr() for key in model)


def test_gradients_flow_through_a_chain(backbone):
    case = backbone("lenet", (1, 28, 28))
    loss = case.chain.run(case.x).sum()
    (gradient,) = torch.autograd.grad(loss, [case.model.conv1.weight])
    assert gradient.abs().sum() > 0


class Layer(nn.Module):
    """One of the things people put into networks, from `channels` to `channels`."""

    def __init__(self, kind: str, channels: int, *, inplace: bool) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.side = nn.Conv2d(channels, channels, 1)
        self.join = nn.Conv2d(2 * channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=inplace)
        self.drop = nn.Dropout(inplace=inplace)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.scale = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "conv":
                return self.conv(x)
            case "norm":
                return self.norm(x)
            case "act":
                return self.act(x)
            case "functional":
                return functional.relu(functional.conv2d(x, self.conv.weight, padding=1))
            case "swish":
                x = self.conv(x)
                return x * torch.sigmoid(x)
            case "scale":
                return x * self.scale.exp()
            case "drop":
                return self.drop(x)
            case "pool":
                return self.pool(x)
            case "stride":
                return self.conv(x)[:, :, ::2, ::2]
            case "residual":
                return self.act(self.norm(self.conv(x)) + x)
            case "iadd":
                y = self.conv(x)
                y += x
                return y
            case "preactivation":
                return x + self.conv(self.act(self.norm(x)))
            case "overwriting":  # the shortcut carries what the activation made of x
                return self.conv(self.act(x)) + x
            case "concat":
                return self.join(torch.cat([self.conv(x), self.act(self.side(x))], dim=1))
            case "dense":
                return self.join(torch.cat([x, self.norm(self.conv(x))], 1))
            case "split":
                first, second = torch.chunk(self.conv(x), 2, dim=1)
                return torch.cat([first * 2, self.act(second)], dim=1)
            case "reshape":
                n, c, h, w = x.shape
                return self.conv(x).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            case "squeeze-excite":
                return x * torch.sigmoid(self.side(functional.adaptive_avg_pool2d(x, 1)))
        raise AssertionError(self.kind)


KINDS = [
    *("conv", "norm", "act", "functional", "swish", "scale", "drop", "pool", "stride"),
    *("residual", "iadd", "preactivation", "overwriting", "squeeze-excite"),
    *("concat", "dense", "split", "reshape"),
]


class RandomNet(nn.Module):
    def __init__(self, kinds: list[str], *, inplace: bool, head: str, repeat: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.Sequential(*(Layer(kind, 4, inplace=inplace) for kind in kinds))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.linear = nn.Linear(16, 5)
        self.head = head
        self.repeat = repeat

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.stem(x))
        if self.repeat:
            x = self.layers[0](x)
        x = self.pool(x)
        match self.head:
            case "flatten":
                x = torch.flatten(x, 1)
            case "view":
                x = x.view(x.size(0), -1)
            case _:
                x = x.reshape(x.shape[0], 16)
        return self.linear(x)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
    inplace=st.booleans(),
    head=st.sampled_from(["flatten", "view", "reshape"]),
    repeat=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_network_equals_its_chain_bit_for_bit(kinds, inplace, head, repeat, seed, age):
    torch.manual_seed(seed)
    model = RandomNet(kinds, inplace=inplace, head=head, repeat=repeat)
    age(model)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = model.eval()(x.clone())
    assert_a_true_chain(model, partition(model, (3, 8, 8)), x, expected)
