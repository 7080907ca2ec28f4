"""A small supernet in torch whose added blocks are made by hand, and digits to train it on."""

import copy
from functools import cache
from pathlib import Path

import torch
from torch import nn

from meedge_ray.api.elastic_model import Data, Pretrain
from meedge_ray.nn.partition import Chain, partition
from meedge_ray.nn.supernet import Growth, Supernet
from meedge_ray.train.data import Dataset, load_data
from meedge_ray.train.pretrain import pretrain

SHAPE = (1, 8, 8)


@cache
def digits() -> Dataset:
    return load_data(Data.model_validate({"trainSamples": 600}), Path())


@cache
def _backbone() -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for before in (1, 8, 8):
        layers += [nn.Conv2d(before, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    settings = Pretrain.model_validate({"epochs": 8, "batchSize": 64, "learningRate": "0.01"})
    pretrain(model, digits(), settings, seed=0)
    return model


def chain() -> Chain:
    """Four blocks, of which the first and the last are not replaced."""
    return partition(copy.deepcopy(_backbone()), SHAPE)


def growths(*, dropout: float = 0.0) -> list[Growth]:
    """One merged block for the two in the middle, and two shrunk ones for each of them."""
    torch.manual_seed(4)
    merged = Growth("merged-1-3", "merged", 1, 3, _block(8, dropout), 1, 1)
    shrunk = [
        Growth(f"shrunk-{start}-{width}", "shrunk", start, start + 1, _block(width, dropout), 1, 1)
        for start in (1, 2)
        for width in (2, 4)
    ]
    return [merged, *shrunk]


def supernet(*, dropout: float = 0.0) -> Supernet:
    return Supernet(chain(), growths(dropout=dropout))


def _block(width: int, dropout: float) -> nn.Module:
    inside = [nn.Conv2d(8, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*inside, nn.Conv2d(width, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
