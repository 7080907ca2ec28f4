"""MSDNet for small images (Huang et al. 2018, "Multi-scale dense networks"): a network that is multi-exit by itself.

Every layer works at three scales and gets all earlier features of its own scale and of the finer one; a 1x1 convolution
before each 3x3 keeps that cheap; classifiers look at the coarsest scale. After each third of the layers the finest
scale is dropped and a 1x1 convolution halves the channels.

EINet's parameters (IV-A): `blocks`, layers in the first block (`base`, after the layer that makes the scales) and in
each further one (`step`), and `channels` of the finest scale at the start. As in EINet (VI-D2) a classifier is one
convolution and two FC layers, where MSDNet itself has two and one.

Between two blocks all scales travel as one map of the finest's size: coarser ones hold as many numbers in fewer of its
channels. So that they fill whole ones, a layer adds 4, 8 and 16 channels from fine to coarse, where the paper has 6, 12
and 24.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor, nn

from meedge_ray.domain.errors import InvalidInputError

_SCALES = 3
_GROWTH = 4
_CLASSIFIER = 64


@dataclass(frozen=True, slots=True)
class _Maps:
    """Shapes (channels, height, width) of the maps at the scales still alive, the finest first."""

    shapes: tuple[tuple[int, int, int], ...]

    @property
    def packed(self) -> tuple[int, int, int]:
        _, height, width = self.shapes[0]
        return sum(map(prod, self.shapes)) // (height * width), height, width

    def pack(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.cat([each.flatten(1) for each in maps], 1).reshape(-1, *self.packed)

    def unpack(self, x: Tensor) -> list[Tensor]:
        parts = torch.split(x.flatten(1), [prod(shape) for shape in self.shapes], 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]


class MSDNet(nn.Module):
    """Blocks, and a classifier after each; the last is the final exit.

    Args:
        input_shape: channels, height and width of one image; both sides divide by 4 and are at least 8.
        classes: number of logits.
        blocks: how many, at least 2.
        step: layers in every block after the first.
        base: layers in the first block.
        channels: of the finest scale at the start, a multiple of 4.

    Raises:
        InvalidInputError: an argument is none of these.
    """

    minimum_side = 8
    side_multiple = 2 ** (_SCALES - 1)

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        blocks: int = 21,
        step: int = 2,
        base: int = 4,
        channels: int = 16,
    ) -> None:
        super().__init__()
        for name, value, least in (("blocks", blocks, 2), ("step", step, 1), ("base", base, 1)):
            _check(name, value, f"a whole number of at least {least}", fits=_whole(value) and value >= least)
        fits = _whole(channels) and channels >= 4 and channels % 4 == 0
        _check("channels", channels, "a multiple of 4", fits=fits)
        third = ceil((base + (blocks - 1) * step) / _SCALES)
        first = _FirstLayer(input_shape, channels)
        maps, done = first.maps, 0
        self.exit_blocks = nn.ModuleList()
        self.exit_classifiers = nn.ModuleList()
        for block in range(blocks):
            entry = maps
            layers: list[nn.Module] = []
            for _ in range(step if block else base):
                layer = _Layer(maps, drop=done in (third, 2 * third))
                layers.append(layer)
                maps, done = layer.maps, done + 1
            self.exit_blocks.append(_Block(None if block else first, entry, layers, maps))
            self.exit_classifiers.append(_classifier(maps, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, C, H, W]."""
        for block in self.exit_blocks:
            x = block(x)
        logits: Tensor = self.exit_classifiers[-1](x)
        return logits


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # a manifest can say yes or "4"


def _check(name: str, value: object, wanted: str, *, fits: bool) -> None:
    if not fits:
        raise InvalidInputError(
            f"{name} is {value!r}, and must be {wanted}",
            where=f"spec.model.arguments.{name}",
            do="EINet's own are blocks 21 and 40, step 1 and 2, base 2 and 4, channels 4, 8 and 16",
        )


