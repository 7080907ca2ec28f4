"""Trains a backbone that comes without weights, together with the exits it has."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from meedge_ray.api.elastic_model import Pretrain
from meedge_ray.bundle.files import write_atomically
from meedge_ray.runtime.memory import freed_memory_kept
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.train.data import Dataset
from meedge_ray.train.device import training_device
from meedge_ray.train.progress import Report, silent
from meedge_ray.train.samples import Samples


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
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters())
    done = 0 if checkpoint is None or not checkpoint.exists() else _restore(checkpoint, model, optimizer)
    for epoch in range(done, settings.epochs):
        with freed_memory_kept():
            loss = _epoch(model, optimizer, dataset, settings, seed, epoch)
        if checkpoint is not None:
            _save(checkpoint, model, optimizer, epoch + 1)
        report("pretrain", epoch + 1, settings.epochs, f"loss {loss:.3f}")
    model.to("cpu").eval()


def _epoch(
    model: nn.Module, optimizer: torch.optim.Adam, dataset: Dataset, settings: Pretrain, seed: int, epoch: int
) -> float:
    normalizer, device = Normalizer(dataset.input), next(model.parameters()).device
    torch.manual_seed(seed * 100_003 + epoch)  # dropout
    count = len(dataset.train)
    steps = -(-count // settings.batch_size)
    total_loss = 0.0
    model.train()
    for step, batch in enumerate(_batches(dataset.train, steps, seed, epoch)):
        passed = (epoch * steps + step) / (settings.epochs * steps)
        for group in optimizer.param_groups:
            group["lr"] = float(settings.learning_rate) * (1 + math.cos(math.pi * passed)) / 2
        said = model(torch.from_numpy(normalizer.batch(batch.x)).to(device))
        exits = said if isinstance(said, tuple) else (said,)
        labels = torch.from_numpy(batch.y).to(device)
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


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Adam, epochs: int) -> None:
    tensors = {f"model/{key}": value for key, value in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam/{index}/{key}": value for key, value in moments.items()}
    # Clones, because safetensors refuses tensors that share memory, such as tied weights.
    whole = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    write_atomically(path, safetensors.torch.save(whole, {"epochs": str(epochs)}))


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Adam) -> int:
    """Load weights and moments; return the epochs done."""
    weights: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    with safetensors.safe_open(path, framework="pt") as file:
        epochs = int(file.metadata()["epochs"])
        for name in file.keys():  # noqa: SIM118 - no dict
            kind, key = name.split("/", 1)
            if kind == "model":
                weights[key] = file.get_tensor(name)
            else:
                index, key = key.split("/")
                moments.setdefault(int(index), {})[key] = file.get_tensor(name)
    model.load_state_dict(weights)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return epochs
