"""Caches features in a process of its own, for tests that measure or kill it.

python caching.py FOLDER DATA.npz [KILL]: with KILL the process kills itself when it appends for the KILLth time.
Prints the peak of its resident memory in bytes.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from meedge_ray.api.elastic_model import Augmentation, Data
from meedge_ray.nn.partition import Chain, partition
from meedge_ray.train.arrays import ArrayFile
from meedge_ray.train.data import Dataset, load_data
from meedge_ray.train.features import FeatureReader, Features, cache_features
from meedge_ray.train.progress import silent

AUGMENTATION = Augmentation(views=2)


def network(shape: tuple[int, ...], classes: int, channels: int = 16) -> Chain:
    torch.manual_seed(0)
    layers = [nn.Conv2d(shape[0], channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return partition(nn.Sequential(*layers, *head), shape)


def load(path: Path) -> Dataset:
    return load_data(Data.model_validate({"source": "npz", "path": str(path)}), path.parent)


def read_all(features: Features) -> None:
    for exit_index in range(len(list(features.folder.glob("validation.0.[0-9]*.npy")))):
        for view in range(features.views):
            mapped = features.features(exit_index, "train", view)
            reader = FeatureReader(mapped)
            order = np.random.default_rng(0).permutation(len(mapped))
            for chosen in np.array_split(order, -(-len(order) // 64)):
                reader.batch(chosen)


def peak_bytes() -> int:
    # Not ru_maxrss: it begins with the memory of the parent process.
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def kill_at(count: int) -> None:
    append, calls = ArrayFile.append, []

    def counted(self: ArrayFile, rows: Any) -> None:
        calls.append(None)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, rows)

    ArrayFile.append = counted


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, data = Path(sys.argv[1]), load(Path(sys.argv[2]))
    if len(sys.argv) > 3:
        kill_at(int(sys.argv[3]))
    chain = network(data.input.shape, len(data.classes))
    read_all(cache_features(chain, data, folder, silent, augmentation=AUGMENTATION, seed=5))
    print(peak_bytes())
