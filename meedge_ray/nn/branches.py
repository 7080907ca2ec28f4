"""The branch zoo: every convolution choice with every FC choice, at every exit point (MEEdge 3.2.1).

The paper replaces full convolutions by efficient ones to save parameters and time. So all of them but `standard` work
channel by channel, and only `separable` mixes channels, by its pointwise half:

| kind | weights | source |
|---|---|---|
| none | 0 | |
| standard | C C k k | |
| depthwise | C k k | |
| separable | C k k + C C | depthwise, then pointwise |
| spatiallySeparable | 2 C k | k x 1, then 1 x k (Mamalet and Garcia 2012, whose maps have one input map each) |
| dilated | C k k | kernel spread by two (Yu and Koltun 2015): the view of 2k - 1 at the price of k |

Measured in multiply-adds, the full forms of the last two would cost C times as much, and a branch on a map of 512
channels would weigh 6 to 9 MB. Every convolution is followed by batch normalization, which export folds into it, and
ReLU. All keep the map's size. `layers` repeats the whole choice.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from meedge_ray.api.elastic_model import Convolution, FullyConnected, Zoo
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.domain.quantity import format_bytes

_DILATION = 2
_STATE_BYTES = 4 * 4  # of one fp32 weight in training: itself, its gradient, Adam's two moments


def build_branch(
    convolution: Convolution, fc: FullyConnected, feature_shape: tuple[int, int, int], classes: int
) -> nn.Sequential:
    """Build one branch with fresh weights: feature map [N, C, H, W] to logits [N, classes].

    It has two children: `convolution`, which keeps the map's shape, and `head`, which pools, flattens and decides.

    Args:
        convolution: the convolution choice.
        fc: the FC choice.
        feature_shape: channels, height and width of the map at the exit point.
        classes: number of logits.

    Raises:
        InvalidInputError: the map is smaller than `fc.pooled_size`.
    """
    branch = nn.Sequential()
    branch.add_module("convolution", build_convolution(convolution, feature_shape[0]))
    branch.add_module("head", build_head(fc, feature_shape, classes))
    return branch


def build_convolution(choice: Convolution, channels: int) -> nn.Sequential:
    """Build a branch's convolution with fresh weights: [N, C, H, W] to the same shape, ReLU at its end, if any."""
    parts: list[nn.Module] = []
    for _ in range(choice.layers):
        parts += _layer(choice, channels)
    return nn.Sequential(*parts)


