"""Trains a backbone that comes without weights."""

import numpy as np
import torch
from torch import nn

from meedge_ray.api.elastic_model import Pretrain
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.train.data import Dataset
from meedge_ray.train.progress import Report, silent


def pretrain(model: nn.Module, dataset: Dataset, settings: Pretrain, *, seed: int, report: Report = silent) -> None:
    """Train `model` in place on the training split: Adam under one cosine cycle, cross-entropy.

    The model is left in eval mode. The same seed on the same CPU gives the same weights.
    """
    normalizer = Normalizer(dataset.input)
    shuffled = np.random.default_rng(seed)
    steps = -(-len(dataset.train) // settings.batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=float(settings.learning_rate))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * steps)
    model.train()
    for epoch in range(settings.epochs):
        order = shuffled.permutation(len(dataset.train))
        total_loss = 0.0
        for chosen in np.array_split(order, steps):
            batch = dataset.train[chosen]
            logits = model(torch.from_numpy(normalizer.batch(batch.x)))
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(batch.y))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total_loss += float(loss.detach()) * len(chosen)
        report("pretrain", epoch + 1, settings.epochs, f"loss {total_loss / len(dataset.train):.3f}")
    model.eval()
