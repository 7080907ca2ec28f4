"""Trains a backbone that comes without weights, together with the exits it has."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from meedge_ray.api.elastic_model import Pretrain
from meedge_ray.runtime.memory import freed_memory_kept
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.train.data import Dataset
from meedge_ray.train.device import quickest_format, training_device
from meedge_ray.train.progress import Report, silent
from meedge_ray.train.samples import Samples
from meedge_ray.train.training_state import restore_training, save_training


def pretrain(
    model: nn.Module,
    dataset: Dataset,
    settings: Pretrain,
    *,
    seed: int,
    checkpoint: Path | None = None,
    report: Report = silent,
) -> None:
    """Train `model` in place on the training split: Adam under one cosine cycle, cross-entropy.

    Of a model with several exits it is the mean of their cross-entropies, each with the same weight (Huang et al. 2018,
    section 4, whose sum differs from it by a factor that Adam does not see).

    It runs on a GPU where there is one. The model is left on the CPU and in eval mode. The same seed on the same CPU
    gives the same weights, killed and resumed or not.

    Args:
        model: what to train; it gives logits [N, classes], or a tuple of those of every exit.
        dataset: its train split alone is used.
        settings: epochs, batch size, learning rate.
        seed: of shuffles and dropout.
        checkpoint: a .safetensors file written after every epoch; one that is there already is gone on from. It belongs
            to this model, data, settings and seed.
        report: told the epochs done.
    """
    device = training_device()
    model.to(device).eval()
    normalizer = Normalizer(dataset.input)

    first = torch.from_numpy(normalizer.batch(dataset.train[:1].x)).to(device)
    memory_format = quickest_format(model, first)

    def inputs(batch: Samples) -> Tensor:
        return torch.from_numpy(normalizer.batch(batch.x)).to(device, memory_format=memory_format)

    model.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's stub lacks it
    optimizer = torch.optim.Adam(model.parameters())
    done = 0 if checkpoint is None or not checkpoint.exists() else restore_training(checkpoint, model, optimizer)
    for epoch in range(done, settings.epochs):
        with freed_memory_kept():
            loss = _epoch(model, optimizer, dataset.train, inputs, settings, seed, epoch)
        if checkpoint is not None:
            save_training(checkpoint, model, optimizer, epoch + 1)
        report("pretrain", epoch + 1, settings.epochs, f"loss {loss:.3f}")
    model.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Adam,
    samples: Samples,
    inputs: Callable[[Samples], Tensor],
    settings: Pretrain,
    seed: int,
    epoch: int,
) -> float:
    torch.manual_seed(seed * 100_003 + epoch)  # dropout
    count = len(samples)
    steps = -(-count // settings.batch_size)
    total_loss = 0.0
    model.train()
    for step, batch in enumerate(_batches(samples, steps, seed, epoch)):
        passed = (epoch * steps + step) / (settings.epochs * steps)
        for group in optimizer.param_groups:
            group["lr"] = float(settings.learning_rate) * (1 + math.cos(math.pi * passed)) / 2
        x = inputs(batch)
        said = model(x)
        exits = said if isinstance(said, tuple) else (said,)
        labels = torch.from_numpy(batch.y).to(x.device)
        loss = torch.stack([nn.functional.cross_entropy(logits, labels) for logits in exits]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total_loss += float(loss.detach()) * len(batch)
    return total_loss / count


def _batches(samples: Samples, steps: int, seed: int, epoch: int) -> Iterator[Samples]:
    order = np.random.default_rng((seed, epoch)).permutation(len(samples))
    for chosen in np.array_split(order, steps):
        yield samples[chosen]
