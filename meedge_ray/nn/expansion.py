"""From a chain of blocks to a supernet: merged and shrunk blocks beside the backbone's own (AdaptiveNet 4.1).

What is replaced is a basic block: one piece of the chain, or several where one by itself is a single layer. Neither the
first piece nor the last is replaced, nor one of more parameters than the granularity allows.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from meedge_ray.api import elastic_model
from meedge_ray.domain.errors import PartitionError
from meedge_ray.nn.merging import made_block
from meedge_ray.nn.partition import Chain, Piece
from meedge_ray.nn.shrinking import flattens, inner_layers, shrunk, widths
from meedge_ray.nn.supernet import Growth, Supernet

_LONGEST = 6  # pieces in a basic block: an inverted bottleneck with squeeze-and-excitation has four
_SAMPLES = 2


def expand(chain: Chain, settings: elastic_model.Supernet) -> Supernet:
    """Return the supernet: the chain, merged blocks for neighbouring basic blocks, shrunk ones for each.

    A merged block has at most the parameters of the largest block it replaces. It is a copy of the largest one whose
    shapes fit both ends, weights included; where none fits, it is made. A made block ends with a ReLU where what it
    replaces never gives a negative number, on random images: a look at the last operation would miss a ReLU before a
    pooling, and those of a module that was not traced.

    The same chain and settings give the same weights, and torch's generator stays as it was.

    Args:
        chain: its blocks are frozen from now on.
        settings: what to add.

    Raises:
        PartitionError: there is nothing to replace.
    """
    limit = sum(piece.parameters for piece in chain.pieces) * settings.granularity_percent // 100
    names = {piece.name for piece in chain.pieces}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(settings.seed)
        blocks = basic_blocks(chain.pieces, limit)
        places = _values(chain)
        growths = [
            growth
            for candidates in (_merged(blocks, places, settings), _shrunk(blocks, settings))
            for candidate in candidates
            if (growth := _grown(candidate, places, names)) is not None
        ]
    if not growths:
        raise _nothing(chain, limit, blocks)
    return Supernet(chain, growths)


@dataclass(frozen=True, slots=True)
class BasicBlock:
    """The pieces from place `start` to place `end` as one: what a growth can stand for."""

    start: int
    end: int
    piece: Piece


def basic_blocks(pieces: Sequence[Piece], limit: int) -> list[BasicBlock]:
    """Return what can be replaced, in the chain's order; there may be gaps between.

    A piece without a width of its own is joined to those before it that have none either, until it shares one with
    them: so a convolution of VGG gets another one, and an inverted bottleneck that was cut is put together, from its
    last layer on. One that finds none stays as it is.

    Args:
        pieces: of the whole chain.
        limit: most parameters of a basic block.
    """
    blocks: list[BasicBlock] = []
    end = len(pieces) - 1
    while end > 1:
        block = _ending_at(pieces, end, limit)
        if block is not None:
            blocks.append(block)
        end = end - 1 if block is None else block.start
    return blocks[::-1]


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    kind: Literal["merged", "shrunk"]
    start: int
    end: int
    module: nn.Module


def _ending_at(pieces: Sequence[Piece], end: int, limit: int) -> BasicBlock | None:
    for start in range(end - 1, max(0, end - 1 - _LONGEST), -1):
        joined = _joined(pieces[start:end])
        if joined.parameters > limit or (start < end - 1 and _shares_width(pieces[start : start + 1])):
            break
        if _shares_width(pieces[start:end]):
            return BasicBlock(start, end, joined)
    last = pieces[end - 1]
    return BasicBlock(end - 1, end, last) if last.parameters <= limit else None


def _joined(pieces: Sequence[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        name=pieces[-1].name,
        module=nn.Sequential(*(piece.module for piece in pieces)).eval(),
        input_shape=pieces[0].input_shape,
        output_shape=pieces[-1].output_shape,
        parameters=sum(piece.parameters for piece in pieces),
        flops=sum(piece.flops for piece in pieces),
    )


def _shares_width(pieces: Sequence[Piece]) -> bool:
    """Say whether half of the last piece's FLOPs or more depend on a width inside of all pieces.

    Layers whose output is 1x1 do not count: the few channels of a squeeze-and-excitation are no width to speak of.
    """
    copies = nn.Sequential(*(copy.deepcopy(piece.module) for piece in pieces)).eval()
    inner = inner_layers(copies, pieces[0].input_shape)
    inside = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal inside
        weight = layer.weight
        if isinstance(weight, Tensor) and weight.dim() > 1 and output[0, 0].numel() > 1:
            inside += 2 * weight.numel() * output[0, 0].numel()

    for layer in copies[-1].modules():
        if layer in inner and hasattr(layer, "weight"):
            layer.register_forward_hook(count)
    with torch.no_grad():
        copies(torch.zeros(1, *pieces[0].input_shape))
    return inside > 0 and 2 * inside >= pieces[-1].flops


def _values(chain: Chain) -> list[Tensor]:
    """Return what random images become at every place."""
    x = torch.randn(_SAMPLES, *chain.pieces[0].input_shape)
    return [x, *chain.features(x.clone())]


def _merged(
    blocks: Sequence[BasicBlock], places: Sequence[Tensor], settings: elastic_model.Supernet
) -> Iterator[_Candidate]:
    for first in range(len(blocks)):
        for last in range(first + 1, min(first + settings.merged_blocks, len(blocks))):
            if blocks[last - 1].end != blocks[last].start:
                break
            replaced = blocks[first : last + 1]
            start, end = replaced[0].start, replaced[-1].end
            module = _fitting(replaced) or _made(replaced, nonnegative=bool((places[end] >= 0).all()))
            if module is not None:
                yield _Candidate(f"merged-{start}-{end}", "merged", start, end, module)


def _fitting(replaced: Sequence[BasicBlock]) -> nn.Module | None:
    ends = replaced[0].piece.input_shape, replaced[-1].piece.output_shape
    fitting = [block for block in replaced if (block.piece.input_shape, block.piece.output_shape) == ends]
    if not fitting:
        return None
    return copy.deepcopy(max(fitting, key=lambda block: block.piece.parameters).piece.module)


def _made(replaced: Sequence[BasicBlock], *, nonnegative: bool) -> nn.Module | None:
    if any(flattens(block.piece.module, (1, *block.piece.input_shape)) for block in replaced):
        return None  # packed maps: their neighbouring numbers are none in the image, as a convolution takes them for
    (c, h, w), (channels, height, width) = replaced[0].piece.input_shape, replaced[-1].piece.output_shape
    largest = max(replaced, key=lambda block: block.piece.parameters)
    return made_block(
        (c, h, w),
        (channels, height, width),
        depthwise=any(_is_depthwise(module) for module in largest.piece.module.modules()),
        nonnegative=nonnegative,
        most_parameters=largest.piece.parameters,
        most_flops=max(block.piece.flops for block in replaced),
    )


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def _shrunk(blocks: Sequence[BasicBlock], settings: elastic_model.Supernet) -> Iterator[_Candidate]:
    for block in blocks:
        found: set[tuple[torch.Size, ...]] = set()
        for ratio in settings.shrunk:
            module = shrunk(block.piece.module, block.piece.input_shape, float(ratio))
            if module is None or widths(module) in found:
                continue
            found.add(widths(module))
            percent = f"{(Decimal(ratio) * 100).normalize():f}"
            yield _Candidate(f"shrunk{percent}-{block.start}", "shrunk", block.start, block.end, module)


def _grown(candidate: _Candidate, places: Sequence[Tensor], names: set[str]) -> Growth | None:
    """Return the candidate counted and named, or None where it does not run from its place to the other."""
    module = candidate.module.eval()
    x, expected = places[candidate.start], places[candidate.end]
    try:
        with FlopCounterMode(display=False) as counter:
            fits = module(x.clone()).shape == expected.shape
    except Exception:  # what torch-pruning makes of the user's model need not run
        fits = False
    if not fits:
        return None
    name = candidate.name
    while name in names:
        name += "-x"
    names.add(name)
    return Growth(
        name=name,
        kind=candidate.kind,
        start=candidate.start,
        end=candidate.end,
        module=module,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        flops=counter.get_total_flops() // _SAMPLES,
    )


def _nothing(chain: Chain, limit: int, blocks: Sequence[BasicBlock]) -> PartitionError:
    inner = chain.pieces[1:-1]
    if inner and not blocks:
        least = min(piece.parameters for piece in inner)
        return PartitionError(
            f"each of the {len(inner)} blocks that can be replaced has more parameters than the {limit} that "
            f"granularityPercent allows; the smallest has {least}",
            where="spec.supernet.granularityPercent",
            do="Raise it, or leave spec.supernet out",
        )
    return PartitionError(
        f"of the model's {len(chain.pieces)} blocks none can be merged or shrunk; the first and the last always stay",
        where="spec.supernet",
        do="Use a deeper model, or leave spec.supernet out",
    )
