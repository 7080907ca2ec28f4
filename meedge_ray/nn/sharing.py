"""Neuron-level weight sharing of FC layers: similar hidden neurons get one set of incoming weights (MEEdge 3.5.1).

Inside one branch, two neurons with the same incoming weights compute the same number. So one of them goes, the next
layer's two columns are added, and the branch is smaller on every device, in every format, with no index to look up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from meedge_ray.nn.neurons import Pairs, ascending_pairs, hessian, self_errors, twin_errors, twin_weights

ErrorKind = Literal["l2", "hessian"]
Score = Callable[[Tensor], float]


@dataclass(frozen=True, slots=True)
class SelfMerged:
    """A smaller head, and how many neurons each hidden layer lost.

    The first `merged_neurons[l]` rows of hidden layer l are the shared ones, in the order of their errors.
    """

    head: nn.Sequential
    merged_neurons: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TwinMerged:
    """Two heads that hold some weights in common.

    The first `shared_neurons[l]` rows of hidden layer l agree in both: in all weights in the first hidden layer, in
    later ones in those from shared neurons, and in the bias.
    """

    heads: tuple[nn.Sequential, nn.Sequential]
    shared_neurons: tuple[int, ...]
    saved_parameters: int


def split_head(head: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential]:
    """Return what comes before the first FC layer (pooling, flattening), and the FC layers with their ReLUs."""
    first = next(index for index, part in enumerate(head) if isinstance(part, nn.Linear))
    parts = list(head)
    return nn.Sequential(*parts[:first]), nn.Sequential(*parts[first:])


def smaller_head(head: nn.Sequential, merged_neurons: Sequence[int]) -> nn.Sequential:
    """Return a head like this one, with fresh weights and so many neurons fewer in each hidden layer."""
    pooling, fc = split_head(head)
    layers = [part for part in fc if isinstance(part, nn.Linear)]
    fewer = (*merged_neurons, 0)
    widths = [layers[0].in_features, *(layer.out_features - less for layer, less in zip(layers, fewer, strict=True))]
    parts: list[nn.Module] = []
    for inputs, neurons in pairwise(widths):
        parts += [nn.Linear(inputs, neurons), nn.ReLU()]
    return nn.Sequential(*pooling, *parts[:-1])


@torch.no_grad()
def self_merge(
    head: nn.Sequential,
    inputs: Tensor,
    score: Score,
    *,
    error: ErrorKind = "l2",
    shares: tuple[float, float] = (1 / 3, 1 / 2),
) -> SelfMerged:
    """Merge similar neurons inside a head, one hidden layer after the other, each given the ones before.

    The most similar pairs come first. From the first share of them on, every number of pairs is tried up to the second
    share, and the best one is kept; where several are best, the largest.

    Args:
        head: a branch's head. It stays as it is.
        inputs: what reaches its first FC layer, [samples, features]: the samples to score, and to take the Hessian of.
        score: tells how good logits [samples, classes] are.
        error: `l2` for MEEdge's distance, `hessian` for MTZ's.
        shares: of the layer's disjoint pairs, of which there are half as many as neurons.
    """
    weights = _matrices(head)
    merged = []
    for index in range(len(weights) - 1):
        pairs = ascending_pairs(self_errors(weights[index], hessian(inputs) if error == "hessian" else None))
        low, high = (int(share * len(pairs)) for share in shares)
        tried = pairs[:high]
        scores = _scores(inputs, weights[index:], tried, low, score)
        count = low + max(range(len(scores)), key=lambda more: (scores[more], more))
        weights[index], weights[index + 1] = merge_pairs(weights[index], weights[index + 1], pairs[:count])
        inputs = torch.relu(_affine(inputs, weights[index]))
        merged.append(count)
    return SelfMerged(_with_weights(head, weights, merged), tuple(merged))


@torch.no_grad()
def twin_merge(
    first: nn.Sequential,
    second: nn.Sequential,
    inputs: tuple[Tensor, Tensor],
    *,
    share: float,
    error: ErrorKind = "l2",
) -> TwinMerged:
    """Share neurons between two heads with as many layers and the same features (MTZ; MEEdge 4.4.1).

    The narrower of two hidden layers says how many pairs there are. Pairs of later layers share the weights they have
    from shared neurons, as their other inputs differ.

    Args:
        first: one branch's head; it stays as it is, as the other does.
        second: the other's.
        inputs: what reaches the first FC layer of each, [samples, features]; only the Hessian asks for it.
        share: of the pairs of every hidden layer, the most similar first.
        error: `l2` for MEEdge's distance and average, `hessian` for MTZ's.

    Raises:
        ValueError: the heads have different numbers of layers or features.
    """
    one, other = _matrices(first), _matrices(second)
    if len(one) != len(other) or one[0].shape[1] != other[0].shape[1]:
        raise ValueError("twins have as many FC layers and the same features")
    x, y = inputs
    common, shared, saved = one[0].shape[1] - 1, [], 0
    for index in range(len(one) - 1):
        columns = torch.tensor([*range(common), -1])
        a, b = one[index][:, columns], other[index][:, columns]
        hessians = (hessian(x[:, :common]), hessian(y[:, :common])) if error == "hessian" else None
        found = ascending_pairs(twin_errors(a, b, hessians), twins=True)
        pairs = torch.from_numpy(found[: int(share * len(found))])
        weights = twin_weights(a[pairs[:, 0]], b[pairs[:, 1]], hessians)
        for stack, side in ((one, 0), (other, 1)):
            order = torch.cat([pairs[:, side], _others(len(stack[index]), pairs[:, side])])
            stack[index] = stack[index][order]
            stack[index][: len(pairs), columns] = weights
            stack[index + 1] = stack[index + 1][:, [*order.tolist(), -1]]
        x, y = (torch.relu(_affine(features, stack[index])) for features, stack in ((x, one), (y, other)))
        common = len(pairs)
        shared.append(common)
        saved += weights.numel()
    none = [0] * len(shared)
    return TwinMerged((_with_weights(first, one, none), _with_weights(second, other, none)), tuple(shared), saved)


def merge_pairs(weights: Tensor, following: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return a layer without one neuron of each pair, and the next layer reading the one that stays for both.

    It computes what the layers would with the pairs' weights averaged. It has P (fan-in + 1) + P fan-out fewer
    parameters. The pairs come first, then the neurons without a partner.
    """
    first, second = torch.from_numpy(pairs).T
    others = _others(len(weights), torch.cat([first, second]))
    return (
        torch.cat([(weights[first] + weights[second]) / 2, weights[others]]),
        torch.cat([following[:, first] + following[:, second], following[:, others], following[:, -1:]], dim=1),
    )


