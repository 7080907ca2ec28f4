"""From the name in a manifest to a backbone: references, torchvision's models, and the user's own."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn

from meedge_ray.domain.errors import InvalidInputError, MeedgeError
from meedge_ray.nn.backbones.alexnet import AlexNet
from meedge_ray.nn.backbones.lenet import LeNet
from meedge_ray.nn.backbones.mobilenet import MobileNetV2
from meedge_ray.nn.backbones.msdnet import MSDNet
from meedge_ray.nn.backbones.resnet import ResNet
from meedge_ray.nn.backbones.vgg import VGG16

_WHERE = "spec.model.architecture"
_REFERENCES: dict[str, type[LeNet | AlexNet | MobileNetV2 | VGG16 | MSDNet]] = {
    "alexnet": AlexNet,
    "lenet": LeNet,
    "mobilenetv2": MobileNetV2,
    "msdnet": MSDNet,
    "vgg16": VGG16,
}
_DEEPEST_RESNET = 1202  # of He et al. 2015
_KNOWN = (*_REFERENCES, "resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
_CHOICES = (
    f"Choose one of {', '.join(_KNOWN)} (any resnet of depth 6n+2), torchvision/NAME, or your own as "
    "package.module:callable"
)

Arguments = Mapping[str, str | int | bool]


def build_backbone(
    architecture: str, *, input_shape: tuple[int, int, int], classes: int, arguments: Arguments
) -> nn.Module:
    """Build the backbone a manifest names, with fresh weights.

    Args:
        architecture: `alexnet`, `lenet`, `mobilenetv2`, `msdnet`, `vgg16`, `resnet<6n+2>`, `torchvision/NAME` or
            `package.module:callable`. A callable gets `input_shape` and `classes` where its signature names them.
        input_shape: channels, height and width of one input.
        classes: number of logits.
        arguments: further keyword arguments of the constructor.

    Raises:
        InvalidInputError: no such architecture, or it cannot be built from these arguments or for this shape.
    """
    if architecture.startswith("torchvision/"):
        builder = _from_torchvision(architecture.removeprefix("torchvision/"), classes)
    elif ":" in architecture:
        builder = _from_module(architecture, input_shape, classes)
    else:
        builder = _from_references(architecture, input_shape, classes)
    try:
        model = builder(**arguments)
    except MeedgeError:  # it says which argument
        raise
    except Exception as error:  # whatever the constructor raises, it is for the manifest's author
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "none"
        raise InvalidInputError(
            f"{architecture} cannot be built with arguments {given}: {type(error).__name__}: {error}",
            where="spec.model.arguments",
            do="Give the keyword arguments its constructor takes",
        ) from error
    if not isinstance(model, nn.Module):
        raise InvalidInputError(
            f"{architecture} returned {type(model).__name__}, which is no torch.nn.Module",
            where=_WHERE,
            do="Name a class or function that returns a torch.nn.Module",
        )
    return model


def _from_references(name: str, input_shape: tuple[int, int, int], classes: int) -> Callable[..., object]:
    model: Callable[..., object]
    if match := re.fullmatch(r"resnet([0-9]{1,4})", name):
        depth = int(match[1])
        if depth < 8 or depth > _DEEPEST_RESNET or depth % 6 != 2:
            nearest = min(max(round((depth - 2) / 6), 1), 200) * 6 + 2
            raise InvalidInputError(
                f"there is no resnet of depth {depth} for small images: depths are 6n+2, from 8 to {_DEEPEST_RESNET}",
                where=_WHERE,
                do=f"Did you mean resnet{nearest}, or torchvision/{name}?",
            )
        model, minimum_side = partial(ResNet, depth), ResNet.minimum_side
    elif name in _REFERENCES:
        model, minimum_side = _REFERENCES[name], _REFERENCES[name].minimum_side
    else:
        raise InvalidInputError(
            f"there is no architecture {name!r}", where=_WHERE, do=_suggest(name, _KNOWN) + _CHOICES
        )
    if min(input_shape[1:]) < minimum_side:
        raise InvalidInputError(
            f"{name} needs images of at least {minimum_side}x{minimum_side}, not {input_shape[1]}x{input_shape[2]}",
            where=_WHERE,
            do=f"Set spec.data.imageSize to {max(minimum_side, 32)}, or choose a resnet, which takes any size",
        )
    if name == "msdnet" and any(side % MSDNet.side_multiple for side in input_shape[1:]):
        raise InvalidInputError(
            f"msdnet halves images twice, and {input_shape[1]}x{input_shape[2]} does not divide by "
            f"{MSDNet.side_multiple}",
            where=_WHERE,
            do=f"Set spec.data.imageSize to {-(-max(input_shape[1:]) // MSDNet.side_multiple) * MSDNet.side_multiple}",
        )
    return partial(model, input_shape=input_shape, classes=classes)


def _from_torchvision(name: str, classes: int) -> Callable[..., object]:
    # Here, not above: the import takes over a second, and only its users should pay for it.
    models: Any = importlib.import_module("meedge_ray.nn.vision").torchvision.models
    known = models.list_models(module=models)
    if name not in known:
        raise InvalidInputError(
            f"torchvision has no classification model {name!r}",
            where=_WHERE,
            do=f"{_suggest(name, known)}Choose one of {', '.join(known)}",
        )
    return partial(models.get_model, name, weights=None, num_classes=classes)


def _from_module(architecture: str, input_shape: tuple[int, int, int], classes: int) -> Callable[..., object]:
    module_name, _, attribute = architecture.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code: anything may come
        raise InvalidInputError(
            f"{module_name!r} cannot be imported: {type(error).__name__}: {error}",
            where=_WHERE,
            do="Install the package, or put its folder on PYTHONPATH; the form is package.module:callable",
        ) from error
    builder = getattr(module, attribute, None)
    if not callable(builder):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise InvalidInputError(
            f"{module_name} has no callable {attribute!r}",
            where=_WHERE,
            do=f"{_suggest(attribute, known)}It has {', '.join(known) or 'none'}",
        )
    offered = {"input_shape": input_shape, "classes": classes}
    taken = inspect.signature(builder).parameters
    return partial(builder, **{name: value for name, value in offered.items() if name in taken})


def _suggest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]}? " if near else ""
