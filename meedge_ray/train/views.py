"""One pass of the frozen backbone over one view of a split, written to the disk batch after batch."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from meedge_ray.api.elastic_model import Augmentation
from meedge_ray.bundle.files import write_atomically
from meedge_ray.domain.errors import MeedgeError
from meedge_ray.nn.partition import Chain
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.train.arrays import ArrayFile
from meedge_ray.train.augmentation import augmented
from meedge_ray.train.data import Dataset
from meedge_ray.train.device import training_device
from meedge_ray.train.samples import Raw, Samples

_BATCH = 256
_MAP_BYTES = 64 * 2**20  # of the largest feature map of a batch


@dataclass(frozen=True, slots=True)
class View:
    """One view of one split: what one pass of the backbone writes."""

    split: str
    number: int
    samples: Samples
    augmentation: Augmentation | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """How its files begin."""
        return f"{self.split}.{self.number}"

    def raw(self, indices: NDArray[np.int64]) -> Raw:
        """Return the raw samples at these places of the split, as this view changes them."""
        raw = self.samples.x[indices]
        if self.number == 0 or self.augmentation is None:
            return raw
        return augmented(raw, indices, augmentation=self.augmentation, seed=self.seed, view=self.number)


def view_maps(chain: Chain, dataset: Dataset) -> list[tuple[str, type[np.generic], tuple[int, ...]]]:
    """Return name, type and shape of a row of every array of a view."""
    return [
        *((str(index), np.float16, piece.output_shape) for index, piece in enumerate(chain.pieces[:-1])),
        ("logits", np.float32, (len(dataset.classes),)),
    ]


@contextmanager
def on_device(device: torch.device, chain: Chain) -> Iterator[None]:
    """Move the backbone to a device, and back to the CPU at the end."""
    try:
        for piece in chain.pieces:
            piece.module.to(device)
        yield
    finally:
        for piece in chain.pieces:
            piece.module.to("cpu")


@torch.inference_mode()
def write_view(chain: Chain, dataset: Dataset, part: View, folder: Path, on_done: Callable[[int], None]) -> None:
    """Run the backbone over a view and write features and logits, going on at the batch where a killed run was.

    Args:
        chain: the backbone, on the training device.
        dataset: whose samples they are.
        part: the view.
        folder: where its .npy files lie, and a .json that says how many samples are on the disk.
        on_done: told the samples done after every batch.

    Raises:
        MeedgeError: a feature leaves the range of fp16.
        UnavailableError: the disk is full.
    """
    normalizer, device, count = Normalizer(dataset.input), training_device(), len(part.samples)
    size = _batch_size(chain)
    progress = folder / f"{part.name}.json"
    done = json.loads(progress.read_text()) if progress.exists() else 0
    with ExitStack() as stack:
        files = [
            stack.enter_context(ArrayFile(folder / f"{part.name}.{name}.npy", dtype, (count, *shape), done))
            for name, dtype, shape in view_maps(chain, dataset)
        ]
        for start in range(done, count, size):
            indices = np.arange(start, min(start + size, count))
            x = torch.from_numpy(normalizer.batch(part.raw(indices))).to(device)
            for index, (piece, file) in enumerate(zip(chain.pieces, files, strict=True)):
                x = piece.module(x)
                file.append(_halved(x, index) if index < chain.exit_count else x.cpu().numpy())
            for file in files:
                file.sync()
            write_atomically(progress, json.dumps(start + len(indices)).encode())
            on_done(start + len(indices))


def _batch_size(chain: Chain) -> int:
    largest = max(int(np.prod(shape)) for piece in chain.pieces for shape in (piece.input_shape, piece.output_shape))
    return max(1, min(_BATCH, _MAP_BYTES // (4 * largest)))


def _halved(feature: torch.Tensor, exit_index: int) -> NDArray[np.float16]:
    if not bool(feature.abs().max() < np.finfo(np.float16).max):
        raise MeedgeError(
            "a feature is not finite or beyond the range of fp16",
            where=f"exit {exit_index}",
            do="Check the weights and spec.data.normalization: inputs should have about unit variance",
        )
    halved: NDArray[np.float16] = feature.half().cpu().numpy()
    return halved