def build_head(fc: FullyConnected, feature_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Build a branch's head with fresh weights: pooling (where it pools), flattening, linear layers with ReLUs between.

    Raises:
        InvalidInputError: the map is smaller than `fc.pooled_size`.
    """
    channels, height, width = feature_shape
    size = fc.pooled_size
    if size > min(height, width):
        raise InvalidInputError(
            f"the feature map of {height}x{width} cannot be pooled to {size}x{size}",
            where="spec.zoo.fullyConnected.pooledSize",
            do=f"Choose a pooledSize of at most {min(height, width)}",
        )
    layers: list[nn.Module] = []
    if (height, width) != (size, size):
        # A plain average pooling where adaptive pooling would overlap unevenly, which ONNX cannot say.
        strides = (height // size, width // size)
        kernel = (height - (size - 1) * strides[0], width - (size - 1) * strides[1])
        layers.append(nn.AvgPool2d(kernel, strides))
    layers.append(nn.Flatten())
    *hidden, last = (nn.Linear(before, after) for before, after in pairwise(fc_widths(fc, channels, classes)))
    for linear in hidden:
        layers += [linear, nn.ReLU()]
    layers.append(last)
    return nn.Sequential(*layers)


def fc_widths(fc: FullyConnected, channels: int, classes: int) -> tuple[int, ...]:
    """Return the numbers of neurons from the pooled map to the logits."""
    return (channels * fc.pooled_size**2, *fc.hidden, classes)


def branch_name(exit_index: int, convolution: Convolution, fc: FullyConnected) -> str:
    """Return the branch's name in bundles, such as `e03.depthwise3.pool4-fc64`."""
    return f"e{exit_index:02d}.{convolution.name}.{fc.name}"


def check_zoo(zoo: Zoo, feature_shapes: Sequence[tuple[int, int, int]], classes: int, memory_bytes: int | None) -> None:
    """Refuse a choice that fits nowhere, or that cannot be trained in the memory there is.

    What nobody wrote is not refused: of the default choices those that fit nowhere are left out.

    Args:
        zoo: the choices.
        feature_shapes: of the map at every exit point.
        classes: number of logits.
        memory_bytes: most memory one exit's training may take, if declared.

    Raises:
        InvalidInputError: `where` names the choice.
    """
    largest = max(min(shape[1:]) for shape in feature_shapes)
    for index, convolution in enumerate(zoo.convolutions):
        if _extent(convolution) > largest and "convolutions" in zoo.model_fields_set:
            raise InvalidInputError(
                f"{convolution.name} sees {_extent(convolution)} pixels across and fits no feature map of the model; "
                f"the largest is {largest} across",
                where=f"spec.zoo.convolutions.{index}",
                do="Choose a smaller kernelSize (a dilated one counts 2k - 1), or leave it out",
            )
    for index, fc in enumerate(zoo.fully_connected):
        fitting = [shape for shape in feature_shapes if fc.pooled_size <= min(shape[1:])]
        where = f"spec.zoo.fullyConnected.{index}"
        if not fitting and "fully_connected" not in zoo.model_fields_set:
            continue
        if not fitting:
            raise InvalidInputError(
                f"no feature map of the model can be pooled to {fc.pooled_size}x{fc.pooled_size}; "
                f"the largest is {largest} across",
                where=where,
                do="Choose a smaller pooledSize, or leave it out",
            )
        needed = _STATE_BYTES * max(_weights(fc_widths(fc, shape[0], classes)) for shape in fitting)
        if memory_bytes is not None and needed > memory_bytes:
            raise InvalidInputError(
                f"to train {fc.name} takes {format_bytes(needed)} for its weights, their gradients and moments alone, "
                f"and spec.cultivation.memory is {format_bytes(memory_bytes)}",
                where=where,
                do="Choose fewer hidden neurons or a smaller pooledSize, or raise spec.cultivation.memory",
            )


def zoo_branches(zoo: Zoo, feature_shape: tuple[int, int, int]) -> list[tuple[Convolution, FullyConnected]]:
    """Return the zoo's combinations that fit a feature map, in the zoo's order.

    Late maps are small: a choice is left out there where its pooled size or its kernel, spread by its dilation,
    exceeds the map.

    Raises:
        InvalidInputError: none of the zoo's convolutions or none of its FC choices fits.
    """
    side = min(feature_shape[1:])
    convolutions = [choice for choice in zoo.convolutions if _extent(choice) <= side]
    heads = [choice for choice in zoo.fully_connected if choice.pooled_size <= side]
    for fitting, choices, limit in (
        (convolutions, "convolutions", "a kernel (a dilated one counts 2k - 1)"),
        (heads, "fullyConnected", "a pooledSize"),
    ):
        if not fitting:
            raise InvalidInputError(
                f"none of the choices fits a feature map of {feature_shape[1]}x{feature_shape[2]}",
                where=f"spec.zoo.{choices}",
                do=f"Add a choice with {limit} of at most {side}",
            )
    return [(convolution, fc) for convolution in convolutions for fc in heads]


def _extent(convolution: Convolution) -> int:
    if convolution.kind == "none":
        return 1
    spread = _DILATION if convolution.kind == "dilated" else 1
    return (convolution.kernel_size - 1) * spread + 1


def _weights(widths: Sequence[int]) -> int:
    return sum((before + 1) * after for before, after in pairwise(widths))


def _layer(choice: Convolution, channels: int) -> tuple[nn.Module, ...]:
    k = choice.kernel_size
    match choice.kind:
        case "none":
            return ()
        case "standard":
            return _normed(_conv(channels, (k, k), groups=1))
        case "depthwise":
            return _normed(_conv(channels, (k, k)))
        case "separable":
            return *_normed(_conv(channels, (k, k))), *_normed(_conv(channels, (1, 1), groups=1))
        case "spatiallySeparable":
            # Nothing between the two, so that they are one kernel of rank one.
            return _conv(channels, (k, 1)), *_normed(_conv(channels, (1, k)))
        case "dilated":
            return _normed(_conv(channels, (k, k), dilation=_DILATION))


def _conv(channels: int, kernel: tuple[int, int], *, groups: int | None = None, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        channels,
        channels,
        kernel,
        padding=(kernel[0] // 2 * dilation, kernel[1] // 2 * dilation),
        dilation=dilation,
        groups=channels if groups is None else groups,
        bias=False,
    )


def _normed(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()
