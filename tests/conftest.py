"""What tests of several floors share: a tiny model built for real, and a smaller one made by hand."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from worlds import World, make_world

from meedge_ray.domain.elastic import Bundle
from meedge_ray.train.build import build
from meedge_ray.train.manifest import read_manifest

# A busy machine is no failure.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
torch.set_num_threads(1)  # one worker a core: more threads would wait for each other

TINY_MANIFEST = """
apiVersion: meedge.dev/v1alpha1
kind: ElasticModel
metadata: {name: tiny}
spec:
  model:
    architecture: resnet8
    pretrain: {epochs: 3, batchSize: 64, learningRate: "0.01"}
  data: {source: digits}
  zoo:
    convolutions: [{kind: none}, {kind: depthwise}]
    fullyConnected: [{pooledSize: 1}, {pooledSize: 2, hidden: [24]}]
  cultivation: {epochs: 2, learningRate: "0.01"}
  sharing: {epochs: 2}
"""


def write_manifest(folder: Path, text: str = TINY_MANIFEST) -> Path:
    path = folder / "model.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A built bundle and its folder; tests only read it."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder / "bundle", build(read_manifest(write_manifest(folder)), folder / "bundle")


@pytest.fixture(scope="session")
def world() -> World:
    """A small model of hand-made units."""
    return make_world()


@pytest.fixture(scope="session")
def worlds() -> Callable[..., World]:
    """Makes such models of other seeds and sizes."""
    return make_world


@pytest.fixture(scope="session")
def own_cluster() -> Iterator[Any]:
    """The one Ray cluster of the session, and the connection of this process to it."""
    from meedge_ray.actors.cluster import cluster

    with cluster() as own:
        yield own


@pytest.fixture
def tiny_manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path)
