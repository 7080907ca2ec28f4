"""What training an exit takes of memory and of computation, known before it starts."""

from collections.abc import Sequence

import torch
from torch import nn

from meedge_ray.api.elastic_model import Convolution
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.domain.quantity import format_bytes
from meedge_ray.nn.branches import build_branch
from meedge_ray.train.zoo_network import Choice, Group, Shape, Stem

_FLOAT = 4
_STATE = 5  # tensors the size of the weights: themselves, gradients, Adam's two moments, what a checkpoint copies
_PROCESS_BYTES = 420 * 2**20  # a process with torch and Ray in it, and the pages of features it has touched
_WORK = 8  # maps that a step holds for a while whatever the group: the batch, and gradients on their way
_HEAP = 2  # bytes of the heap for one in use: blocks of many sizes come and go
_GROUP_BYTES = 128 * 2**20  # larger ones gain nothing on a CPU: they no longer stay in its cache
_GPU_GROUP_BYTES = 2**30  # a GPU wants more to do at once


def plan_groups(
    stems: Sequence[Stem],
    shape: Shape,
    classes: int,
    *,
    batch_size: int,
    memory_bytes: int | None,
    device: torch.device,
) -> list[list[Stem]]:
    """Return the stems in groups whose activations fit the memory.

    Args:
        stems: those to train together, in order.
        shape: channels, height and width of the feature map.
        classes: number of logits.
        batch_size: samples a step.
        memory_bytes: most that the process may take; None: as is quickest.
        device: what trains.

    Raises:
        InvalidInputError: the weights of all stems, or one stem's activations, do not fit.
    """
    room = _GROUP_BYTES if device.type == "cpu" else _GPU_GROUP_BYTES
    needed = [_stem_bytes(stem, shape, classes, batch_size) for stem in stems]
    if memory_bytes is not None:
        map_bytes = batch_size * shape[0] * shape[1] * shape[2] * _FLOAT
        fixed = _PROCESS_BYTES + _STATE * _FLOAT * _parameters(stems, shape, classes) + _HEAP * _WORK * map_bytes
        if fixed + max(needed) > memory_bytes:
            raise InvalidInputError(
                f"to train {sum(len(stem.heads) for stem in stems)} branches on maps of "
                f"{'x'.join(map(str, shape))} takes {format_bytes(fixed + max(needed))} at batchSize {batch_size}, "
                f"and {format_bytes(memory_bytes)} are declared",
                where="spec.cultivation.memory",
                do="Raise it, lower spec.cultivation.batchSize, or leave large choices out of spec.zoo",
            )
        room = min(room, memory_bytes - fixed)
    groups: list[list[Stem]] = []
    left = 0
    for stem, stem_bytes in zip(stems, needed, strict=True):
        if not groups or stem_bytes > left:
            groups.append([])
            left = room
        groups[-1].append(stem)
        left -= stem_bytes
    return groups


def branch_cost(choice: Choice, shape: Shape, classes: int) -> tuple[int, int]:
    """Return a branch's parameters and FLOPs (two a multiply-add)."""
    with torch.device("meta"):
        branch = build_branch(*choice, shape, classes)
    pixels = shape[1] * shape[2]
    flops = 0
    for part in branch.modules():
        if isinstance(part, nn.Conv2d):
            flops += 2 * part.weight.numel() * pixels
        elif isinstance(part, nn.Linear):
            flops += 2 * part.weight.numel()
    return sum(parameter.numel() for parameter in branch.parameters()), flops


def _parameters(stems: Sequence[Stem], shape: Shape, classes: int) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Group(stems, shape, classes, seed=0).parameters())


def _stem_bytes(stem: Stem, shape: Shape, classes: int, batch_size: int) -> int:
    channels, height, width = shape
    values = _kept_maps(stem.convolution) * channels * height * width
    for _, fc in stem.heads:
        # Pooled, flattened and stacked, each with its gradient.
        values += 6 * channels * fc.pooled_size**2 + 4 * (sum(fc.hidden) + classes)
    return _HEAP * values * batch_size * _FLOAT


def _kept_maps(convolution: Convolution) -> int:
    """Maps kept for the way back: what enters every batch norm and leaves every ReLU, and what lies between."""
    a_layer = {"none": 0, "standard": 2, "depthwise": 2, "dilated": 2, "spatiallySeparable": 3, "separable": 4}
    return a_layer[convolution.kind] * convolution.layers
