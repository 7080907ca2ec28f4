"""Networks whose exits are trained together: modules that declare their own, and chains given a branch at every exit.

A multi-exit module declares `exit_blocks` and `exit_classifiers`. Any other network gets one branch, the same choice
everywhere, at each of its exit points (EINet IV-A).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

from torch import Tensor, nn

from meedge_ray.api.elastic_model import Exits
from meedge_ray.nn.branches import branch_name, build_branch


class HasExits(Protocol):
    """A module with exits of its own: as many blocks as classifiers, the last of which is the final exit.

    A block takes what the block before it gives, a map [N, C, H, W], and the first takes the images. A classifier takes
    its block's map and gives logits [N, classes].
    """

    exit_blocks: nn.ModuleList
    exit_classifiers: nn.ModuleList


def has_exits(model: object) -> TypeGuard[HasExits]:
    """Say whether a module declares exits of its own."""
    # Not isinstance with a runtime protocol: from Python 3.12 on that does not see what a module holds.
    declared = (getattr(model, name, None) for name in ("exit_blocks", "exit_classifiers"))
    return all(isinstance(value, nn.ModuleList) for value in declared)


@dataclass(frozen=True, slots=True)
class Head:
    """What decides at one exit point: a branch by the names of its choices, or a classifier of the module's own."""

    name: str
    exit_index: int
    convolution: str
    fc: str
    module: nn.Module


def own_heads(model: HasExits) -> tuple[Head, ...]:
    """Return a module's own classifiers but the last, which ends its chain."""
    return tuple(
        Head(f"e{index:02d}.own", index, "own", "own", module)
        for index, module in enumerate(list(model.exit_classifiers)[:-1])
    )


def fresh_heads(exits: Exits, feature_shapes: Sequence[tuple[int, int, int]], classes: int) -> tuple[Head, ...]:
    """Build the branch for every exit point, with fresh weights; its pooled size is cut to what the map allows.

    Args:
        exits: the branch's choices.
        feature_shapes: channels, height and width of the map at every exit point.
        classes: number of logits.
    """
    heads = []
    for index, shape in enumerate(feature_shapes):
        size = min(exits.fully_connected.pooled_size, *shape[1:])
        fc = exits.fully_connected.model_copy(update={"pooled_size": size})
        module = build_branch(exits.convolution, fc, shape, classes)
        name = f"{branch_name(index, exits.convolution, fc)}.together"
        heads.append(Head(name, index, exits.convolution.name, fc.name, module))
    return tuple(heads)


class MultiExit(nn.Module):
    """A chain of blocks with a head after each but the last, which gives the final logits itself.

    What a model does otherwise in training than in evaluation it must do in modules of its own, such as nn.Dropout:
    blocks that were cut from it were traced as in evaluation.
    """

    def __init__(self, blocks: Iterable[nn.Module], heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run images [N, C, H, W] once; return the logits [N, classes] of every exit, those of the final one last."""
        logits = []
        for block, head in zip(list(self.blocks)[:-1], self.heads, strict=True):
            x = block(x)
            logits.append(head(x))
        return (*logits, self.blocks[-1](x))
