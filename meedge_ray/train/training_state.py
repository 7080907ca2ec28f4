"""The file that a killed training goes on from: weights, statistics of batch norms, and Adam's moments."""

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from meedge_ray.bundle.files import write_atomically


def save_training(path: Path, module: nn.Module, optimizer: torch.optim.Adam, done: int) -> None:
    """Write all that training goes on from, whole or not at all.

    Args:
        path: a .safetensors file.
        module: what is trained.
        optimizer: of the module's parameters.
        done: epochs or steps behind it.
    """
    tensors = {f"model/{key}": value for key, value in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam/{index}/{key}": value for key, value in moments.items()}
    # Clones, because safetensors refuses tensors that share memory, such as tied weights.
    whole = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    write_atomically(path, safetensors.torch.save(whole, {"done": str(done)}))


def restore_training(path: Path, module: nn.Module, optimizer: torch.optim.Adam) -> int:
    """Load weights and moments; return what was `done`."""
    weights: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    with safetensors.safe_open(path, framework="pt") as file:
        done = int(file.metadata()["done"])
        for name in file.keys():  # noqa: SIM118 - no dict
            kind, key = name.split("/", 1)
            if kind == "model":
                weights[key] = file.get_tensor(name)
            else:
                index, key = key.split("/")
                moments.setdefault(int(index), {})[key] = file.get_tensor(name)
    module.load_state_dict(weights)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return done
