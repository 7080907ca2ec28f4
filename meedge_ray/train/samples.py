"""Labelled samples as arrays."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meedge_ray.domain.elastic import InputSpec

Raw = NDArray[Any]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Samples:
    """Raw samples `x` [N, C, H, W] (or [N, ...]) as the data set stores them, and labels `y` [N]."""

    x: Raw
    y: Labels

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, chosen: NDArray[np.int64] | slice) -> "Samples":
        return Samples(self.x[chosen], self.y[chosen])


def normalize(spec: InputSpec, raw: Raw) -> NDArray[np.float32]:
    """Return the backbone's input [N, ...] for raw samples [N, ...]: `(raw * scale - mean) / std` per channel."""
    per_channel = (1, -1, *[1] * (raw.ndim - 2))
    mean = np.asarray(spec.mean, np.float32).reshape(per_channel)
    std = np.asarray(spec.std, np.float32).reshape(per_channel)
    scaled: NDArray[np.float32] = (raw.astype(np.float32) * np.float32(spec.scale) - mean) / std
    return scaled
