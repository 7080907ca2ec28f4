"""Pre-trains in a process of its own, which kills itself instead of saving its second epoch.

python pretraining.py CHECKPOINT [together]
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meedge_ray.api.elastic_model import Data, Pretrain
from meedge_ray.nn.multi_exit import MultiExit
from meedge_ray.train import pretrain as module
from meedge_ray.train.data import load_data

SETTINGS = Pretrain.model_validate({"epochs": 4, "batchSize": 64, "learningRate": "0.01"})


def network() -> nn.Module:
    torch.manual_seed(3)
    convolution = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()]
    return nn.Sequential(*convolution, nn.Linear(288, 10))


def multi_exit() -> nn.Module:
    blocks = list(network().children())
    head = nn.Sequential(nn.Dropout(0.2), nn.Flatten(), nn.Linear(288, 10))
    return MultiExit([nn.Sequential(*blocks[:3]), nn.Sequential(*blocks[3:])], [head])


def trained(checkpoint: Path | None, *, make: Callable[[], nn.Module] = network, **more: Any) -> nn.Module:
    dataset = load_data(Data.model_validate({"trainSamples": 300}), Path())
    model = make()
    module.pretrain(model, dataset, SETTINGS, seed=7, checkpoint=checkpoint, **more)
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    save = module.save_training

    def killed_at_two(path: Path, model: nn.Module, optimizer: Any, epochs: int) -> None:
        if epochs == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        save(path, model, optimizer, epochs)

    module.save_training = killed_at_two
    trained(Path(sys.argv[1]), make=multi_exit if "together" in sys.argv else network)
