import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from meedge_ray.api.elastic_model import Convolution, FullyConnected
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.nn.branches import build_branch
from meedge_ray.nn.export import export_unit


def assert_runs_as_in_torch(module, x, *, tolerance=1e-5):
    """Export, run with one sample and with three, and return the unit."""
    unit = export_unit(module, tuple(x.shape[1:]))
    session = onnxruntime.InferenceSession(unit, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        with torch.no_grad():
            expected = module(x[:batch].clone()).numpy()
        (found,) = session.run(["y"], {"x": x[:batch].numpy()})
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())
    return unit


def operators(unit):
    return [node.op_type for node in onnx.load_from_string(unit).graph.node]


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        ("lenet", (1, 28, 28)),
        ("alexnet", (3, 32, 32)),
        ("vgg16", (3, 32, 32)),
        ("resnet20", (3, 32, 32)),
        ("torchvision/resnet18", (3, 64, 64)),
        ("torchvision/mobilenet_v2", (3, 32, 32)),
        ("torchvision/densenet121", (3, 32, 32)),
        ("torchvision/squeezenet1_1", (3, 64, 64)),
        ("torchvision/googlenet", (3, 64, 64)),
        ("torchvision/efficientnet_b0", (3, 32, 32)),
    ],
)
def test_every_block_of_a_backbone_runs_as_in_torch(backbone, architecture, shape):
    case = backbone(architecture, shape)
    with torch.no_grad():
        inputs = (case.x, *case.chain.features(case.x))
    for piece, x in zip(case.chain.pieces, inputs, strict=True):
        unit = assert_runs_as_in_torch(piece.module, x)
        folds = architecture in ("vgg16", "resnet20", "torchvision/resnet18", "torchvision/mobilenet_v2")
        assert not (folds and "BatchNormalization" in operators(unit))


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("kind", ["none", "standard", "depthwise", "separable", "spatiallySeparable", "dilated"])
@pytest.mark.parametrize("head", [{"pooledSize": 1}, {"pooledSize": 4, "hidden": [8, 8]}, {"pooledSize": 7}])
def test_every_branch_runs_as_in_torch(kind, kernel_size, head, age):
    convolution = Convolution.model_validate({"kind": kind, "kernelSize": kernel_size})
    branch = build_branch(convolution, FullyConnected.model_validate(head), (6, 7, 7), 5).eval()
    age(branch)
    unit = assert_runs_as_in_torch(branch, torch.randn(3, 6, 7, 7))
    assert set(operators(unit)) <= {"Conv", "Relu", "AveragePool", "GlobalAveragePool", "Flatten", "Gemm"}


def test_a_unit_names_its_input_and_output_and_leaves_the_batch_open(backbone):
    piece = backbone("resnet20", (3, 32, 32)).chain.pieces[0]
    graph = onnx.load_from_string(export_unit(piece.module, piece.input_shape)).graph
    for value, name, shape in ((graph.input[0], "x", [3, 32, 32]), (graph.output[0], "y", [16, 32, 32])):
        assert value.name == name
        batch, *rest = value.type.tensor_type.shape.dim
        assert batch.dim_param
        assert [dimension.dim_value for dimension in rest] == shape
    assert len(graph.input) == len(graph.output) == 1


def test_the_same_module_gives_the_same_bytes_whatever_was_exported_before(backbone):
    pieces = backbone("resnet20", (3, 32, 32)).chain.pieces
    first = export_unit(pieces[4].module, pieces[4].input_shape)
    for piece in reversed(pieces):
        export_unit(piece.module, piece.input_shape)
    assert export_unit(pieces[4].module, pieces[4].input_shape) == first


def test_a_unit_does_not_say_who_made_it(backbone):
    piece = backbone("lenet", (1, 28, 28)).chain.pieces[0]
    unit = export_unit(piece.module, piece.input_shape)
    model = onnx.load_from_string(unit)
    assert (model.producer_name, model.producer_version, model.doc_string, list(model.metadata_props)) == (
        "",
        "",
        "",
        [],
    )
    assert not any(node.doc_string for node in model.graph.node)
    assert b"torch" not in unit
    assert b".py" not in unit


def test_export_leaves_the_module_as_it_was(backbone):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(5)).eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    export_unit(module, (3, 9, 9))
    assert isinstance(module[2], nn.AdaptiveAvgPool2d)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not module[2]._forward_hooks


@pytest.mark.parametrize("view", ["size", "shape", "flatten"])
def test_a_reshape_by_the_batch_size_stays_dynamic(view):
    class Reshaping(nn.Module):
        def forward(self, x):
            if view == "size":
                return x.view(x.size(0), -1)
            return x.reshape(x.shape[0], 48) if view == "shape" else torch.flatten(x, 1)

    assert_runs_as_in_torch(Reshaping().eval(), torch.randn(3, 3, 4, 4))


@pytest.mark.parametrize(("side", "size"), [((1, 1), 7), ((3, 3), 6), ((7, 5), (3, 2)), ((8, 8), 4), ((5, 8), (1, 3))])
def test_adaptive_pooling_of_any_size_runs_as_in_torch(side, size):
    module = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(size), nn.Flatten()).eval()
    assert_runs_as_in_torch(module, torch.randn(3, 2, *side))


def test_an_operation_onnx_lacks_is_refused(says):
    class Unknown(nn.Module):
        def forward(self, x):
            return torch.cummax(x, 1)[0]

    with pytest.raises(InvalidInputError) as caught:
        export_unit(Unknown(), (3, 4, 4))
    says(caught.value, what="cannot be written as ONNX", where="Unknown", do="Use operations that ONNX has")
    assert "aten::cummax" in caught.value.what
