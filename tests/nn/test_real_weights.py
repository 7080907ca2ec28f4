"""A published classifier, whole, in blocks, and in blocks as ONNX. Needs the folder MEEDGE_SHARED names."""

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from meedge_ray.api.elastic_model import Model
from meedge_ray.nn.export import export_unit
from meedge_ray.nn.partition import partition
from meedge_ray.nn.source import load_model

pytestmark = pytest.mark.skipif("MEEDGE_SHARED" not in os.environ, reason="MEEDGE_SHARED is unset: no real weights")


@pytest.fixture(scope="module")
def resnet20():
    model = Model.model_validate({"architecture": "resnet20", "weights": "models/resnet20-cifar10.safetensors"})
    return load_model(model, input_shape=(3, 32, 32), classes=10, base_dir=Path(os.environ["MEEDGE_SHARED"]))


def test_the_blocks_of_a_trained_resnet_compute_its_bits(resnet20):
    x = torch.randn(8, 3, 32, 32)
    chain = partition(resnet20, (3, 32, 32))
    assert chain.exit_count == 10
    with torch.no_grad():
        assert torch.equal(chain.run(x), resnet20(x))


def test_the_blocks_of_a_trained_resnet_agree_as_onnx(resnet20):
    x = torch.randn(8, 3, 32, 32)
    value = x.numpy()
    for piece in partition(resnet20, (3, 32, 32)).pieces:
        unit = export_unit(piece.module, piece.input_shape)
        session = onnxruntime.InferenceSession(unit, providers=["CPUExecutionProvider"])
        (value,) = session.run(["y"], {"x": value})
    with torch.no_grad():
        expected = resnet20(x).numpy()
    assert np.abs(value - expected).max() < 1e-4
    assert (value.argmax(1) == expected.argmax(1)).all()
