"""Labelled samples as arrays."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
