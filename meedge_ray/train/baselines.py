"""Published multi-exit networks that ours is measured against, as fixed sets of branches.

Multi-exit: one FC layer at every exit (MEEdge 4.1). SPINN: six exits at equal shares of the FLOPs, each one
convolution and one FC layer (MEEdge 4.1).
"""

from collections.abc import Mapping
from itertools import accumulate

from meedge_ray.api.elastic_model import Convolution, FullyConnected
from meedge_ray.nn.partition import Chain
from meedge_ray.train.cultivate import Choice

BaselineChoices = Mapping[str, Mapping[int, Choice]]

SPINN_EXITS = 6
_POOLED_SIZE = 4


def baseline_choices(chain: Chain) -> BaselineChoices:
    """Return for every method its branch at each of its exits."""
    return {
        "multi_exit_fc": {exit_index: _one_fc(chain, exit_index, "none") for exit_index in range(chain.exit_count)},
        "spinn": {exit_index: _one_fc(chain, exit_index, "standard") for exit_index in equal_flops_exits(chain)},
    }


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


def _one_fc(chain: Chain, exit_index: int, kind: str) -> Choice:
    side = min(chain.pieces[exit_index].output_shape[1:])
    convolution = Convolution.model_validate({"kind": kind})
    return convolution, FullyConnected(pooledSize=min(_POOLED_SIZE, side))