class _Block(nn.Module):
    """From packed maps (or the image) to packed maps."""

    def __init__(self, first: "_FirstLayer | None", entry: _Maps, layers: Sequence[nn.Module], end: _Maps) -> None:
        super().__init__()
        self.first = first
        self.layers = nn.ModuleList(layers)
        self._entry, self._end = entry, end

    def forward(self, x: Tensor) -> Tensor:
        maps = self._entry.unpack(x) if self.first is None else self.first(x)
        for layer in self.layers:
            maps = layer(maps)
        return self._end.pack(maps)


class _FirstLayer(nn.Module):
    """The image at every scale: a convolution, then strided ones."""

    def __init__(self, input_shape: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        before, height, width = input_shape
        shapes = []
        self.convolutions = nn.ModuleList()
        for scale in range(_SCALES):
            self.convolutions.append(_convolution(before, channels, stride=2 if scale else 1))
            shapes.append((channels, height >> scale, width >> scale))
            before, channels = channels, 2 * channels
        self.maps = _Maps(tuple(shapes))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for convolution in self.convolutions:
            x = convolution(x)
            maps.append(x)
        return maps


class _Layer(nn.Module):
    """New features at every scale, beside all earlier ones; where it drops the finest scale, a transition follows."""

    def __init__(self, maps: _Maps, *, drop: bool) -> None:
        super().__init__()
        self._drop = drop
        self.same, self.down, self.shrink = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        finest = _SCALES - len(maps.shapes)  # 0 where all scales are still alive
        shapes = []
        for place, (channels, height, width) in enumerate(maps.shapes):
            if drop and place == 0:
                continue
            scale = finest + place
            new = _GROWTH << scale
            if place:
                new //= 2
                self.down.append(_bottlenecked(maps.shapes[place - 1][0], new, scale - 1, stride=2))
            self.same.append(_bottlenecked(channels, new, scale))
            total = channels + (_GROWTH << scale)
            if drop:
                self.shrink.append(_convolution(total, total // 2, size=1))
                total //= 2
            shapes.append((total, height, width))
        self.maps = _Maps(tuple(shapes))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        kept = maps[1:] if self._drop else maps
        parts = [[each, convolution(each)] for each, convolution in zip(kept, self.same, strict=True)]
        for part, convolution, finer in zip(parts[len(parts) - len(self.down) :], self.down, maps[:-1], strict=True):
            part.append(convolution(finer))
        joined = [torch.cat(part, 1) for part in parts]
        return [shrink(each) for shrink, each in zip(self.shrink, joined, strict=True)] if self._drop else joined


class _Coarsest(nn.Module):
    """The last of packed maps."""

    def __init__(self, maps: _Maps) -> None:
        super().__init__()
        self._shape = maps.shapes[-1]

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, -prod(self._shape) :].reshape(-1, *self._shape)


def _classifier(maps: _Maps, classes: int) -> nn.Sequential:
    channels, height, width = maps.shapes[-1]
    height, width = (height + 1) // 2, (width + 1) // 2
    pool = (height // 2, width // 2) if min(height, width) >= 2 else (1, 1)
    pooled = (height // pool[0]) * (width // pool[1])
    return nn.Sequential(
        _Coarsest(maps),
        _convolution(channels, _CLASSIFIER, stride=2),
        nn.AvgPool2d(pool),
        nn.Flatten(),
        nn.Linear(_CLASSIFIER * pooled, _CLASSIFIER),
        nn.ReLU(),
        nn.Linear(_CLASSIFIER, classes),
    )


def _bottlenecked(before: int, after: int, scale: int, *, stride: int = 1) -> nn.Sequential:
    # The authors' widths: 1, 2 and 4 times the new channels, by the scale that is read.
    inner = min(before, after << scale)
    return nn.Sequential(_convolution(before, inner, size=1), _convolution(inner, after, stride=stride))


def _convolution(before: int, after: int, *, size: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())
