"""Trains the blocks that were added to a backbone; the backbone itself stays as it is (AdaptiveNet 4.2)."""

import math
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from meedge_ray.api.elastic_model import SupernetTraining
from meedge_ray.domain.elastic import InputSpec
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.nn.supernet import Supernet
from meedge_ray.runtime.memory import freed_memory_kept
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.search.subnets import Subnet
from meedge_ray.train.batch_norms import retake_statistics
from meedge_ray.train.device import quickest_format, training_device
from meedge_ray.train.latency_range import Bin
from meedge_ray.train.progress import Report, silent
from meedge_ray.train.random_subnets import draw
from meedge_ray.train.samples import Samples
from meedge_ray.train.training_state import restore_training, save_training

Loss = Callable[[Tensor, Tensor], Tensor]
Watch = Callable[[], Sequence[Bin]]
_Learn = Callable[[Tensor, Any, Subnet], Tensor]

_STEPS_A_SAVE = 100  # a few minutes' work on one core


def distill(
    supernet: Supernet,
    samples: Samples,
    input_spec: InputSpec,
    settings: SupernetTraining,
    *,
    batch_size: int,
    seed: int,
    checkpoint: Path | None = None,
    watch: Watch | None = None,
    report: Report = silent,
) -> None:
    """Teach the added blocks to give the feature maps of the blocks they replace (AdaptiveNet 4.2, equation 1).

    In every step one random subnet runs on its own features; the L2 distance of each of its added blocks to the
    original's map at the same place is averaged over the map's numbers, so that maps of all sizes count alike, and over
    the added blocks. Labels are not read. Nothing after the last added block runs, so that the chain may be a backbone
    without its head (section 6, two-stage models).

    Everything else is as in `tune`.
    """
    links = (*supernet.blocks, *supernet.added)
    blocks, ends = len(supernet.blocks), supernet.space.ends

    def learn(x: Tensor, _: Any, subnet: Subnet) -> Tensor:  # noqa: ANN401
        with _mixed(x):
            originals = supernet.features(x)
        added = [link for link in subnet if link >= blocks]
        first, last = subnet.index(added[0]), subnet.index(added[-1])
        x = originals[first - 1] if first else x
        total = torch.zeros((), device=x.device)
        for link in subnet[first : last + 1]:
            with _mixed(x):
                y = links[link](x)
            if link >= blocks:
                loss = functional.mse_loss(y.float(), originals[ends[link] - 1].float()) / len(added)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            # Each block learns from its own distance alone. With gradients from later ones through the blocks between
            # (measured on ResNets) subnets are no more accurate, and a step takes an eighth longer and more memory.
            x = y.detach()
        return total

    _train(
        supernet,
        samples,
        input_spec,
        settings,
        learn,
        stage="distill",
        batch_size=batch_size,
        seed=seed,
        checkpoint=checkpoint,
        watch=watch,
        report=report,
    )


def tune(
    supernet: Supernet,
    samples: Samples,
    input_spec: InputSpec,
    settings: SupernetTraining,
    *,
    loss: Loss = functional.cross_entropy,
    batch_size: int,
    seed: int,
    checkpoint: Path | None = None,
    watch: Watch | None = None,
    report: Report = silent,
) -> None:
    """Teach the added blocks by targets: one random subnet a step, its output's loss (AdaptiveNet 4.2).

    Adam under one cosine cycle, on a GPU where there is one. The supernet is left on the CPU and in eval mode; of the
    original no bit changes. The same seed on the same CPU gives the same weights, killed and resumed or not.

    Args:
        supernet: its added blocks are trained in place.
        samples: what to learn from; `y` holds targets, whatever `loss` takes.
        input_spec: of the samples.
        settings: epochs, learning rate.
        loss: of outputs and targets.
        batch_size: samples a step, at least.
        seed: of samples' order, subnets and dropout.
        checkpoint: a .safetensors file written every 100 steps and after every epoch; one that is there already is gone
            on from. It belongs to this phase, supernet, data, settings and seed.
        watch: asked for the latency-range accuracy after every epoch, for `report` to tell.
        report: told the epochs done whenever the checkpoint is written.

    Raises:
        InvalidInputError: there is no added block, there are under two samples, or batches of one are asked for.
    """

    def learn(x: Tensor, y: Any, subnet: Subnet) -> Tensor:  # noqa: ANN401
        targets = torch.from_numpy(y).to(x.device)
        with _mixed(x):
            result = loss(supernet(x, subnet), targets)
        result.backward()  # type: ignore[no-untyped-call]
        return result.detach()

    _train(
        supernet,
        samples,
        input_spec,
        settings,
        learn,
        stage="tune",
        batch_size=batch_size,
        seed=seed,
        checkpoint=checkpoint,
        watch=watch,
        report=report,
    )


