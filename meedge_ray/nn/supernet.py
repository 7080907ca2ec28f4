"""A backbone with other bodies for its blocks: every way from the input to the output is a subnet (AdaptiveNet 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from meedge_ray.nn.partition import Chain
from meedge_ray.search.subnets import Subnet, SubnetSpace


@dataclass(frozen=True, slots=True)
class Growth:
    """An added block: from place `start` to place `end` it stands for the backbone's blocks between them.

    A merged one stands for several basic blocks, a shrunk one has fewer channels inside. FLOPs (two a multiply-add) are
    those of one sample.
    """

    name: str
    kind: Literal["merged", "shrunk"]
    start: int
    end: int
    module: nn.Module
    parameters: int
    flops: int


class Supernet(nn.Module):
    """The backbone's blocks, frozen and always in eval mode, with the growths, which learn.

    The blocks stay the modules of the model that the chain was cut from: its parameters are frozen, and its outputs
    stay what they are bit for bit, whatever the growths learn.

    Args:
        chain: the backbone.
        growths: link numbers are given to all blocks first, then to these in order.
    """

    def __init__(self, chain: Chain, growths: Sequence[Growth]) -> None:
        super().__init__()
        self.chain = chain
        self.growths = tuple(growths)
        self.blocks = nn.ModuleList(piece.module for piece in chain.pieces)
        self.added = nn.ModuleList(growth.module for growth in growths)
        self.blocks.requires_grad_(False)
        self.added.requires_grad_(True)
        blocks = len(chain.pieces)
        self.space = SubnetSpace(
            [*range(blocks), *(growth.start for growth in growths)],
            [*range(1, blocks + 1), *(growth.end for growth in growths)],
        )
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Put the growths into training mode or out of it; the blocks stay in eval mode."""
        super().train(mode)
        self.blocks.eval()
        return self

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the original's outputs after every block: the values at places 1 to n, without gradients."""
        outputs = []
        with torch.no_grad():
            x = x.clone()  # the first block may overwrite its input, as no later one does
            for block in self.blocks:
                x = block(x)
                outputs.append(x)
        return outputs

    def run(self, x: Tensor, subnet: Subnet) -> list[tuple[int, Tensor]]:
        """Run one subnet and return the number and the output of every link, the network's output last.

        Raises:
            InvalidInputError: the links are no way from the input to the output.
        """
        self.space.check(subnet)
        links = (*self.blocks, *self.added)
        outputs = []
        x = x.clone()
        for link in subnet:
            x = links[link](x)
            outputs.append((link, x))
        return outputs

    def alone(self) -> list[Subnet]:
        """Return for every growth, in order, the subnet of that one and blocks of the backbone."""
        original = self.space.original
        return [
            (*original[: growth.start], len(original) + number, *original[growth.end :])
            for number, growth in enumerate(self.growths)
        ]

    def forward(self, x: Tensor, subnet: Subnet | None = None) -> Tensor:
        """Return the output of one subnet; without one, of the original."""
        _, output = self.run(x, self.space.original if subnet is None else subnet)[-1]
        return output
