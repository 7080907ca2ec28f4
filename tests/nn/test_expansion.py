"""Merged and shrunk blocks for backbones of every kind."""

import copy
import warnings

import hypothesis.strategies as st
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional

from meedge_ray.api import elastic_model
from meedge_ray.domain.errors import PartitionError
from meedge_ray.nn.backbones import build_backbone
from meedge_ray.nn.expansion import basic_blocks, expand
from meedge_ray.nn.export import export_unit
from meedge_ray.nn.merging import MadeBlock, made_block
from meedge_ray.nn.partition import partition
from meedge_ray.nn.shrinking import flattens, inner_layers, shrunk, widths

EXPANDED = [
    # architecture, input shape, what is added, growths of each kind
    ("resnet20", (3, 32, 32), {"shrunk": ["0.5"], "mergedBlocks": 2}, 8, 9),
    ("vgg16", (3, 32, 32), {"shrunk": ["0.75"]}, 9, 6),
    ("alexnet", (3, 32, 32), {"shrunk": ["0.75"]}, 1, 2),
    ("torchvision/resnet18", (3, 64, 64), {"shrunk": ["0.75"], "mergedBlocks": 2}, 6, 7),
    ("torchvision/mobilenet_v2", (3, 32, 32), {"shrunk": ["0.5"], "mergedBlocks": 2}, 14, 12),
    ("torchvision/efficientnet_b0", (3, 32, 32), {"shrunk": ["0.5"], "mergedBlocks": 2}, 13, 11),
    ("torchvision/squeezenet1_1", (3, 64, 64), {"shrunk": ["0.5"], "mergedBlocks": 2}, 7, 8),
]
SMALL_MSDNET = {"blocks": 4, "step": 1, "base": 1, "channels": 4}


def spec(**values):
    return elastic_model.Supernet.model_validate(values)


def chain_of(architecture, shape, **arguments):
    """A chain of the test's own: expanding freezes it."""
    model = build_backbone(architecture, input_shape=shape, classes=10, arguments=arguments)
    return partition(model, shape)


def model_chain(*layers, shape=(3, 8, 8)):
    return partition(nn.Sequential(*layers), shape)


