"""All branches of an exit as few large operations, with the weights and results of each branch alone.

FC heads of one choice over different convolutions have one shape: they are one batched product. Convolutions run one by
one. Groups of them have forward and backward passes of their own, so that memory holds one group's activations.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional

from meedge_ray.api.elastic_model import Convolution, FullyConnected
from meedge_ray.nn.branches import branch_name, build_convolution, build_head
from meedge_ray.nn.kernels import convolve, pools

Choice = tuple[Convolution, FullyConnected]
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Stem:
    """A convolution, and the heads over it with their branches' names. `name` is that of the convolution's weights."""

    name: str
    convolution: Convolution
    heads: tuple[tuple[str, FullyConnected], ...]


def stems_of(exit_index: int, choices: Sequence[Choice], *, shared: bool) -> list[Stem]:
    """Return one stem a convolution where convolutions are shared, and one a branch where they are not.

    Branches of one FC choice are neighbours, so that one group holds many of their heads.
    """
    if not shared:
        by_fc = sorted(choices, key=lambda choice: choice[1].name)
        named = [(branch_name(exit_index, *choice), choice) for choice in by_fc]
        return [Stem(name, convolution, ((name, fc),)) for name, (convolution, fc) in named]
    by_convolution = groupby(sorted(choices, key=lambda choice: choice[0].name), key=lambda choice: choice[0])
    return [
        Stem(
            f"e{exit_index:02d}.{convolution.name}",
            convolution,
            tuple((branch_name(exit_index, convolution, fc), fc) for _, fc in above),
        )
        for convolution, above in by_convolution
    ]


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of one branch (or shared convolution) in a parameter or buffer: all of it, or a row of a stack."""

    whole: Tensor
    row: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Return this part of a tensor shaped like the whole, without copying."""
        return tensor if self.row is None else tensor[self.row]


class Group(nn.Module):
    """Some stems and their heads. The fresh weights of each follow from the seed and its name alone."""

    def __init__(self, stems: Sequence[Stem], shape: Shape, classes: int, *, seed: int) -> None:
        super().__init__()
        self._stems = tuple(stems)
        self.convolutions = nn.ModuleList()
        above: dict[FullyConnected, list[tuple[int, str, nn.Sequential]]] = {}
        for index, stem in enumerate(stems):
            with torch.random.fork_rng(devices=[]):
                _seed(seed, stem.name)
                self.convolutions.append(build_convolution(stem.convolution, shape[0]))
                for name, fc in stem.heads:
                    if name != stem.name:
                        _seed(seed, name)
                    above.setdefault(fc, []).append((index, name, build_head(fc, shape, classes)))
        self.stacks = nn.ModuleList(_Stack(fc.pooled_size, heads) for fc, heads in above.items())

    @property
    def branches(self) -> list[str]:
        """Names of the branches, in the order of the logits."""
        return [name for stack in self._each_stack() for name in stack.names]

    def forward(self, x: Tensor) -> Tensor:
        """Turn feature maps [B, C, H, W] into logits [branches, B, classes]."""
        pooled = [
            self._pooled(convolution, x, stem) for stem, convolution in zip(self._stems, self.convolutions, strict=True)
        ]
        return torch.cat([stack(pooled) for stack in self._each_stack()])

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sum over the branches of each one's mean cross-entropy: each gets the gradient it has alone."""
        logits = self(x)
        labels = y.repeat(len(logits))
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels, reduction="sum") / len(y)

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Yield every parameter and buffer under its branch's (or shared convolution's) name and its own."""
        for stem, convolution in zip(self._stems, self.convolutions, strict=True):
            for key, whole in (*convolution.named_parameters(), *convolution.named_buffers()):
                yield f"{stem.name}/convolution.{key}", Part(whole)
        for stack in self._each_stack():
            yield from stack.parts()

    def _each_stack(self) -> Iterator["_Stack"]:
        return (stack for stack in self.stacks if isinstance(stack, _Stack))

    @staticmethod
    def _pooled(convolution: nn.Module, x: Tensor, stem: Stem) -> dict[int, Tensor]:
        layers = list(convolution.children())  # a ReLU ends them: it goes with the pooling
        for layer in layers[:-1]:
            x = convolve(layer, x) if isinstance(layer, nn.Conv2d) else layer(x)
        return pools(x, {fc.pooled_size for _, fc in stem.heads}, relu=bool(layers))


class _Stack(nn.Module):
    """Heads of one FC choice over different stems: weights [heads, out, in], biases [heads, out]."""

    def __init__(self, pooled_size: int, heads: Sequence[tuple[int, str, nn.Sequential]]) -> None:
        super().__init__()
        self._pooled_size = pooled_size
        self._stems = [stem for stem, _, _ in heads]
        self.names = [name for _, name, _ in heads]
        linears = [[part for part in head if isinstance(part, nn.Linear)] for _, _, head in heads]
        self._keys = [key for key, part in heads[0][2].named_children() if isinstance(part, nn.Linear)]
        levels = list(zip(*linears, strict=True))
        self.weights = nn.ParameterList(torch.stack([one.weight.detach() for one in level]) for level in levels)
        self.biases = nn.ParameterList(torch.stack([one.bias.detach() for one in level]) for level in levels)

    def forward(self, pooled: Sequence[dict[int, Tensor]]) -> Tensor:
        x = torch.stack([pooled[stem][self._pooled_size].flatten(1) for stem in self._stems])
        for level, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if level:
                x = functional.relu(x)
            x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        return x

    def parts(self) -> Iterator[tuple[str, Part]]:
        for row, name in enumerate(self.names):
            for key, weight, bias in zip(self._keys, self.weights, self.biases, strict=True):
                yield f"{name}/head.{key}.weight", Part(weight, row)
                yield f"{name}/head.{key}.bias", Part(bias, row)


def _seed(seed: int, name: str) -> None:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8]) >> 1)
