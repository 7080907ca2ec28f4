"""MobileNetV2 (Sandler et al. 2018) for small images: the stem and the first strided stage keep the resolution."""

from torch import Tensor, nn

_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # expansion, width, blocks, stride of the first (table 2; strides as usual for 32x32 images)
_STEM, _LAST = 32, 1280
_DIVISOR = 8  # of every width


class InvertedResidual(nn.Module):
    """A wide depthwise convolution between two pointwise ones; the input is added where shapes allow."""

    def __init__(self, in_planes: int, planes: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_planes * expansion
        layers = [] if expansion == 1 else [*_convolution(in_planes, wide, 1)]
        layers += [*_convolution(wide, wide, 3, stride=stride, groups=wide)]
        layers += [nn.Conv2d(wide, planes, 1, bias=False), nn.BatchNorm2d(planes)]
        self.body = nn.Sequential(*layers)
        self.adds = stride == 1 and in_planes == planes

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_planes, H, W] to [N, planes, H / stride, W / stride]."""
        y: Tensor = self.body(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals; `width_percent` scales all widths."""

    minimum_side = 1

    def __init__(self, input_shape: tuple[int, int, int], classes: int, width_percent: int = 100) -> None:
        super().__init__()
        planes = _width(_STEM, width_percent)
        blocks: list[nn.Module] = []
        self.stem = nn.Sequential(*_convolution(input_shape[0], planes, 3))
        for expansion, base, depth, stride in _STAGES:
            wanted = _width(base, width_percent)
            for index in range(depth):
                blocks.append(InvertedResidual(planes, wanted, stride if index == 0 else 1, expansion))
                planes = wanted
        self.blocks = nn.Sequential(*blocks)
        last = max(_LAST * width_percent // 100, _LAST // 4)
        self.head = nn.Sequential(*_convolution(planes, last, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, C, H, W]."""
        logits: Tensor = self.linear(self.head(self.blocks(self.stem(x))))
        return logits


def _width(base: int, percent: int) -> int:
    return max(_DIVISOR, round(base * percent / 100 / _DIVISOR) * _DIVISOR)


def _convolution(
    in_planes: int, planes: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_planes, planes, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(planes), nn.ReLU6()
