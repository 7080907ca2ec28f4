"""Features of the frozen backbone at every exit point, computed once and memory-mapped (fp16)."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from meedge_ray.domain.errors import InvalidInputError, MeedgeError
from meedge_ray.nn.partition import Chain
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.train.data import Dataset
from meedge_ray.train.files import whole_folder
from meedge_ray.train.progress import Report
from meedge_ray.train.samples import Samples

SPLITS = ("train", "validation")
_BATCH = 256
_SPARE_BYTES = 512 * 2**20  # left free on the disk for everybody else


@dataclass(frozen=True, slots=True)
class Features:
    """The cache in a folder: `features(exit, split)` [N, C, H, W] fp16, `labels(split)` [N], final logits [N, K]."""

    folder: Path

    def features(self, exit_index: int, split: str) -> NDArray[np.float16]:
        """Return one exit's features as a read-only memory map."""
        mapped: NDArray[np.float16] = np.load(self.folder / f"{split}.{exit_index}.npy", mmap_mode="r")
        return mapped

    def labels(self, split: str) -> NDArray[np.int64]:
        """Return the labels in the order of the features."""
        labels: NDArray[np.int64] = np.load(self.folder / f"{split}.labels.npy")
        return labels

    def logits(self, split: str) -> NDArray[np.float32]:
        """Return what the backbone itself says at its final exit."""
        logits: NDArray[np.float32] = np.load(self.folder / f"{split}.logits.npy")
        return logits

    @property
    def final_accuracy(self) -> float:
        """Accuracy of the unchanged backbone on the validation split."""
        return float((self.logits("validation").argmax(1) == self.labels("validation")).mean())


def cache_features(chain: Chain, dataset: Dataset, folder: Path, report: Report) -> Features:
    """Run the backbone once over the training and validation splits; a finished cache is kept as it is.

    Raises:
        InvalidInputError: the disk cannot hold the cache.
        MeedgeError: a feature leaves the range of fp16.
    """
    if folder.exists():
        return Features(folder)
    shapes = [piece.output_shape for piece in chain.pieces[:-1]]
    samples = len(dataset.train) + len(dataset.validation)
    needed_bytes = 2 * samples * sum(int(np.prod(shape)) for shape in shapes)
    free_bytes = shutil.disk_usage(folder.parent).free - _SPARE_BYTES
    if needed_bytes > free_bytes:
        raise InvalidInputError(
            f"the features of {samples} samples at {len(shapes)} exits need {needed_bytes / 2**30:.1f} GiB "
            f"of disk and {max(0, free_bytes) / 2**30:.1f} GiB are free",
            where=str(folder.parent),
            do="Set spec.data.trainSamples, or build in a folder on a larger disk",
        )
    with whole_folder(folder) as partial:
        done = 0
        for split, part in zip(SPLITS, (dataset.train, dataset.validation), strict=True):
            done = _write_split(chain, dataset, part, partial, split, (done, samples), report)
    return Features(folder)


@torch.inference_mode()
def _write_split(
    chain: Chain, dataset: Dataset, part: Samples, folder: Path, split: str, progress: tuple[int, int], report: Report
) -> int:
    done, total = progress
    normalizer = Normalizer(dataset.input)
    maps = [
        np.lib.format.open_memmap(
            folder / f"{split}.{index}.npy", mode="w+", dtype=np.float16, shape=(len(part), *piece.output_shape)
        )
        for index, piece in enumerate(chain.pieces[:-1])
    ]
    logits = []
    for start in range(0, len(part), _BATCH):
        batch = part[slice(start, start + _BATCH)]
        x = torch.from_numpy(normalizer.batch(batch.x))
        features = chain.features(x)
        logits.append(chain.pieces[-1].module(features[-1]).numpy())
        for index, (mapped, feature) in enumerate(zip(maps, features, strict=True)):
            if not bool(feature.abs().max() < np.finfo(np.float16).max):
                raise MeedgeError(
                    "a feature is not finite or beyond the range of fp16",
                    where=f"exit {index}",
                    do="Check the weights and spec.data.normalization: inputs should have about unit variance",
                )
            mapped[start : start + len(batch)] = feature.half().numpy()
        done += len(batch)
        report("features", done, total)
    for mapped in maps:
        mapped.flush()
    np.save(folder / f"{split}.labels.npy", part.y)
    np.save(folder / f"{split}.logits.npy", np.concatenate(logits))
    return done