@pytest.mark.parametrize(("architecture", "shape", "values", "merged", "shrunken"), EXPANDED)
def test_growths_fit_their_places_are_light_and_run_as_units(
    backbone, age, architecture, shape, values, merged, shrunken
):
    case = copy.deepcopy(backbone(architecture, shape))
    chain = case.chain
    supernet = expand(chain, spec(**values))
    kinds = [growth.kind for growth in supernet.growths]
    assert (kinds.count("merged"), kinds.count("shrunk")) == (merged, shrunken)
    with torch.no_grad():
        assert torch.equal(supernet(case.x), case.logits)
    names = [growth.name for growth in supernet.growths] + [piece.name for piece in chain.pieces]
    assert len(set(names)) == len(names)
    blocks = basic_blocks(chain.pieces, sum(piece.parameters for piece in chain.pieces) * 35 // 100)
    originals = {p.data_ptr() for piece in chain.pieces for p in piece.module.parameters()}
    places = [case.x, *supernet.features(case.x)]
    for growth in supernet.growths:
        age(growth.module)
        replaced = chain.pieces[growth.start : growth.end]
        assert 0 < growth.start < growth.end < len(chain.pieces)
        assert growth.parameters == sum(p.numel() for p in growth.module.parameters())
        assert growth.parameters < sum(piece.parameters for piece in replaced)
        assert 0 < growth.flops < sum(piece.flops for piece in replaced)
        assert originals.isdisjoint(p.data_ptr() for p in growth.module.parameters())
        inside = [block.piece for block in blocks if growth.start <= block.start and block.end <= growth.end]
        most_parameters, most_flops = max(each.parameters for each in inside), max(each.flops for each in inside)
        assert growth.parameters <= most_parameters
        assert growth.flops <= most_flops
        if type(growth.module) is MadeBlock and architecture == "vgg16":
            assert growth.parameters > most_parameters / 2 or growth.flops > most_flops / 2
        x = places[growth.start]
        before = x.clone()
        with torch.no_grad():
            y = growth.module(x)
        assert y.shape == places[growth.end].shape
        assert torch.equal(x, before)
        unit = export_unit(copy.deepcopy(growth.module), tuple(x.shape[1:]))
        session = onnxruntime.InferenceSession(unit, providers=["CPUExecutionProvider"])
        (found,) = session.run(["y"], {"x": x.numpy()})
        assert np.abs(found - y.numpy()).max() <= 1e-4 * max(1.0, float(y.abs().max()))


@pytest.mark.parametrize(
    ("architecture", "granularity", "expected"),
    [
        ("resnet20", 35, [(i, i + 1) for i in range(1, 10)]),
        ("vgg16", 35, [(1, 3), (3, 5), (5, 7), (7, 9), (9, 11), (11, 13)]),
        ("vgg16", 20, [(1, 2), (2, 4), (4, 6), (6, 8), *((i, i + 1) for i in range(8, 13))]),
        ("vgg16", 5, [(1, 3), (3, 5), (5, 6), (6, 7)]),
        ("alexnet", 35, [(1, 3), (3, 5)]),
        ("lenet", 35, [(1, 2)]),
        # expansion, depthwise and projection are one where the stride leaves out the shortcut
        (
            "torchvision/mobilenet_v2",
            35,
            [(1, 2), (2, 3), (3, 6), (6, 7), (7, 10), (10, 11), (11, 12), (12, 15), (15, 16), (16, 17), (17, 18)]
            + [(18, 21), (21, 22), (22, 23), (23, 24)],
        ),
    ],
)
def test_single_layers_are_joined_to_basic_blocks(backbone, architecture, granularity, expected):
    shape = (1, 28, 28) if architecture == "lenet" else (3, 32, 32)
    pieces = backbone(architecture, shape).chain.pieces
    limit = sum(piece.parameters for piece in pieces) * granularity // 100
    blocks = basic_blocks(pieces, limit)
    assert [(block.start, block.end) for block in blocks] == expected
    for block in blocks:
        inside = pieces[block.start : block.end]
        assert block.piece.parameters == sum(piece.parameters for piece in inside) <= limit
        assert block.piece.flops == sum(piece.flops for piece in inside)
        assert (block.piece.input_shape, block.piece.output_shape) == (inside[0].input_shape, inside[-1].output_shape)


def test_a_merged_block_starts_as_a_copy_of_the_largest_that_fits():
    chain = chain_of("resnet20", (3, 32, 32))
    found = {(growth.start, growth.end): growth for growth in expand(chain, spec(shrunk=[])).growths}
    for (start, end), copied in {(1, 3): 1, (2, 5): 4, (4, 6): 4, (7, 10): 7, (8, 10): 8}.items():
        assert found[start, end].name == f"merged-{start}-{end}"
        piece = chain.pieces[copied].module
        x = torch.randn(2, *chain.pieces[start].input_shape)
        with torch.no_grad():
            assert torch.equal(found[start, end].module(x), piece(x))


def test_shrinking_keeps_the_weights_of_the_strongest_channels(age):
    block = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 5, 1)
    ).eval()
    age(block)
    with torch.no_grad():
        block[0].weight[[1, 4, 5, 7]] *= 0.01
        block[1].weight[[1, 4, 5, 7]] *= 0.01
        block[3].weight[:, [1, 4, 5, 7]] *= 0.01
    before = {key: value.clone() for key, value in block.state_dict().items()}
    smaller = shrunk(block, (3, 6, 6), 0.5)
    kept = [0, 2, 3, 6]
    assert smaller is not None
    assert torch.equal(smaller[0].weight, block[0].weight[kept])
    assert torch.equal(smaller[1].running_var, block[1].running_var[kept])
    assert torch.equal(smaller[3].weight, block[3].weight[:, kept])
    assert torch.equal(smaller[3].bias, block[3].bias)
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())


