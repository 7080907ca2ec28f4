"""Published multi-exit networks that ours is measured against, as fixed sets of branches.

Multi-exit: one FC layer at every exit (MEEdge 4.1). SPINN: six exits at equal shares of the FLOPs, each one
convolution and one FC layer (MEEdge 4.1). BranchyNet: branches that its authors placed and shaped by hand
(Teerapittayanon et al. 2016, section IV), so only the networks they did it for have it: LeNet, AlexNet and ResNets.
EINet: one convolution and two FC layers at every exit (EINet IV-A), here all of them run.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import accumulate

from torch import nn

from meedge_ray.api.elastic_model import Convolution, FullyConnected
from meedge_ray.nn.partition import Chain
from meedge_ray.train.zoo_network import Choice

BaselineChoices = Mapping[str, Mapping[int, Choice]]

SPINN_EXITS = 6
_POOLED_SIZE = 4
_HIDDEN = 64
# After which share of the convolutional layers a branch leaves (its ResNet has 109), and its own 3x3 convolutions.
_BRANCHYNET = {
    r"lenet": (((1, 2), 1),),
    r"alexnet": (((1, 5), 2), ((2, 5), 1)),
    r"resnet[0-9]+": (((2, 109), 3), ((37, 109), 2)),
}


def baseline_choices(chain: Chain, architecture: str) -> BaselineChoices:
    """Return for every method its branch at each of its exits; `branchynet` only where it has a design.

    Args:
        chain: the partitioned backbone.
        architecture: its name in the manifest.
    """
    every_exit = range(chain.exit_count)
    choices = {
        "multi_exit_fc": {exit_index: _branch(chain, exit_index, "none") for exit_index in every_exit},
        "einet": {exit_index: _branch(chain, exit_index, "standard", hidden=(_HIDDEN,)) for exit_index in every_exit},
        "spinn": {exit_index: _branch(chain, exit_index, "standard") for exit_index in equal_flops_exits(chain)},
        "branchynet": {
            exit_index: _branch(chain, exit_index, "standard", layers)
            for exit_index, layers in _branchynet_exits(chain, architecture)
        },
    }
    return {method: branches for method, branches in choices.items() if branches}


def equal_flops_exits(chain: Chain) -> tuple[int, ...]:
    """Return the exits nearest to 1/7, 2/7 ... 6/7 of the backbone's FLOPs, fewer where the network has fewer."""
    reached = list(accumulate(piece.flops for piece in chain.pieces))
    exits: list[int] = []
    for share in range(1, SPINN_EXITS + 1):
        wanted = reached[-1] * share / (SPINN_EXITS + 1)
        left = [index for index in range(chain.exit_count) if index not in exits]
        if left:
            exits.append(min(left, key=lambda index: abs(reached[index] - wanted)))
    return tuple(sorted(exits))


def _branchynet_exits(chain: Chain, architecture: str) -> Iterator[tuple[int, int]]:
    """Yield the first exit that reaches each share of the convolutional layers, and its branch's convolutions.

    In a network of the published depth these are the published places; a place inside a residual block, where nothing
    can leave, becomes the block's end.
    """
    designs = [design for name, design in _BRANCHYNET.items() if re.fullmatch(name, architecture)]
    reached = list(accumulate(_convolutions(piece.module) for piece in chain.pieces))
    for (layer, published_depth), layers in designs[0] if designs else ():
        wanted = layer * reached[-1]
        yield next(index for index, count in enumerate(reached) if count * published_depth >= wanted), layers


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(inner, nn.Conv2d) for inner in module.modules())


def _branch(chain: Chain, exit_index: int, kind: str, layers: int = 1, hidden: tuple[int, ...] = ()) -> Choice:
    convolution = Convolution.model_validate({"kind": kind, "layers": layers})
    pooled_size = min(_POOLED_SIZE, *chain.map_shape(exit_index)[1:])
    return convolution, FullyConnected(pooledSize=pooled_size, hidden=hidden)
