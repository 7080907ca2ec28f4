"""The pre-trained model a manifest names: built by the registry, weights read from safetensors."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from meedge_ray.api.elastic_model import Model
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.domain.paths import expand_path
from meedge_ray.nn.backbones import build_backbone

_WHERE = "spec.model.weights"
_SHOWN = 3  # of each list of keys: enough to see a prefix or a wrong depth


def load_model(model: Model, *, input_shape: tuple[int, int, int], classes: int, base_dir: Path) -> nn.Module:
    """Build the model in eval mode, with its weights loaded where the manifest names any.

    Args:
        model: the manifest's section.
        input_shape: channels, height and width of one input.
        classes: number of logits.
        base_dir: the folder `model.weights` is relative to; it may hold environment variables.

    Raises:
        InvalidInputError: the architecture cannot be built, or the weights are not its weights.
    """
    network = build_backbone(
        model.architecture, input_shape=input_shape, classes=classes, arguments=model.arguments
    ).eval()
    if model.weights is not None:
        path = expand_path(model.weights, base_dir, where=_WHERE)
        weights = _read(path)
        _check(network, weights, architecture=model.architecture, path=path)
        network.load_state_dict(weights, strict=False)  # _check was stricter, and says more
    return network


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the model's weights as safetensors: the whole file or nothing."""
    # Clones, because safetensors refuses tensors that share memory, such as tied weights.
    weights = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(safetensors.torch.save(weights))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return dict(safetensors.torch.load_file(path))
    except OSError as error:
        raise InvalidInputError(
            f"cannot read {path}: {error.strerror or error}",
            where=_WHERE,
            do="Give the path of a .safetensors file, relative to the manifest",
        ) from error
    except safetensors.SafetensorError as error:
        raise InvalidInputError(
            f"{path} is not a whole safetensors file: {error}",
            where=_WHERE,
            do="Save the weights with safetensors.torch.save_file(model.state_dict(), path); pickles are not read",
        ) from error


def _check(network: nn.Module, weights: Mapping[str, Tensor], *, architecture: str, path: Path) -> None:
    expected = network.state_dict()
    # A counter that only training reads; many published files leave it out.
    missing = [key for key in expected if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in expected]
    reshaped = [
        f"{key} ({_shape(weights[key])} in the file, {_shape(expected[key])} in the model)"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    found = [
        f"{label} {_first(items)}"
        for label, items in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if items
    ]
    if found:
        raise InvalidInputError(
            f"{path} does not hold the weights of {architecture}: {'; '.join(found)}",
            where=_WHERE,
            do="Check spec.model.architecture and its arguments, the data's classes and image size, or give the file "
            "saved from this very model",
        )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _first(items: Iterable[str]) -> str:
    shown = sorted(items)
    rest = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + rest
