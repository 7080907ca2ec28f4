"""How good the subnets of a supernet are, range of latency by range of latency (AdaptiveNet 4.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from meedge_ray.domain.elastic import InputSpec
from meedge_ray.nn.supernet import Supernet
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.search.nearby import nearby_init
from meedge_ray.search.subnets import Subnet, fastest
from meedge_ray.train.samples import Samples

Score = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True, slots=True)
class Bin:
    """A range of latency, `accuracy` the mean score of random subnets within it; None where there are none."""

    low_ms: float
    high_ms: float
    subnets: int
    accuracy: float | None


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of logits [N, classes] that are right about labels [N]."""
    return float((outputs.argmax(1) == targets).double().mean())


def latency_range_accuracy(
    supernet: Supernet,
    samples: Samples,
    input_spec: InputSpec,
    link_ms: Sequence[float],
    *,
    subnets: int = 40,
    bins: int = 5,
    seed: int = 0,
    score: Score = accuracy,
) -> list[Bin]:
    """Return how accurate random subnets are, in equal ranges from the fastest subnet's latency to the original's.

    As many are drawn in every range, because of all subnets nearly all lie in the middle. Equal seeds give equal
    subnets.

    Args:
        supernet: is put into eval mode.
        samples: what the subnets are scored on, best not seen in training.
        input_spec: of the samples.
        link_ms: latency of every link; anything that adds up, such as FLOPs, does as well.
        subnets: how many are scored in all.
        bins: ranges.
        seed: of the draws.
        score: what of a batch's outputs and targets is averaged.
    """
    space = supernet.space
    ends = (space.latency_ms(fastest(space, link_ms), link_ms), space.latency_ms(space.original, link_ms))
    edges = np.linspace(*ends, bins + 1).tolist()
    random = np.random.default_rng(seed)
    ranges = list(pairwise(edges))
    drawn = [nearby_init(space, link_ms, low, high, -(-subnets // bins), random) for low, high in ranges]
    scores = iter(
        subnet_accuracy(supernet, samples, input_spec, [subnet for group in drawn for subnet in group], score=score)
    )
    found = []
    for (low, high), group in zip(ranges, drawn, strict=True):
        of_group = [next(scores) for _ in group]
        found.append(Bin(low, high, len(group), sum(of_group) / len(group) if group else None))
    return found


@torch.inference_mode()
def subnet_accuracy(
    supernet: Supernet,
    samples: Samples,
    input_spec: InputSpec,
    subnets: Sequence[Subnet],
    *,
    batch_size: int = 128,
    score: Score = accuracy,
) -> list[float]:
    """Return the mean score of every subnet on all samples, where the supernet is; it is put into eval mode.

    Args:
        supernet: what the subnets are of.
        samples: `y` holds targets, whatever `score` takes.
        input_spec: of the samples.
        subnets: in any order.
        batch_size: samples that are run together.
        score: the mean over a batch of how good outputs are, given targets.

    Raises:
        InvalidInputError: one of them is no way from the input to the output.
    """
    for subnet in subnets:
        supernet.space.check(subnet)
    supernet.eval()
    normalizer, device = Normalizer(input_spec), next(supernet.parameters()).device
    links = (*supernet.blocks, *supernet.added)
    order = sorted(set(subnets))  # neighbours share the longest prefixes
    total = dict.fromkeys(order, 0.0)
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        targets = torch.from_numpy(batch.y).to(device)
        path: list[tuple[int, Tensor]] = []
        x = torch.from_numpy(normalizer.batch(batch.x)).to(device)
        for subnet in order:
            shared = _shared(path, subnet)
            del path[shared:]
            for link in subnet[shared:]:
                path.append((link, links[link](path[-1][1] if path else x.clone())))
            total[subnet] += score(path[-1][1], targets) * len(batch)
    return [total[subnet] / len(samples) for subnet in subnets]


def _shared(path: Sequence[tuple[int, Tensor]], subnet: Subnet) -> int:
    """Return how many first links of a subnet the path has run already."""
    for place, ((run, _), link) in enumerate(zip(path, subnet, strict=False)):
        if run != link:
            return place
    return min(len(path), len(subnet))
