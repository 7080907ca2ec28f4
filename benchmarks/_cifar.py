"""What benchmarks of training start from: the pre-trained ResNet-20's features of CIFAR-10 at every exit."""

from dataclasses import replace
from pathlib import Path

import torch
from _networks import NETWORKS, manifest

from meedge_ray.nn.partition import Chain, partition
from meedge_ray.nn.source import load_model
from meedge_ray.train.data import load_data
from meedge_ray.train.features import Features, cache_features
from meedge_ray.train.progress import silent

NETWORK = "resnet20-cifar10"
CLASSES = 10


def resnet20_features(work: Path, train_samples: int) -> tuple[Chain, Features]:
    """Return the network and its features of so many training images and 5,000 for validation.

    About 200 KB a sample are written to the folder `work`; a cache that is there is taken as it is.
    """
    torch.manual_seed(0)
    network = NETWORKS[NETWORK]
    network = replace(network, build=replace(network.build, train_samples=train_samples))
    declared = manifest(NETWORK, network, work, None, silent)
    spec = declared.model.spec
    dataset = load_data(spec.data, declared.base_dir)
    model = load_model(spec.model, input_shape=(3, 32, 32), classes=CLASSES, base_dir=declared.base_dir)
    chain = partition(model, (3, 32, 32))
    return chain, cache_features(chain, dataset, work / f"features-{train_samples}", silent)
