"""An exit's training between two epochs, on disk: where a killed worker's successor goes on.

The folder holds one folder an epoch. Of all but the newest only the weights of branches that stopped there are kept.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from meedge_ray.train.files import whole_folder
from meedge_ray.train.zoo_network import Group, Part, Stem

_WEIGHTS = "weights.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class Progress:
    """Epochs done, each branch's last accuracy on validation, and the epoch after which it stopped, if it did."""

    epochs: int = 0
    accuracies: dict[str, float] = field(default_factory=dict)
    stopped_epochs: dict[str, int] = field(default_factory=dict)


def read_progress(folder: Path) -> Progress:
    """Return what the newest checkpoint says, or the beginning where there is none."""
    newest = max(folder.glob("epoch-*"), default=None)
    return Progress() if newest is None else Progress(**json.loads((newest / "progress.json").read_text()))


def write_checkpoint(folder: Path, progress: Progress, groups: Sequence[Group], optimizer: torch.optim.Adam) -> None:
    """Write all that the next epoch starts from, whole or not at all, and remove what is no longer needed."""
    with whole_folder(_epoch(folder, progress.epochs)) as partial:
        _save(partial / _WEIGHTS, ((key, part.of(part.whole)) for key, part in _parts(groups)))
        for moment in _MOMENTS:
            learning = [(key, part) for key, part in _parts(groups) if part.whole in optimizer.state]
            _save(
                partial / f"{moment}.safetensors",
                ((key, part.of(optimizer.state[part.whole][moment])) for key, part in learning),
            )
        (partial / "progress.json").write_text(json.dumps(asdict(progress)))
    for epoch in range(progress.epochs):
        older = _epoch(folder, epoch)
        for file in older.glob("*"):
            if file.name != _WEIGHTS or epoch not in progress.stopped_epochs.values():
                file.unlink()


def restore(folder: Path, progress: Progress, groups: Sequence[Group], optimizer: torch.optim.Adam) -> None:
    """Fill groups and the optimizer's moments with what the checkpoint holds of them, tensor by tensor."""
    epoch = _epoch(folder, progress.epochs)
    with torch.no_grad():
        with safe_open(epoch / _WEIGHTS, "pt") as file:
            for key, part in _parts(groups):
                part.of(part.whole).copy_(file.get_tensor(key))
        for moment in _MOMENTS:
            with safe_open(epoch / f"{moment}.safetensors", "pt") as file:
                for key, part in _parts(groups):
                    if part.whole in optimizer.state:
                        part.of(optimizer.state[part.whole][moment]).copy_(file.get_tensor(key))


def grown_weights(folder: Path, progress: Progress, stems: Iterable[Stem]) -> dict[str, Tensor]:
    """Return the weights of all branches, of those that stopped as they were then."""
    epochs: dict[str, int] = {}
    for stem in stems:
        for name, _ in stem.heads:
            epochs[name] = epochs[stem.name] = progress.stopped_epochs.get(name, progress.epochs)
    weights: dict[str, Tensor] = {}
    for epoch in sorted(set(epochs.values())):
        with safe_open(_epoch(folder, epoch) / _WEIGHTS, "pt") as file:
            kept = (key for key in file.keys() if epochs[key.partition("/")[0]] == epoch)  # noqa: SIM118 - no mapping
            weights |= {key: file.get_tensor(key) for key in kept}
    return weights


def _epoch(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:06d}"


def _parts(groups: Sequence[Group]) -> Iterator[tuple[str, Part]]:
    return (named for group in groups for named in group.parts())


def _save(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors}, path)
