from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from meedge_ray.domain.errors import MeedgeError
from meedge_ray.nn.backbones import build_backbone
from meedge_ray.nn.partition import Chain, partition

torch.set_num_threads(1)  # the suite runs on every core already

_ARGUMENTS = {
    "torchvision/googlenet": {"aux_logits": False, "init_weights": False},
    "torchvision/vgg11": {"init_weights": False},
}


@dataclass(frozen=True)
class Case:
    """A backbone with lived-in normalization, its chain, inputs, and what the model itself says of them."""

    model: nn.Module
    chain: Chain
    x: Tensor
    logits: Tensor


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _age(model: nn.Module) -> None:
    """Fresh normalization layers do nothing, and would hide one that is lost or folded wrongly."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)


@pytest.fixture(scope="session")
def backbone() -> Callable[[str, tuple[int, int, int]], Case]:
    @cache
    def build(architecture: str, shape: tuple[int, int, int]) -> Case:
        torch.manual_seed(0)
        model = build_backbone(
            architecture, input_shape=shape, classes=10, arguments=_ARGUMENTS.get(architecture, {})
        ).eval()
        _age(model)
        x = torch.randn(3, *shape)
        with torch.no_grad():
            logits = model(x.clone())
        return Case(model, partition(model, shape), x, logits)

    return build


@pytest.fixture(scope="session")
def age() -> Callable[[nn.Module], None]:
    return _age


@pytest.fixture(scope="session")
def says() -> Callable[..., None]:
    """Check that an error says what is wrong, where, and what to do, in one line."""

    def check(error: MeedgeError, *, what: str, where: str, do: str) -> None:
        assert what in error.what
        assert where in error.where
        assert do in error.do
        assert str(error) == f"{error.where}: {error.what}. {error.do}"

    return check
