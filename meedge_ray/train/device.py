"""Where training computes."""

from collections.abc import Callable

import torch
from torch import Tensor


def training_device() -> torch.device:
    """Return the first GPU this process may see (`CUDA_VISIBLE_DEVICES`), or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def quickest_format(network: Callable[[Tensor], object], x: Tensor) -> torch.memory_format:
    """Return the memory format of inputs and weights to train in: channels last, where the network takes them.

    On CPUs it is a tenth to a third quicker for residual networks, more for depthwise convolutions, and no slower for
    others. But `view`, with which some networks flatten maps, takes only contiguous ones.

    Args:
        network: in eval mode.
        x: one sample or more, [N, C, H, W].
    """
    try:
        network(x[:1].to(memory_format=torch.channels_last))
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last
