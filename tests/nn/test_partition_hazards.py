"""One graph hazard a test: where a chain is cut, where it is not, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from meedge_ray.domain.errors import PartitionError
from meedge_ray.nn.partition import partition

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """A stem, a body of 4 channels that subclasses write, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4 * 64, 5)

    def body(self, x):
        return x

    def forward(self, x):
        return self.fc(torch.flatten(self.body(self.first(x)), 1))


def chain_of(model, shape=SHAPE):
    """Partition, and hold the chain to the model: equal bits, and exits that later blocks leave alone."""
    x = torch.randn(2, *shape)
    with torch.no_grad():
        expected = model.eval()(x.clone())
        chain = partition(model, shape)
        features = chain.features(x.clone())
        kept = [feature.clone() for feature in features]
        assert torch.equal(chain.run(x.clone()), expected)
        if features:
            assert torch.equal(chain.pieces[-1].module(features[-1]), expected)
        assert all(map(torch.equal, features, kept))
    return chain


def names(model):
    return [piece.name for piece in chain_of(model).pieces]


def test_norm_activation_and_pooling_stay_with_the_convolution_before_them():
    class Plain(Net):
        def body(self, x):
            return torch.sigmoid(functional.dropout(self.relu(self.bn(self.a(self.relu(x)))), training=self.training))

    chain = chain_of(Plain())
    assert [piece.name for piece in chain.pieces] == ["stem", "a", "tail"]
    assert [sorted(dict(piece.module.named_children())) for piece in chain.pieces] == [
        ["first", "relu"],
        ["a", "bn", "relu"],
        ["fc"],
    ]


def test_what_comes_before_the_first_convolution_belongs_to_the_stem():
    class Scaled(Net):
        def forward(self, x):
            return super().forward((x / 255 - 0.5) * 2)

    assert names(Scaled()) == ["stem", "tail"]


def test_an_activation_written_with_two_operations_is_not_cut_open():
    class Swish(Net):
        def body(self, x):
            x = self.a(x)
            return x * torch.sigmoid(x)

    assert names(Swish()) == ["stem", "a", "tail"]


def test_a_residual_block_is_not_cut_open():
    class Residual(Net):
        def body(self, x):
            return self.relu(self.b(self.relu(self.a(x))) + x)

    assert [set(dict(p.module.named_children())) for p in chain_of(Residual()).pieces] == [
        {"first"},
        {"a", "b", "relu"},
        {"fc"},
    ]


def test_a_sum_that_feeds_norm_and_shortcut_is_an_exit():
    class Preactivation(Net):
        def body(self, x):
            x = x + self.a(functional.relu(self.bn(x)))
            return x + self.b(functional.relu(self.bn(x)))

    assert [set(dict(p.module.named_children())) for p in chain_of(Preactivation()).pieces] == [
        {"first"},
        {"a", "bn"},
        {"b", "bn"},
        {"fc"},
    ]


def test_no_cut_where_the_next_block_overwrites_the_exit_in_place():
    class Overwriting(Net):
        def body(self, x):
            return self.a(self.relu(x)) + x

    assert names(Overwriting()) == ["stem", "tail"]
    assert chain_of(Overwriting()).pieces[0].module.a is not None


def test_no_cut_where_a_view_of_the_exit_is_overwritten():
    class Viewing(Net):
        def body(self, x):
            x.view(-1).mul_(0.5)
            return self.a(x)

    assert [set(dict(p.module.named_children())) for p in chain_of(Viewing()).pieces] == [
        {"first", "a"},
        {"fc"},
    ]


def test_an_addition_in_place_leaves_the_exit_before_it_alone():
    class Adding(Net):
        def body(self, x):
            y = self.a(x)
            y += x
            return self.b(y)

    assert names(Adding()) == ["stem", "a", "b", "tail"]


def test_parallel_paths_joined_by_a_concatenation_are_one_block():
    class Inception(Net):
        def body(self, x):
            return torch.cat([self.a(x), self.b(x)], dim=1)[:, ::2]

    assert len(names(Inception())) == 3


def test_a_split_is_not_cut_until_it_is_joined():
    class Split(Net):
        def body(self, x):
            left, right = self.a(x).chunk(2, dim=1)
            return self.b(torch.cat([right, left], dim=1))

    assert names(Split()) == ["stem", "a", "b", "tail"]


def test_a_module_used_twice_is_in_both_blocks_under_two_names():
    class Twice(Net):
        def body(self, x):
            return self.a(torch.tanh(self.a(x)))

    chain = chain_of(Twice())
    assert [piece.name for piece in chain.pieces] == ["stem", "a", "a-2", "tail"]
    assert chain.pieces[1].module.a is chain.pieces[2].module.a


def test_a_size_taken_where_it_is_used_does_not_hinder():
    class View(Net):
        def forward(self, x):
            x = self.a(self.first(x))
            return self.fc(x.view(x.size(0), -1))

    assert names(View()) == ["stem", "a", "tail"]


