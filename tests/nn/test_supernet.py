"""A chain with growths beside its blocks: links, subnets, and an original that nothing changes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from meedge_ray.api import elastic_model
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.nn.expansion import expand
from meedge_ray.nn.partition import partition
from meedge_ray.nn.supernet import Growth, Supernet

SHAPE = (3, 12, 12)


class Residual(nn.Module):
    """With everything in place that can be."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.body(x)
        y += self.shortcut(x)
        return self.act(y)


class Written(nn.Module):
    """A user's own network; the first thing it does is to overwrite its input."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Hardtanh(-3, 3, inplace=True)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Residual(8, 8, 1), Residual(8, 12, 2), Residual(12, 12, 1))
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(self.scale(x))).mean((2, 3)))


@pytest.fixture
def model(age):
    model = Written().eval()
    age(model)
    return model


@pytest.fixture
def supernet(model):
    settings = {"shrunk": ["0.5"], "granularityPercent": 60}
    return expand(partition(model, SHAPE), elastic_model.Supernet.model_validate(settings))


def every_subnet(supernet):
    """By brute force: all tuples of links that lead on from where the one before ended."""
    places = len(supernet.chain.pieces)
    links = [(i, i + 1) for i in range(places)] + [(growth.start, growth.end) for growth in supernet.growths]

    def ways(place):
        if place == places:
            yield ()
        for link, (start, end) in enumerate(links):
            if start == place:
                for rest in ways(end):
                    yield (link, *rest)

    return set(ways(0))


def test_the_subnets_are_all_ways_through_blocks_and_growths(supernet):
    subnets = every_subnet(supernet)
    assert len(supernet.growths) == 6  # two and three of three blocks merged, each one shrunk
    assert supernet.space.count == len(subnets) == 2**3 + 2 * 2 + 1  # of the three: one by one, two merged, all merged
    assert supernet.space.original == (0, 1, 2, 3, 4)
    x = torch.randn(2, *SHAPE)
    for subnet in subnets:
        with torch.no_grad():
            outputs = supernet.run(x, subnet)
            assert torch.equal(supernet(x, subnet), outputs[-1][1])
        assert tuple(link for link, _ in outputs) == subnet
        assert outputs[-1][1].shape == (2, 5)
    rng = np.random.default_rng(0)
    assert {supernet.space.random(rng) for _ in range(300)} == subnets


def test_the_original_stays_bit_for_bit_while_growths_learn(model, supernet):
    x = torch.randn(4, *SHAPE)
    with torch.no_grad():
        before = model(x.clone())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    supernet.train()
    optimizer = torch.optim.Adam([p for p in supernet.parameters() if p.requires_grad], lr=0.1)
    for subnet in every_subnet(supernet):
        loss = supernet(x, subnet).square().sum()
        if loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        assert torch.equal(supernet(x), before)
        assert torch.equal(supernet.features(x)[-1], before)
        assert torch.equal(model(x.clone()), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_only_growths_are_trained_and_put_into_training_mode(supernet):
    assert not any(module.training for module in supernet.modules())
    assert supernet.train() is supernet
    assert all(module.training for growth in supernet.growths for module in growth.module.modules())
    assert not any(module.training for piece in supernet.chain.pieces for module in piece.module.modules())
    supernet.eval()
    assert not any(growth.module.training for growth in supernet.growths)
    assert all(p.requires_grad for growth in supernet.growths for p in growth.module.parameters())
    assert not any(p.requires_grad for piece in supernet.chain.pieces for p in piece.module.parameters())


def test_gradients_reach_a_growth_through_the_frozen_blocks_after_it(supernet):
    first = next(i for i, growth in enumerate(supernet.growths) if growth.kind == "shrunk")
    growth = supernet.growths[first]
    link = len(supernet.chain.pieces) + first
    supernet(torch.randn(2, *SHAPE), (0, link, *range(growth.end, 5))).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in growth.module.parameters() if p.dim() > 1)


def test_features_are_the_original_s_outputs_at_every_place(supernet):
    x = torch.randn(2, *SHAPE)
    features = supernet.features(x)
    with torch.no_grad():
        expected = supernet.run(x, supernet.space.original)
    assert [tuple(f.shape[1:]) for f in features] == [piece.output_shape for piece in supernet.chain.pieces]
    assert all(torch.equal(feature, value) for feature, (_, value) in zip(features, expected, strict=True))
    assert not any(feature.requires_grad for feature in features)


def test_no_link_changes_what_it_reads(supernet):
    images = torch.randn(2, *SHAPE)
    kept_images = images.clone()
    places = [images, *supernet.features(images)]
    kept = [place.clone() for place in places]
    for subnet in every_subnet(supernet):
        with torch.no_grad():
            outputs = supernet.run(images, subnet)
            again = supernet.run(images, subnet)
        # An output that a later link overwrote would differ from a link's output alone.
        place = images
        for (link, output), (_, repeated) in zip(outputs, again, strict=True):
            with torch.no_grad():
                alone = [*supernet.blocks, *supernet.added][link](place.clone())
            assert torch.equal(output, alone)
            assert torch.equal(output, repeated)
            place = output
    for growth in supernet.growths:
        with torch.no_grad():
            growth.module(places[growth.start])
    assert torch.equal(images, kept_images)
    assert all(torch.equal(place, before) for place, before in zip(places, kept, strict=True))


def test_links_that_are_no_way_are_refused(supernet):
    for subnet in ((), (0, 1), (1, 2, 3, 4), (0, 0, 1, 2, 3, 4), (0, 1, 2, 3, 99)):
        with pytest.raises(InvalidInputError) as caught:
            supernet(torch.randn(1, *SHAPE), subnet)
        assert caught.value.where == "subnet"


def test_a_copy_shares_nothing_and_its_parts_stay_together(supernet):
    twin = copy.deepcopy(supernet)
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        for subnet in every_subnet(supernet):
            assert torch.equal(twin(x, subnet), supernet(x, subnet))
    pointers = [{p.data_ptr() for p in net.parameters()} for net in (twin, supernet)]
    assert pointers[0].isdisjoint(pointers[1])
    assert all(growth.module is module for growth, module in zip(twin.growths, twin.added, strict=True))
    assert all(piece.module is block for piece, block in zip(twin.chain.pieces, twin.blocks, strict=True))


def test_growths_of_other_origin_are_links_as_well(model):
    chain = partition(model, SHAPE)
    growth = Growth("own", "merged", 1, 3, nn.Conv2d(8, 12, 1, 2), parameters=108, flops=2 * 8 * 12 * 36)
    net = Supernet(chain, [growth])
    assert net.space.count == 2
    assert net(torch.randn(2, *SHAPE), (0, 5, 3, 4)).shape == (2, 5)


def test_every_growth_is_alone_in_one_subnet():
    net = expand(partition(Written(), SHAPE), elastic_model.Supernet())
    blocks = len(net.blocks)
    assert len(net.alone()) == len(net.growths)
    for number, subnet in enumerate(net.alone()):
        net.space.check(subnet)
        assert [link for link in subnet if link >= blocks] == [blocks + number]