@pytest.mark.parametrize(("architecture", "index"), [("resnet20", 4), ("torchvision/mobilenet_v2", 6)])
def test_a_shrunk_block_says_what_the_block_says_without_those_channels(backbone, architecture, index):
    piece = backbone(architecture, (3, 32, 32)).chain.pieces[index]
    block = copy.deepcopy(piece.module)
    *inner, _ = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    weak = torch.arange(len(inner[0].weight)) % 2 == 0
    with torch.no_grad():
        for norm in inner:  # silent behind the normalization, and weak before it
            norm.weight[weak] = norm.bias[weak] = 0
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d) and len(layer.weight) == len(weak):
                layer.weight[weak] *= 1e-3
            if isinstance(layer, nn.Conv2d) and layer.weight.shape[1] == len(weak):
                layer.weight[:, weak] *= 1e-3
    smaller = shrunk(block, piece.input_shape, 0.5)
    assert smaller is not None
    assert sum(p.numel() for p in smaller.parameters()) < 0.6 * piece.parameters
    x = torch.randn(2, *piece.input_shape)
    with torch.no_grad():
        assert torch.allclose(smaller(x), block(x), atol=1e-5)


def test_a_width_that_leaves_the_block_is_not_shrunk(backbone):
    pieces = backbone("torchvision/resnet18", (3, 64, 64)).chain.pieces
    for piece in (pieces[1], pieces[3]):  # with and without a convolution in the shortcut
        block = copy.deepcopy(piece.module)
        names = {
            name.split(".")[-1]
            for name, layer in block.named_modules()
            if layer in inner_layers(block, piece.input_shape)
        }
        assert names == {"conv1", "bn1", "conv2"}


def test_ratios_that_take_the_same_channels_give_one_block():
    chain = model_chain(
        nn.Conv2d(3, 4, 3),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
    )
    growths = expand(chain, spec(shrunk=["0.25", "0.26", "0.5", "0.333", "0.9"], granularityPercent=90)).growths
    # four channels: one, two (0.26 rounds up), two, two and all but none can go
    assert [(growth.name, growth.kind) for growth in growths] == [("shrunk25-1", "shrunk"), ("shrunk26-1", "shrunk")]


def test_names_are_never_those_of_blocks():
    layers = {
        "a": nn.Conv2d(3, 4, 3),
        "shrunk12-5-1": nn.Identity(),
        "b": nn.Conv2d(4, 8, 3, padding=1),
        "shrunk25-1": nn.Conv2d(8, 4, 3, padding=1),
        "c": nn.Flatten(),
        "d": nn.Linear(4 * 36, 5),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    chain = partition(model, (3, 8, 8))
    names = [growth.name for growth in expand(chain, spec(shrunk=["0.25", "0.125"], granularityPercent=90)).growths]
    assert "shrunk25-1" in {piece.name for piece in chain.pieces}
    assert names == ["shrunk25-1-x", "shrunk12.5-1"]


@pytest.mark.parametrize("ending", ["relu", "pool", "none"])
def test_a_made_block_ends_as_what_it_replaces(ending):
    ends = {"relu": [nn.ReLU(inplace=True)], "pool": [nn.ReLU(), nn.AvgPool2d(2)], "none": []}[ending]
    chain = model_chain(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.Sequential(nn.Conv2d(16, 10, 3, padding=1), *ends),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 3),
    )
    (growth,) = expand(chain, spec(shrunk=[], granularityPercent=90)).growths
    assert isinstance(growth.module, MadeBlock)
    assert (growth.start, growth.end) == (1, 5)
    with torch.no_grad():
        lowest = growth.module(torch.randn(2, 4, 8, 8)).min()
    assert (lowest >= 0) == (ending != "none")


def test_the_seed_decides_the_made_weights_and_torch_s_generator_stays():
    def weights(seed):
        torch.manual_seed(1)
        chain = chain_of("alexnet", (3, 16, 16))
        torch.manual_seed(2)
        supernet = expand(chain, spec(seed=seed))
        assert torch.initial_seed() == 2
        following = torch.rand(1)
        torch.manual_seed(2)
        assert torch.equal(following, torch.rand(1))
        return [p.clone() for growth in supernet.growths for p in growth.module.parameters()]

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_nothing_merged_and_nothing_shrunk_where_so_asked():
    assert {growth.kind for growth in expand(chain_of("resnet8", (3, 8, 8)), spec(mergedBlocks=1)).growths} == {
        "shrunk"
    }
    assert {growth.kind for growth in expand(chain_of("resnet8", (3, 8, 8)), spec(shrunk=[])).growths} == {"merged"}


