"""Blocks made from nothing, for where no block of the backbone has the shapes that a merged one needs."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, int, int]
Body = Callable[[Shape, Shape, int], Iterator[nn.Module]]

_WIDEST = 8  # inner channels, as a multiple of the wider end
_NARROWEST = 4  # the narrower end's channels as a multiple of the inner ones: fewer say too little


class MadeBlock(nn.Module):
    """Convolutions [N, C, H, W] to [N, C', H', W'] with a shortcut beside them, where there are weights for one.

    Args:
        body: the convolutions.
        shortcut: None for none, nn.Identity for the input itself.
        nonnegative: end with a ReLU.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None, *, nonnegative: bool) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.end = nn.ReLU() if nonnegative else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both."""
        y = self.body(x)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        result: Tensor = self.end(y)
        return result


def made_block(
    input_shape: Shape,
    output_shape: Shape,
    *,
    depthwise: bool,
    nonnegative: bool,
    most_parameters: int,
    most_flops: int,
) -> nn.Module | None:
    """Return a block with fresh weights, as wide inside as it may be; None where not even one layer fits.

    Two 3x3 convolutions, or an inverted bottleneck (Sandler et al. 2018); a single layer where that would be narrower
    than a quarter of its ends. The first one halves what has to become smaller, and pooling does the rest.

    Args:
        input_shape: channels, height and width.
        output_shape: the same of the output.
        depthwise: make an inverted bottleneck.
        nonnegative: end with a ReLU.
        most_parameters: it has no more.
        most_flops: nor does it take more for one sample.
    """
    ends = input_shape[0], output_shape[0]
    inner = max(1, min(ends) // _NARROWEST), _WIDEST * max(ends)
    forms: tuple[tuple[Body, bool, tuple[int, int]], ...] = (
        (_bottleneck if depthwise else _two_layers, True, inner),
        (_bottleneck if depthwise else _two_layers, False, inner),
        (_separable if depthwise else _layer, False, (1, 1)),
        (_pointwise, False, (1, 1)),
    )
    for body, has_shortcut, (narrowest, widest) in forms:

        def build(width: int, body: Body = body, has_shortcut: bool = has_shortcut) -> nn.Module:
            shortcut = _shortcut(input_shape, output_shape) if has_shortcut else None
            layers = nn.Sequential(*body(input_shape, output_shape, width))
            return MadeBlock(layers, shortcut, nonnegative=nonnegative).eval()

        width = min(widest, _width(build, input_shape, most_parameters, most_flops))
        if width >= narrowest:
            return build(width)
    return None


def _width(build: Callable[[int], nn.Module], input_shape: Shape, most_parameters: int, most_flops: int) -> int:
    """Return the largest width within both bounds, below 1 for none: both grow by the same for every channel."""
    room = (
        (most - one) // max(1, two - one)
        for most, one, two in zip(
            (most_parameters, most_flops), _cost(build, 1, input_shape), _cost(build, 2, input_shape), strict=True
        )
    )
    return 1 + min(room)


def _cost(build: Callable[[int], nn.Module], width: int, input_shape: Shape) -> tuple[int, int]:
    """Return parameters and FLOPs of a block, without the memory or the random numbers for its weights."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        block = build(width)
        block(torch.zeros(1, *input_shape))
    return sum(parameter.numel() for parameter in block.parameters()), counter.get_total_flops()


def _two_layers(start: Shape, end: Shape, width: int) -> Iterator[nn.Module]:
    yield from _normed(start[0], width, 3, stride=_strides(start, end))
    yield nn.ReLU()
    yield from _pooled(start, end)
    yield from _normed(width, end[0], 3)


def _bottleneck(start: Shape, end: Shape, width: int) -> Iterator[nn.Module]:
    yield from _normed(start[0], width, 1)
    yield nn.ReLU()
    yield from _normed(width, width, 3, stride=_strides(start, end), groups=width)
    yield nn.ReLU()
    yield from _pooled(start, end)
    yield from _normed(width, end[0], 1)


def _separable(start: Shape, end: Shape, _width: int) -> Iterator[nn.Module]:
    yield from _normed(start[0], start[0], 3, stride=_strides(start, end), groups=start[0])
    yield from _pooled(start, end)
    yield from _normed(start[0], end[0], 1)


def _layer(start: Shape, end: Shape, _width: int) -> Iterator[nn.Module]:
    yield from _normed(start[0], end[0], 3, stride=_strides(start, end))
    yield from _pooled(start, end)


def _pointwise(start: Shape, end: Shape, _width: int) -> Iterator[nn.Module]:
    if start[1:] != end[1:]:
        yield nn.AdaptiveAvgPool2d(end[1:])
    yield from _normed(start[0], end[0], 1)


def _shortcut(start: Shape, end: Shape) -> nn.Module:
    parts: list[nn.Module] = [nn.AdaptiveAvgPool2d(end[1:])] if start[1:] != end[1:] else []
    if start[0] != end[0]:
        parts += _normed(start[0], end[0], 1)
    return nn.Sequential(*parts) if parts else nn.Identity()


def _strides(start: Shape, end: Shape) -> tuple[int, int]:
    return 2 if start[1] >= 2 * end[1] else 1, 2 if start[2] >= 2 * end[2] else 1


def _pooled(start: Shape, end: Shape) -> Iterator[nn.Module]:
    strides = _strides(start, end)
    if tuple(-(-side // stride) for side, stride in zip(start[1:], strides, strict=True)) != end[1:]:
        yield nn.AdaptiveAvgPool2d(end[1:])


def _normed(
    before: int, after: int, size: int, *, stride: tuple[int, int] = (1, 1), groups: int = 1
) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(before, after, size, stride, padding=size // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(after)
