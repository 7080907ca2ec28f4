"""What the edge's link and soak are measured with: a small ResNet-20, and a place to keep what is built."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _networks import Build, manifest, networks
from numpy.typing import NDArray

from meedge_ray.cli.output import Bars
from meedge_ray.domain.elastic import Bundle
from meedge_ray.train.build import build

sys.path.append(str(Path(__file__).parent.parent / "tests" / "support"))

NAME = "resnet20-cifar10"
# What is sent counts here, and not how well it answers.
_BUILD, _QUICK = Build(1500, 1, "reduced", sharing_epochs=1, kills=200), Build(512, 1, "quick", sharing_epochs=1)


def link_bundle(work: Path, *, quick: bool) -> tuple[Path, Bundle]:
    """Return the folder of the bundle and what it says; what is there already is not built again."""
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    network = replace(networks(cifar100=False, quick=False)[NAME], build=_QUICK if quick else _BUILD)
    output = work / (f"{NAME}-link-quick" if quick else f"{NAME}-link")
    with Bars() as bars:
        return output, build(manifest(NAME, network, work, None, bars), output, report=bars)


def sample_of(bundle: Bundle) -> NDArray[np.uint8]:
    """Return a raw sample, of noise."""
    return np.random.default_rng(0).integers(0, 256, bundle.input.shape, dtype=np.uint8)


@contextmanager
def run_folder() -> Iterator[Path]:
    """Give a folder in which this process's agents, and nobody else's, have their sockets."""
    with tempfile.TemporaryDirectory(prefix="meedge-") as folder:
        os.environ["MEEDGE_RUN_DIR"] = str(Path(folder) / "run")
        yield Path(folder)