def test_a_backbone_without_anything_to_replace_is_refused(backbone, says):
    with pytest.raises(PartitionError) as caught:
        expand(chain_of("lenet", (1, 28, 28)), spec())
    says(caught.value, what="of the model's 3 blocks none", where="spec.supernet", do="deeper model")
    with pytest.raises(PartitionError) as caught:
        expand(chain_of("alexnet", (3, 32, 32)), spec(granularityPercent=1))
    says(caught.value, what="the smallest has 110784", where="spec.supernet.granularityPercent", do="Raise it")


def test_packed_maps_are_shrunk_part_by_part_and_never_merged():
    chain = chain_of("msdnet", (3, 8, 8), **SMALL_MSDNET)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before = chain.run(x)
    supernet = expand(chain, spec(shrunk=["0.5"]))
    assert [growth.name for growth in supernet.growths] == ["shrunk50-1", "shrunk50-2"]
    with torch.no_grad():
        assert torch.equal(supernet(x), before)
        for link, growth in enumerate(supernet.growths, len(chain.pieces)):
            export_unit(growth.module, chain.pieces[growth.start].input_shape)
            subnet = tuple(link if place == growth.start else place for place in range(len(chain.pieces)))
            assert supernet(x, subnet).shape == before.shape


def test_what_torch_pruning_cannot_follow_is_left_alone():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.Parameter(torch.randn(6, 6, 3, 3)) for _ in range(2))

        def forward(self, x):
            y = functional.relu(functional.conv2d(x, self.first, padding=1))
            return functional.conv2d(y, self.second, padding=1) + x

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1)
            self.scale = nn.Buffer(torch.rand(8, 1, 1))

        def forward(self, x):
            return self.second(self.first(x) * self.scale)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shrunk(Functional().eval(), (6, 8, 8), 0.5) is None
        chain = model_chain(
            nn.Conv2d(3, 6, 3, padding=1),
            *(Residual(Functional()) for _ in range(2)),
            nn.Conv2d(6, 6, 1),
            nn.Flatten(),
            nn.Linear(6 * 64, 5),
        )
        assert {growth.kind for growth in expand(chain, spec(granularityPercent=90)).growths} == {"merged"}
        chain = model_chain(
            nn.Conv2d(3, 6, 3, padding=1),
            *(Residual(Broken()) for _ in range(2)),
            nn.Conv2d(6, 6, 1),
            nn.Flatten(),
            nn.Linear(6 * 64, 5),
        )
        assert {growth.kind for growth in expand(chain, spec(granularityPercent=90)).growths} == {"merged"}


class Residual(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (1, 3, 4, 4), False),
        (nn.Flatten(), (1, 3, 4, 4), True),
        (nn.Flatten(), (1, 3, 1, 1), False),
        (nn.Linear(4, 6), (1, 3, 4, 4), False),  # channels last: a view inside, but no map is cut
        (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3), nn.Unflatten(1, (3, 1, 1))),
            (1, 3, 4, 4),
            False,
        ),
    ],
)
def test_flattening_is_a_map_that_becomes_a_row(module, shape, expected):
    assert flattens(module, shape) == expected


shapes = st.tuples(st.integers(1, 24), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=25, deadline=None)
@given(
    start=shapes, end=shapes, depthwise=st.booleans(), parameters=st.integers(10, 6000), flops=st.integers(100, 10**6)
)
def test_a_made_block_has_its_shapes_and_keeps_its_bounds(start, end, depthwise, parameters, flops):
    def made(parameters):
        return made_block(
            start, end, depthwise=depthwise, nonnegative=False, most_parameters=parameters, most_flops=flops
        )

    block = made(parameters)
    if block is None:  # not even a pointwise convolution with its normalization
        assert start[0] * end[0] + 2 * end[0] > parameters or 2 * start[0] * end[0] * end[1] * end[2] > flops
        return
    x = torch.randn(2, *start)
    with torch.no_grad():
        assert block(x).shape == (2, *end)
    count = sum(p.numel() for p in block.parameters())
    assert count <= parameters
    more = made(4 * parameters)
    assert more is not None
    assert widths(more)  # what fits keeps fitting with more
    assert sum(p.numel() for p in more.parameters()) >= min(count, parameters // 4)
