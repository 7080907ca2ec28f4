import pytest
import torch
from torch import Tensor, nn

from meedge_ray.api.elastic_model import Exits
from meedge_ray.domain.errors import PartitionError
from meedge_ray.nn.multi_exit import MultiExit, fresh_heads, has_exits, own_heads
from meedge_ray.nn.partition import partition

SHAPE = (1, 8, 8)


class Declared(nn.Module):
    """Three blocks of one convolution each, and a linear classifier after each."""

    def __init__(self, *, classes=(5, 5, 5), last=None, block=None) -> None:
        super().__init__()
        blocks = [nn.Conv2d(1, 4, 3, padding=1), block or nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)]
        self.exit_blocks = nn.ModuleList(blocks)
        sizes = (256, 256, 128)
        self.exit_classifiers = nn.ModuleList(
            nn.Sequential(nn.Flatten(), nn.Linear(size, count)) for size, count in zip(sizes, classes, strict=False)
        )
        if last is not None:
            self.exit_classifiers[-1] = last

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("its blocks are its chain")


def multi_exit(model):
    chain = partition(model, SHAPE)
    return chain, MultiExit((piece.module for piece in chain.pieces), (head.module for head in own_heads(model)))


def test_declared_blocks_are_the_chain_as_they_are():
    model = Declared()
    chain, network = multi_exit(model)
    assert [piece.name for piece in chain.pieces] == ["stem", "exit_blocks.1", "tail"]
    assert [piece.module for piece in chain.pieces[:2]] == list(model.exit_blocks)[:2]
    assert [piece.output_shape for piece in chain.pieces] == [(4, 8, 8), (4, 8, 8), (5,)]
    assert [piece.input_shape for piece in chain.pieces] == [(1, 8, 8), (4, 8, 8), (4, 8, 8)]
    assert [piece.parameters for piece in chain.pieces] == [40, 148, 74 + 645]
    assert [piece.flops for piece in chain.pieces] == [2 * 64 * 36, 2 * 64 * 144, 2 * (64 * 72 + 128 * 5)]
    assert [head.name for head in own_heads(model)] == ["e00.own", "e01.own"]
    x = torch.rand(3, *SHAPE)
    said = network(x)
    maps = [x := block(x) for block in model.exit_blocks]
    for found, classifier, each in zip(said, model.exit_classifiers, maps, strict=True):
        assert torch.equal(found, classifier(each))


def test_a_module_with_blocks_alone_is_cut_as_any_other():
    model = Declared()
    del model.exit_classifiers
    assert not has_exits(model)
    assert has_exits(Declared())


@pytest.mark.parametrize(
    ("model", "what", "where"),
    [
        (Declared(classes=(5, 5)), "3 exit_blocks and 2 exit_classifiers", "exit_blocks"),
        (Declared(last=nn.Linear(2, 5)), "the module cannot run on [2, 8, 8] a sample", "exit_classifiers.2"),
        (Declared(last=nn.Identity()), "does not give logits [N, classes]", "exit_classifiers.2"),
        (Declared(classes=(5, 4, 5)), "gives 4 logits, and the first one 5", "exit_classifiers.1"),
        (Declared(block=nn.Flatten()), "does not give a map [N, C, H, W]", "exit_blocks.1"),
        (Declared(block=nn.ReLU(inplace=True)), "overwrites its input", "exit_blocks.1"),
    ],
)
def test_what_is_declared_wrongly_is_refused(model, what, where):
    with pytest.raises(PartitionError) as caught:
        partition(model, SHAPE)
    assert what in caught.value.what
    assert caught.value.where == where
    assert caught.value.do


def test_the_same_branch_is_put_at_every_exit_point_and_pooled_to_what_the_map_allows(backbone):
    chain = backbone("vgg16", (3, 32, 32)).chain
    shapes = [chain.map_shape(index) for index in range(chain.exit_count)]
    heads = fresh_heads(Exits(), shapes, 10)
    assert len(heads) == 13  # after every convolution
    assert heads[0].name == "e00.standard3.pool4-fc64.together"
    assert heads[-1].name == "e12.standard3.pool2-fc64.together"
    for head, (channels, _, _) in zip(heads, shapes, strict=True):
        weighty = [part for part in head.module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        assert [type(part) for part in weighty] == [nn.Conv2d, nn.Linear, nn.Linear]
        assert weighty[0].in_channels == weighty[0].out_channels == channels


def test_one_run_gives_what_every_exit_says(backbone):
    case = backbone("resnet20", (3, 32, 32))
    exits = Exits.model_validate({"convolution": {"kind": "none"}, "fullyConnected": {"pooledSize": 2}})
    heads = fresh_heads(exits, [case.chain.map_shape(index) for index in range(case.chain.exit_count)], 10)
    network = MultiExit((piece.module for piece in case.chain.pieces), (head.module for head in heads)).eval()
    with torch.no_grad():
        *said, final = network(case.x)
        assert torch.equal(final, case.logits)
        for found, head, feature in zip(said, heads, case.chain.features(case.x), strict=True):
            assert torch.equal(found, head.module(feature))


def test_all_exits_teach_the_blocks_below_them():
    _, network = multi_exit(Declared())
    network.train()
    network(torch.rand(2, *SHAPE))[1].sum().backward()
    first, second, last = (block.weight.grad for block in [*network.blocks[:2], network.blocks[2][0]])
    assert first.abs().sum() > 0
    assert second.abs().sum() > 0
    assert last is None