def test_an_unpacked_shape_does_not_hinder():
    class Shuffle(Net):
        def body(self, x):
            n, c, h, w = x.shape
            return self.a(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

    assert names(Shuffle()) == ["stem", "a", "tail"]


def test_a_parameter_used_directly_goes_with_its_block():
    class Scaled(Net):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.rand(4, 1, 1))

        def body(self, x):
            scale = self.scale.exp()  # computed once, used in two blocks
            return self.b(self.a(x) * scale) * scale

    chain = chain_of(Scaled())
    assert [piece.name for piece in chain.pieces] == ["stem", "a", "b", "tail"]
    assert [hasattr(piece.module, "scale") for piece in chain.pieces] == [False, True, True, False]


def test_a_functional_convolution_makes_a_block():
    class Functional(Net):
        def body(self, x):
            return functional.relu(functional.conv2d(x, self.a.weight, padding=1))

    assert names(Functional()) == ["stem", "block", "tail"]


def test_a_map_with_channels_last_is_no_exit():
    class ChannelsLast(Net):
        def __init__(self):
            super().__init__()
            self.wide = nn.Conv2d(4, 16, 1)
            self.mix = nn.Linear(16, 4)

        def body(self, x):
            return self.mix(self.wide(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    shapes = [piece.output_shape for piece in chain_of(ChannelsLast()).pieces[:-1]]
    assert shapes == [(4, 8, 8), (16, 8, 8), (4, 8, 8)]


def test_an_optional_input_that_is_not_used_does_not_hinder():
    class Optional(Net):
        def forward(self, x, mask=None):
            return super().forward(x)

    assert names(Optional()) == ["stem", "tail"]


def test_a_model_left_in_training_mode_is_partitioned_as_it_infers():
    class Dropping(Net):
        def body(self, x):
            return self.a(functional.dropout(x, training=self.training))

    model = Dropping().train()
    chain = partition(model, SHAPE)
    x = torch.randn(2, *SHAPE)
    assert torch.equal(chain.run(x), chain.run(x))
    assert not model.training


class Condition(Net):
    def body(self, x):
        return self.a(x) if x.mean() > 0 else x


class Loop(Net):
    def body(self, x):
        for row in x:
            x = x + row
        return x


class Length(Net):
    def body(self, x):
        return x * len(x)


class TwoInputs(Net):
    def forward(self, x, mask):
        return super().forward(x * mask)


class NoInput(Net):
    def forward(self):
        return self.fc.weight


class TwoOutputs(Net):
    def forward(self, x):
        return super().forward(x), x


class BatchLost(Net):
    def forward(self, x):
        return super().forward(x).mean()


class Flat(Net):
    def forward(self, x):
        return self.fc(torch.flatten(x, 1).repeat(1, 2)[:, :256])


class EarlySize(Net):
    def forward(self, x):
        n = x.size(0)
        return self.fc(self.a(self.first(x)).view(n, -1))


class InputKept(Net):
    def forward(self, x):
        return self.fc(torch.flatten(self.first(x), 1) + torch.flatten(x, 1)[:, :1])


class NoClassifier(Net):
    def forward(self, x):
        return self.first(x).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "what", "where", "do"),
    [
        (Condition, "a condition in the model depends on", "gt", "operations on tensors"),
        (Loop, "a loop in the model depends on", "first", "operations on tensors"),
        (Length, "torch.fx cannot trace the model after this node: 'len'", "first", "symbolic_trace"),
        (TwoInputs, "uses 2 of its 2 inputs", "mask", "takes one batch of inputs"),
        (NoInput, "uses 0 of its 0 inputs", "forward", "takes one batch of inputs"),
        (TwoOutputs, "several outputs or none", "output", "returns the logits alone"),
        (BatchLost, "no tensor with the batch as its first dimension", "mean", "[N, classes]"),
        (Flat, "no feature map [N, C, H, W] larger than 1x1", "fc", "convolutional model"),
        (EarlySize, "needed longest", "size", "compute sizes where they are used"),
        (InputKept, "needed longest", "x", "a chain of blocks"),
        (NoClassifier, "only one block has a convolution or linear layer", "mean", "two layers"),
    ],
)
def test_what_cannot_be_a_chain_is_refused(model, what, where, do, says):
    with pytest.raises(PartitionError) as caught:
        partition(model(), SHAPE)
    says(caught.value, what=what, where=where, do=do)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 8), (3,)])
def test_inputs_the_model_cannot_take_are_refused_with_the_node(shape, says):
    with pytest.raises(PartitionError) as caught:
        partition(Net(), shape)
    says(
        caught.value,
        what="the model cannot run on this input",
        where="fc" if shape == (3, 9, 8) else "first",
        do="Check that the data's channels and image size",
    )