def _scores(inputs: Tensor, weights: list[Tensor], pairs: Pairs, low: int, score: Score) -> list[float]:
    """Return the score with the first `low` pairs of the first of these layers merged, `low + 1`, ..., all of them.

    A pair more changes two inputs of the next layer: an update of rank two, instead of a run of both layers.
    """
    layer, following, *later = weights
    activations = torch.relu(_affine(inputs, layer))
    merged, _ = merge_pairs(layer, following, pairs)
    shared = torch.relu(_affine(inputs, merged[: len(pairs)]))
    for side in (0, 1):
        activations[:, pairs[:low, side]] = shared[:, :low]
    sums = _affine(activations, following)
    scores = [score(_rest(sums, later))]
    for index, pair in enumerate(pairs[low:], start=low):
        change = shared[:, index : index + 1] - activations[:, pair]
        sums = sums + change @ following[:, pair].T
        scores.append(score(_rest(sums, later)))
    return scores


def _rest(sums: Tensor, later: list[Tensor]) -> Tensor:
    for weights in later:
        sums = _affine(torch.relu(sums), weights)
    return sums


def _others(count: int, taken: Tensor) -> Tensor:
    left = torch.ones(count, dtype=torch.bool)
    left[taken] = False
    return left.nonzero().flatten()


def _affine(x: Tensor, weights: Tensor) -> Tensor:
    return nn.functional.linear(x, weights[:, :-1], weights[:, -1])


def _matrices(head: nn.Sequential) -> list[Tensor]:
    layers = [part for part in head if isinstance(part, nn.Linear)]
    return [torch.cat([layer.weight, layer.bias[:, None]], dim=1) for layer in layers]


def _with_weights(head: nn.Sequential, weights: list[Tensor], merged_neurons: Sequence[int]) -> nn.Sequential:
    made = smaller_head(head, merged_neurons).to(weights[0])
    for layer, matrix in zip((part for part in made if isinstance(part, nn.Linear)), weights, strict=True):
        layer.weight.copy_(matrix[:, :-1])
        layer.bias.copy_(matrix[:, -1])
    return made
