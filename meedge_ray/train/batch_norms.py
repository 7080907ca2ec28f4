"""The statistics that added blocks' batch norms use once they are trained."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from meedge_ray.nn.supernet import Supernet
from meedge_ray.train.random_subnets import draw_through

_VISITS = 4  # batches that the statistics of an added block are taken over, at least


@torch.no_grad()
def retake_statistics(supernet: Supernet, inputs: Iterable[Tensor], random: np.random.Generator) -> None:
    """Set every added block's statistics to their mean over random subnets, with the weights as they are.

    Args:
        supernet: is left in eval mode.
        inputs: batches, as many as are asked for: every added block runs on 4 or more.
        random: of the subnets.
    """
    supernet.eval()  # dropout would change the statistics
    norms = [module for module in supernet.added.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the mean of all batches
    blocks = len(supernet.blocks)
    visits = np.zeros(len(supernet.growths), np.int64)
    for x in inputs:
        subnet = draw_through(supernet, int(visits.argmin()), random)
        supernet(x, subnet)
        visits[[link - blocks for link in subnet if link >= blocks]] += 1
        if visits.min() >= _VISITS:
            break
    for norm, before in zip(norms, momentum, strict=True):
        norm.momentum = before
    supernet.eval()
