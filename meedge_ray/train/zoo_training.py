"""Trains the groups of an exit, one step for all of them at a time."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meedge_ray.train.features import FeatureReader
from meedge_ray.train.zoo_network import Group


class Maps:
    """Feature maps with their labels, from memory-mapped files or, where they fit, from the GPU's memory.

    Args:
        mapped: features [N, C, H, W], fp16.
        labels: [N].
        device: where batches go.
        gpu_share: of the GPU's memory that is this worker's; these maps may take a third of it.
    """

    def __init__(
        self, mapped: NDArray[np.float16], labels: NDArray[np.int64], device: torch.device, gpu_share: float
    ) -> None:
        self.labels = labels
        self._device = device
        self._reader = FeatureReader(mapped)
        self._resident: Tensor | None = None
        if device.type == "cuda" and mapped.nbytes <= gpu_share * torch.cuda.mem_get_info(device)[1] / 3:
            parts = np.array_split(np.arange(len(labels)), -(-len(labels) // 1024))
            self._resident = torch.cat([self._read(rows) for rows in parts])

    def batches(self, order: NDArray[np.int64], count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield samples in `count` batches: maps [B, C, H, W], fp32, channels last, and labels [B]."""
        for chosen in np.array_split(order, count):
            rows = np.sort(chosen)
            x = self._read(rows) if self._resident is None else self._resident[torch.from_numpy(rows).to(self._device)]
            y = torch.from_numpy(self.labels[rows]).to(self._device)
            yield x.to(torch.float32, memory_format=torch.channels_last), y

    def _read(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._reader.batch(rows)).to(self._device)


class ZooTraining:
    """Groups of branches under one Adam and one cosine cycle. The gradients of a step are summed up group by group."""

    def __init__(self, groups: Sequence[Group], device: torch.device, *, learning_rate: float, steps_done: int) -> None:
        self.groups = [group.to(device) for group in groups]
        self.optimizer = torch.optim.Adam(
            [parameter for group in groups for parameter in group.parameters()], lr=learning_rate, fused=True
        )
        for parameter in self.optimizer.param_groups[0]["params"]:
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(steps_done), device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            # Kept from step to step: made anew between a group's activations they would leave holes all over the heap
            # (measured: 1.8 GB resident instead of 0.6).
            parameter.grad = torch.zeros_like(parameter)
        self._device = device
        self._learning_rate = learning_rate
        self._steps_done = steps_done

    def train(self, maps: Maps, order: NDArray[np.int64], steps: int, all_steps: int) -> None:
        """Run one epoch of `steps`, of `all_steps` until the end of the cosine cycle."""
        for group in self.groups:
            group.train()
        for x, y in maps.batches(order, steps):
            rate = self._learning_rate * (1 + math.cos(math.pi * self._steps_done / all_steps)) / 2
            self.optimizer.param_groups[0]["lr"] = rate
            for group in self.groups:
                with self._autocast():
                    loss = group.loss(x, y)
                loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=False)
            self._steps_done += 1

    @torch.inference_mode()
    def accuracies(self, maps: Maps, batch_size: int) -> dict[str, float]:
        """Return every branch's share of right answers."""
        for group in self.groups:
            group.eval()
        count = len(maps.labels)
        right = [torch.zeros(len(group.branches), dtype=torch.int64, device=self._device) for group in self.groups]
        for x, y in maps.batches(np.arange(count), -(-count // batch_size)):
            for so_far, group in zip(right, self.groups, strict=True):
                with self._autocast():
                    so_far += (group(x).argmax(2) == y).sum(1)
        names = (name for group in self.groups for name in group.branches)
        return dict(zip(names, (torch.cat(right) / count).tolist(), strict=True))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type != "cpu")
