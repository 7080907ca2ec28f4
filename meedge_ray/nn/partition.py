"""A backbone cut into a chain of blocks with exit points between them.

A cut is possible where one feature map alone carries the computation. It is made where a new convolution or linear
layer begins after it: so norm, activation, dropout and pooling stay with the convolution before them, and a residual,
inception or dense block, inside which more than one value is alive, is never opened. A module with exits of its own
has said its blocks, and they are taken as they are.

The pieces are copied node by node rather than by torch.fx's `split_module`: that one turns a parameter used directly
into a second input of its piece, where a piece must have one, and imports sympy.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from meedge_ray.domain.errors import PartitionError
from meedge_ray.nn.multi_exit import HasExits, has_exits
from meedge_ray.nn.trace import Trace, trace

_MAP_DIMENSIONS = 3  # channels, height, width
_SAMPLES = 2  # in the run of declared blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One block. Shapes are without the batch dimension; FLOPs (two a multiply-add) are those of one sample."""

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    flops: int


@dataclass(frozen=True, slots=True)
class Chain:
    """The backbone as blocks. They share modules and parameters with the model they were cut from."""

    pieces: tuple[Piece, ...]

    @property
    def exit_count(self) -> int:
        """Exit points: one after every block but the last."""
        return len(self.pieces) - 1

    def map_shape(self, exit_index: int) -> tuple[int, int, int]:
        """Return channels, height and width of the feature map at an exit point."""
        channels, height, width = self.pieces[exit_index].output_shape
        return channels, height, width

    def run(self, x: Tensor) -> Tensor:
        """Return what the model returns, bit for bit."""
        for piece in self.pieces:
            x = piece.module(x)
        return x

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps [N, C, H, W] at the exit points, without running the last block."""
        maps = []
        for piece in self.pieces[:-1]:
            x = piece.module(x)
            maps.append(x)
        return tuple(maps)


def partition(model: nn.Module, input_shape: tuple[int, ...]) -> Chain:
    """Cut a model into the finest chain of blocks, and put it into eval mode.

    The last block holds everything after the last feature map larger than 1x1. Of a module with exits of its own it is
    the last block declared and the last classifier; the module's `forward` is not used.

    Args:
        model: any module torch.fx can trace, with one input and one output, or one with exits of its own.
        input_shape: channels, height and width of one input.

    Raises:
        PartitionError: the model cannot be traced, run or cut; `where` names the node or the module.
    """
    model.eval()
    if has_exits(model):
        return _declared(model, input_shape)
    traced = trace(model, input_shape)
    blocks = _blocks(traced)
    if len(blocks) < 2:
        raise _uncut(traced)
    ends = pairwise([traced.input, *(block[-1] for block in blocks[:-1]), traced.output])
    named = zip(_names(blocks, traced), blocks, ends, strict=True)
    return Chain(tuple(_piece(model, name, nodes, span, traced) for name, nodes, span in named))


def _declared(model: HasExits, input_shape: tuple[int, ...]) -> Chain:
    blocks, classifiers = list(model.exit_blocks), list(model.exit_classifiers)
    last = len(blocks) - 1
    if len(blocks) != len(classifiers) or last < 1:
        raise PartitionError(
            f"the model declares {len(blocks)} exit_blocks and {len(classifiers)} exit_classifiers",
            where="exit_blocks",
            do="Declare at least two blocks, and one classifier for each",
        )
    pieces: list[Piece] = []
    classes = 0
    x = torch.zeros(_SAMPLES, *input_shape)
    for index, (block, classifier) in enumerate(zip(blocks, classifiers, strict=True)):
        y, flops = _ran(block, x, f"exit_blocks.{index}", "a map [N, C, H, W]", 4)
        logits, head_flops = _ran(classifier, y, f"exit_classifiers.{index}", "logits [N, classes]", 2)
        classes = classes or logits.shape[1]
        if logits.shape[1] != classes:
            raise PartitionError(
                f"the classifier gives {logits.shape[1]} logits, and the first one {classes}",
                where=f"exit_classifiers.{index}",
                do="Give every classifier as many logits as there are classes",
            )
        if index == last:
            block, y, flops = nn.Sequential(block, classifier).eval(), logits, flops + head_flops
        pieces.append(
            Piece(
                name="tail" if index == last else f"exit_blocks.{index}" if index else "stem",
                module=block,
                input_shape=tuple(x.shape[1:]),
                output_shape=tuple(y.shape[1:]),
                parameters=sum(parameter.numel() for parameter in block.parameters()),
                flops=flops,
            )
        )
        x = y
    return Chain(tuple(pieces))


def _ran(module: nn.Module, x: Tensor, where: str, wanted: str, dimensions: int) -> tuple[Tensor, int]:
    """Return what the module says to x, which it must leave as it is, and the FLOPs of one sample."""
    version = x._version  # torch counts the writes to a tensor's memory
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            y = module(x)
    except Exception as error:  # it runs the user's model: anything may come
        raise PartitionError(
            f"the module cannot run on {list(x.shape[1:])} a sample: {error}",
            where=where,
            do="Check that every block fits the one before it, and the first the data's channels and image size",
        ) from error
    if not isinstance(y, Tensor) or y.dim() != dimensions or len(y) != len(x):
        raise PartitionError(f"the module does not give {wanted}", where=where, do="Return one such tensor")
    if x._version != version:
        raise PartitionError(
            "the module overwrites its input, which is another exit's input as well",
            where=where,
            do="Leave inplace=True out of its first operation",
        )
    return y, counter.get_total_flops() // _SAMPLES


def _live(traced: Trace) -> Iterator[tuple[fx.Node, set[fx.Node]]]:
    """Yield every node with the values that are computed at its end and needed later."""
    position = {node: index for index, node in enumerate(traced.nodes)}
    last_use = {
        node: max((position.get(user, len(position)) for user in node.users), default=-1)
        for node in (traced.input, *traced.nodes)
    }
    live = {traced.input}
    for index, node in enumerate(traced.nodes):
        live = {value for value in (*live, node) if last_use[value] > index}
        yield node, live


def _cuts(traced: Trace) -> set[fx.Node]:
    return {
        node
        for node, live in _live(traced)
        if live == {node} and _is_map(node, traced) and not traced.seen[node].overwritten
    }


def _is_map(node: fx.Node, traced: Trace) -> bool:
    """Whether the value is [N, C, H, W] and larger than 1x1.

    Nor is it larger than the image: where channels come last, as between two transpositions, it often seems to be.
    """
    shape, image = traced.seen[node].shape, traced.seen[traced.input].shape
    if shape is None or image is None or len(shape) != _MAP_DIMENSIONS:
        return False
    height, width = shape[1:]
    return height * width > 1 and all(a <= b for a, b in zip((height, width), image[1:], strict=False))


def _blocks(traced: Trace) -> list[list[fx.Node]]:
    """Split after every cut, and join what computes nothing that counts to the block before it."""
    cuts = _cuts(traced)
    segments: list[list[fx.Node]] = [[]]
    for node in traced.nodes:
        segments[-1].append(node)
        if node in cuts:
            segments.append([])
    blocks: list[list[fx.Node]] = []
    for segment in segments:
        if blocks and not (_heavy(segment, traced) and _heavy(blocks[-1], traced)):
            blocks[-1] += segment
        else:
            blocks.append(segment)
    return blocks


def _heavy(nodes: Sequence[fx.Node], traced: Trace) -> list[fx.Node]:
    """Return the convolutions and linear layers, in whatever form: of all operations only these count FLOPs."""
    return [node for node in nodes if traced.seen[node].flops]


def _uncut(traced: Trace) -> PartitionError:
    if not any(_is_map(node, traced) for node in traced.nodes):
        return PartitionError(
            "the model has no feature map [N, C, H, W] larger than 1x1, so there is nowhere to exit",
            where=traced.output.name,
            do="Use larger images, or a convolutional model",
        )
    if _cuts(traced):
        return PartitionError(
            "only one block has a convolution or linear layer, so every exit would be the last",
            where=traced.output.name,
            do="Use a model of at least two layers, such as a convolution and a classifier",
        )
    others = Counter(value for node, live in _live(traced) for value in live - {node})
    blocker = others.most_common(1)[0][0] if others else traced.output
    return PartitionError(
        "nowhere between two layers does one feature map alone carry the computation; this value is needed longest",
        where=blocker.name,
        do="Use a model that is a chain of blocks, and compute sizes where they are used",
    )


def _names(blocks: Sequence[Sequence[fx.Node]], traced: Trace) -> Iterator[str]:
    inner = (_path(_heavy(block, traced)) or "block" for block in blocks[1:-1])
    times: Counter[str] = Counter()
    for name in ("stem", *inner, "tail"):
        times[name] += 1
        yield name if times[name] == 1 else f"{name}-{times[name]}"


def _path(nodes: Sequence[fx.Node]) -> str:
    """Return the deepest module path that holds all the nodes, empty where that is the model itself."""
    stacks = [node.meta.get("nn_module_stack", {}) for node in nodes]
    paths = [list(stack.values())[-1][0].split(".") if stack else [] for stack in stacks]
    return ".".join(step for step, *_ in takewhile(lambda steps: len(set(steps)) == 1, zip(*paths, strict=False)))


def _piece(
    model: nn.Module, name: str, nodes: Sequence[fx.Node], ends: tuple[fx.Node, fx.Node], traced: Trace
) -> Piece:
    start, end = ends
    graph = fx.Graph()
    copies = {start: graph.placeholder("x")}

    def copy(node: fx.Node) -> fx.Node:
        # Constants are not among the nodes: each piece copies those it needs on the way.
        if node not in copies:
            copies[node] = graph.node_copy(node, copy)
        return copies[node]

    for node in nodes:
        copy(node)
    graph.output(copies[end])
    module = fx.GraphModule(model, graph).eval()
    return Piece(
        name=name,
        module=module,
        input_shape=_shape(start, traced),
        output_shape=_shape(end, traced),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        flops=sum(traced.seen[node].flops for node in nodes),
    )


def _shape(node: fx.Node, traced: Trace) -> tuple[int, ...]:
    shape = traced.seen[node].shape
    assert shape is not None  # trace() checked the ends, _cuts the rest
    return shape
