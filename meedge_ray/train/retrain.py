"""Few-shot retraining of a merged branch by knowledge distillation (MEEdge 3.5.2, equation 2)."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from meedge_ray.api.elastic_model import Sharing

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Lessons:
    """The samples to retrain on: `inputs` of the FC layers [N, F], `labels` [N], `teacher` the final logits [N, K]."""

    inputs: Tensor
    labels: Tensor
    teacher: Tensor


def retrain(
    fc: nn.Sequential, shared: tuple[int, ...], lessons: Lessons, settings: Sharing, *, seed: int
) -> nn.Sequential:
    """Return the FC layers retrained; `fc` stays as it is. The same seed gives the same weights.

    Args:
        fc: FC layers with ReLUs between them, some neurons merged.
        shared: for every hidden layer, how many of its first rows are shared weights.
        lessons: what to learn from, all of it.
        settings: weights of the loss's parts, epochs, learning rate.
        seed: of the samples' order.
    """
    fc = copy.deepcopy(fc)
    layers = [part for part in fc if isinstance(part, nn.Linear)]
    bound = [
        parameter.detach()[:count]
        for layer, count in zip(layers, (*shared, 0), strict=True)
        for parameter in (layer.weight, layer.bias)
    ]
    merged = [rows.clone() for rows in bound]
    optimizer = torch.optim.Adam(fc.parameters(), lr=float(settings.learning_rate))
    steps = -(-len(lessons.labels) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, settings.epochs * steps))
    shuffled = np.random.default_rng(seed)
    for _ in range(settings.epochs):
        for chosen in np.array_split(shuffled.permutation(len(lessons.labels)), steps):
            loss = _loss(
                fc(lessons.inputs[chosen]), lessons.labels[chosen], lessons.teacher[chosen], float(settings.alpha)
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            _bind(bound, merged, float(settings.beta) * optimizer.param_groups[0]["lr"])
            schedule.step()
    return fc


def _loss(logits: Tensor, labels: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    wanted = functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    supervised = functional.mse_loss(logits.softmax(1), wanted)
    distilled = functional.kl_div(logits.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean")
    return alpha * supervised + (1 - alpha) * distilled


@torch.no_grad()
def _bind(bound: list[Tensor], merged: list[Tensor], threshold: float) -> None:
    # The loss's L1 term, by its proximal step. Its subgradient is plus or minus beta and never small, so that weights
    # would jitter around the merged ones; this leaves them exactly there, unless the rest of the loss pulls further
    # than the threshold in one step.
    for rows, target in zip(bound, merged, strict=True):
        rows.copy_(target + functional.softshrink(rows - target, threshold))
