"""Where training computes."""

import torch


def training_device() -> torch.device:
    """Return the first GPU this process may see (`CUDA_VISIBLE_DEVICES`), or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
