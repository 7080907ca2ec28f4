"""A block or branch as an ONNX unit: the bytes that are stored, sent and loaded."""

import copy
import io
import warnings

import onnx
import torch
from torch import Tensor, nn

from meedge_ray.domain.errors import InvalidInputError

_OPSET = 17  # the newest the TorchScript exporter writes in full; every ONNX Runtime since 1.12 reads it


def export_unit(module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
    """Return the module as ONNX with input `x` and output `y`, the batch being dynamic.

    The module is put into eval mode, and batch normalization is folded into convolutions. The same module gives the
    same bytes.

    Args:
        module: a block or a branch.
        input_shape: shape of its input, without the batch dimension.

    Raises:
        InvalidInputError: the module uses an operation ONNX does not have.
    """
    sample = torch.zeros(1, *input_shape)
    exportable = _with_fixed_pooling(module.eval(), sample)
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # The TorchScript exporter is deprecated in words, and takes 5 ms a unit where its successor takes 500.
            for words in (".*legacy TorchScript-based ONNX", "The feature will be removed"):
                warnings.filterwarnings("ignore", category=DeprecationWarning, message=words)
            # What is not folded here, such as the paddings of F.pad, ONNX Runtime folds when it loads the unit.
            warnings.filterwarnings("ignore", category=UserWarning, message="Constant folding")
            torch.onnx.export(
                exportable,
                (sample,),
                file,  # type: ignore[arg-type]  # its successor wants a path
                input_names=["x"],
                output_names=["y"],
                dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
                opset_version=_OPSET,
                dynamo=False,
            )
    except Exception as error:  # the exporter runs the user's model: anything may come
        raise InvalidInputError(
            f"the module cannot be written as ONNX: {error}",
            where=type(module).__name__,
            do="Use operations that ONNX has",
        ) from error
    model = onnx.load_from_string(file.getvalue())
    _anonymize(model)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _anonymize(model: onnx.ModelProto) -> None:
    """Drop what says where and by whom it was made: equal units should have equal bytes."""
    for field in ("producer_name", "producer_version", "domain", "doc_string", "metadata_props"):
        model.ClearField(field)
    model.graph.name = "unit"
    for part in (model.graph, *model.graph.node):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


class _FixedPooling(nn.Module):
    """Adaptive average pooling of maps of one size, as two matrix products."""

    def __init__(self, input_size: tuple[int, int], output_size: tuple[int, int]) -> None:
        super().__init__()
        self.rows = nn.Buffer(_averages(input_size[0], output_size[0]))
        self.columns = nn.Buffer(_averages(input_size[1], output_size[1]).T)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self.columns


def _averages(before: int, after: int) -> Tensor:
    """Return the matrix [after, before] whose product with a column of pixels pools it adaptively."""
    return nn.functional.adaptive_avg_pool1d(torch.eye(before), after).T


def _with_fixed_pooling(module: nn.Module, sample: Tensor) -> nn.Module:
    """Return the module, or a copy where it pools adaptively to a size that ONNX cannot say.

    ONNX has no adaptive pooling: the exporter writes a plain one where it can, when sizes divide.
    """
    replaced: dict[str, _FixedPooling] = {}

    def note(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        before, after = inputs[0].shape[-2:], output.shape[-2:]
        if before[0] % after[0] or before[1] % after[1]:
            replaced[name] = _FixedPooling((before[0], before[1]), (after[0], after[1]))

    pools = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.AdaptiveAvgPool2d)]
    if not pools:
        return module
    hooks = [
        part.register_forward_hook(lambda _, inputs, output, name=name: note(name, inputs, output))
        for name, part in pools
    ]
    try:
        with torch.no_grad():
            module(sample)
    finally:
        for hook in hooks:
            hook.remove()
    if replaced:
        module = copy.deepcopy(module)
        for name, pooling in replaced.items():
            module.set_submodule(name, pooling)
    return module