def _train(
    supernet: Supernet,
    samples: Samples,
    input_spec: InputSpec,
    settings: SupernetTraining,
    learn: _Learn,
    *,
    stage: str,
    batch_size: int,
    seed: int,
    checkpoint: Path | None,
    watch: Watch | None,
    report: Report,
) -> None:
    _check(supernet, samples, batch_size)
    device = training_device()
    supernet.to(device).eval()
    batches = _Batches(samples, Normalizer(input_spec), batch_size, seed, device)
    batches.memory_format = quickest_format(supernet.features, batches.at(0)[0])
    supernet.to(memory_format=batches.memory_format)  # type: ignore[call-overload]  # torch's stub lacks it
    optimizer = torch.optim.Adam(supernet.added.parameters())
    an_epoch, all_steps = batches.count, settings.epochs * batches.count
    done = 0
    if checkpoint is not None and checkpoint.exists():
        done = restore_training(checkpoint, supernet.added, optimizer)

    def rate(step: int) -> float:
        return float(settings.learning_rate) * (1 + math.cos(math.pi * step / all_steps)) / 2

    while done < all_steps:
        steps = range(done, min(done + _STEPS_A_SAVE, done - done % an_epoch + an_epoch))
        supernet.train()
        with freed_memory_kept():
            losses = [_step(supernet, optimizer, learn, batches, step, rate(step)) for step in steps]
            done = steps.stop
            detail = f"loss {float(torch.stack(losses).mean()):.4f}"
            if done == all_steps or (watch is not None and done % an_epoch == 0):
                inputs = (batches.at(step)[0] for step in cycle(range(done - an_epoch, done)))
                retake_statistics(supernet, inputs, np.random.default_rng((seed, 2, done)))
                detail += "" if watch is None else f", {_described(watch())}"
        if checkpoint is not None:
            save_training(checkpoint, supernet.added, optimizer, done)
        report(stage, done / an_epoch, settings.epochs, detail)
    supernet.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


class _Batches:
    """Normalized samples in batches, the same ones whenever a step is asked for."""

    def __init__(
        self, samples: Samples, normalizer: Normalizer, batch_size: int, seed: int, device: torch.device
    ) -> None:
        # What is left over is spread over all batches: in a small one batch norms would see too little.
        self.count = max(1, len(samples) // batch_size)
        self.seed = seed
        self.memory_format = torch.contiguous_format
        self._samples, self._normalizer, self._device = samples, normalizer, device
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def at(self, step: int) -> tuple[Tensor, Any]:
        """Return inputs, on the device, and targets of one step."""
        epoch, place = divmod(step, self.count)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed, epoch)).permutation(len(self._samples))
        batch = self._samples[np.array_split(self._order, self.count)[place]]
        x = torch.from_numpy(self._normalizer.batch(batch.x))
        return x.to(self._device, memory_format=self.memory_format), batch.y


def _step(
    supernet: Supernet, optimizer: torch.optim.Adam, learn: _Learn, batches: _Batches, step: int, learning_rate: float
) -> Tensor:
    """Run one step, which depends on nothing but weights, moments, seed and its number; return its loss."""
    random = np.random.default_rng((batches.seed, 1, step))
    torch.manual_seed(int(random.integers(2**63)))  # dropout
    x, y = batches.at(step)
    optimizer.zero_grad()  # to None: Adam's momentum must not move blocks that are not in the subnet
    loss = learn(x, y, draw(supernet, random))
    optimizer.param_groups[0]["lr"] = learning_rate
    optimizer.step()
    return loss


def _mixed(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda")


def _described(bins: Sequence[Bin]) -> str:
    reached = (f"{each.accuracy:.1%}" for each in bins if each.accuracy is not None)
    return f"accuracy {', '.join(reached)} from fast to slow"


def _check(supernet: Supernet, samples: Samples, batch_size: int) -> None:
    if not supernet.growths:
        raise InvalidInputError("the supernet has no added block to train", where="spec.supernet")
    if batch_size < 2:
        raise InvalidInputError(
            "batch norms need more than one sample a batch", where="spec.supernet.batchSize", do="Use 2 or more"
        )
    if len(samples) < 2:
        raise InvalidInputError("there are under two samples to train on", where="spec.data")
