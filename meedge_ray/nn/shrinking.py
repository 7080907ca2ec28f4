"""Channels taken from inside a block by structured pruning, so that its input and output stay as they are.

torch-pruning follows a width through the layers that share it (Fang et al. 2023, "DepGraph"). To see which widths are
the block's own it is put between two convolutions: what one of these shares belongs to the outside, such as the width
that a shortcut carries past the block.

Maps that are flattened and cut up again, as where MSDNet packs several into one, are not followed: torch-pruning makes
an entry for every number of the map, and searches for hours. What lies between is pruned part by part there.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_MAP = 4  # dimensions, that of the batch included
_VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}


def inner_layers(block: nn.Module, input_shape: tuple[int, ...]) -> set[nn.Module]:
    """Return the layers that read or write a width of the block's own.

    Args:
        block: a copy of a block, in eval mode; all its parameters get gradients.
        input_shape: without the batch.
    """
    return {layer for part in _parts(block, input_shape) for layer in part.inner}


def shrunk(block: nn.Module, input_shape: tuple[int, ...], ratio: float) -> nn.Module | None:
    """Return a copy without the share `ratio` of the channels inside, those of the smallest L1 norm.

    The channels that stay keep their weights. None where there are none to take, or torch-pruning cannot take them.

    Args:
        block: in eval mode; stays as it is.
        input_shape: without the batch.
        ratio: above 0 and below 1.
    """
    smaller = copy.deepcopy(block)
    for part in _parts(smaller, input_shape):
        if not part.inner:
            continue
        try:
            with torch.enable_grad(), warnings.catch_warnings(action="ignore"):
                torch_pruning.BasePruner(
                    part.framed,
                    (part.x,),
                    importance=torch_pruning.importance.MagnitudeImportance(p=1, normalizer=None),
                    pruning_ratio=ratio,
                    ignored_layers=part.fixed,
                    in_channel_groups={},  # the defaults are shared by all pruners, and hold on to their layers
                    out_channel_groups={},
                ).step()
        except Exception:  # it follows the user's model: anything may come
            return None
    return None if widths(smaller) == widths(block) else smaller


def widths(block: nn.Module) -> tuple[torch.Size, ...]:
    """Return the shapes of all parameters."""
    return tuple(parameter.shape for parameter in block.parameters())


@dataclass(frozen=True, slots=True)
class _Part:
    """A block, or a piece of it, between two convolutions; x is an input, `fixed` are layers that keep their width."""

    framed: nn.Sequential
    x: Tensor
    inner: set[nn.Module]
    fixed: list[nn.Module]


def _parts(block: nn.Module, input_shape: tuple[int, ...]) -> list[_Part]:
    block.requires_grad_(True)  # by them widths are followed
    return [_part(module, shape) for module, shape in _unflattened(block, (1, *input_shape))]


def _part(module: nn.Module, shape: Sequence[int]) -> _Part:
    x = torch.zeros(shape)
    with torch.no_grad():
        outside = nn.Conv2d(shape[1], shape[1], 1), nn.Conv2d(module(x.clone()).shape[1], 1, 1)
    framed = nn.Sequential(outside[0], module, outside[1]).eval()
    inner: set[nn.Module] = set()
    fixed: list[nn.Module] = list(outside)
    try:
        with torch.enable_grad(), warnings.catch_warnings(action="ignore"):
            graph = torch_pruning.DependencyGraph().build_dependency(framed, (x,))
            for group in graph.get_all_groups():
                layers = {step.target.module for step, _ in group}
                if layers.isdisjoint(outside):
                    inner.update(layer for layer in layers if next(layer.parameters(), None) is not None)
                else:
                    written = (step.target.module for step, _ in group if graph.is_out_channel_pruning_fn(step.handler))
                    fixed += [layer for layer in written if isinstance(layer, nn.Module)]
    except Exception:  # it follows the user's model: anything may come, and then nothing is pruned
        inner = set()
    return _Part(framed, x, inner, fixed)


def _unflattened(block: nn.Module, shape: Sequence[int]) -> Iterator[tuple[nn.Module, Sequence[int]]]:
    """Yield the block with its input's shape; or the largest modules in it that flatten nothing, from map to map."""
    if not flattens(block, shape):
        yield block, shape
        return
    calls: dict[nn.Module, list[Sequence[int]]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        maps = all(isinstance(each, Tensor) and each.dim() == _MAP for each in (*inputs, output))
        calls.setdefault(module, []).append(inputs[0].shape if maps and len(inputs) == 1 else ())

    hooks = [module.register_forward_hook(note) for module in block.modules()]
    with torch.no_grad():
        block(torch.zeros(shape))
    for hook in hooks:
        hook.remove()

    def walk(parent: nn.Module) -> Iterator[tuple[nn.Module, Sequence[int]]]:
        for child in parent.children():
            match calls.get(child):
                case [called] if called and not flattens(child, called):
                    yield child, called
                case _:
                    yield from walk(child)

    yield from walk(block)


def flattens(module: nn.Module, shape: Sequence[int]) -> bool:
    """Say whether a map larger than 1x1 is turned into a row of numbers on the way, the batch being part of `shape`."""
    with torch.no_grad(), _Views() as views:
        module(torch.zeros(shape))
    return bool(views.flattened)


class _Views(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flattened: bool = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        if func in _VIEWS and args[0].dim() == _MAP:
            *_, height, width = args[0].shape
            # A linear layer over channels that come last is a view as well: it keeps the last dimension.
            self.flattened |= height * width > 1 and result.shape[-1] != width
        return result
