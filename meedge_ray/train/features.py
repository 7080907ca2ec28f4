"""Features of the frozen backbone at every exit point, computed once and memory-mapped (fp16)."""

import json
import mmap
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meedge_ray.api.elastic_model import Augmentation
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.domain.quantity import format_bytes
from meedge_ray.nn.partition import Chain
from meedge_ray.train.arrays import FileArray
from meedge_ray.train.augmentation import check_augmentation
from meedge_ray.train.data import Dataset
from meedge_ray.train.device import training_device
from meedge_ray.train.progress import Report
from meedge_ray.train.samples import Rows
from meedge_ray.train.views import View, on_device, view_maps, write_view

_SPARE_BYTES = 512 * 2**20  # left free on the disk for everybody else
_CHUNK = 65_536


class FeatureReader:
    """Reads batches of features of which there may be more than memory holds.

    Touched pages of a memory map count as the process's resident memory, on some systems two MiB around a single byte.
    So batches are read from the map's file, and nothing but the batch takes memory.
    """

    def __init__(self, mapped: NDArray[np.float16]) -> None:
        """Read from what `Features.features` returned, or from any array in memory."""
        self._rows = _rows(mapped)

    def batch(self, chosen: NDArray[np.int64] | slice) -> NDArray[np.float16]:
        """Return the chosen rows [n, C, H, W] as a contiguous copy. Sorted indices read faster.

        Raises:
            UnavailableError: the file cannot be read.
        """
        return self._rows[chosen]


@dataclass(frozen=True, slots=True)
class Features:
    """The cache in a folder.

    The train split has `views` views: 0 is the samples themselves, the others are augmented. Labels are the same for
    all views. The validation split has view 0 alone.
    """

    folder: Path

    @property
    def views(self) -> int:
        """Views of the train split, at least 1."""
        return int(json.loads((self.folder / "features.json").read_text())["views"])

    def features(self, exit_index: int, split: str, view: int = 0) -> NDArray[np.float16]:
        """Return one exit's features [N, C, H, W] as a read-only memory map; read batches through `FeatureReader`."""
        return self._map(f"{split}.{view}.{exit_index}")

    def logits(self, split: str, view: int = 0) -> NDArray[np.float32]:
        """Return what the backbone itself says at its final exit, [N, classes], as a read-only memory map."""
        return self._map(f"{split}.{view}.logits")

    def labels(self, split: str) -> NDArray[np.int64]:
        """Return the labels [N] in the order of the features."""
        labels: NDArray[np.int64] = np.load(self.folder / f"{split}.labels.npy")
        return labels

    @property
    def final_accuracy(self) -> float:
        """Accuracy of the unchanged backbone on the validation split."""
        labels, logits = self.labels("validation"), _rows(self.logits("validation"))
        starts = range(0, len(labels), _CHUNK)
        right = sum(int((logits[at : at + _CHUNK].argmax(1) == labels[at : at + _CHUNK]).sum()) for at in starts)
        return right / len(labels)

    def _map(self, name: str) -> NDArray[Any]:
        mapped: NDArray[Any] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return mapped


def _rows(array: NDArray[Any]) -> Rows:
    # A part of a map keeps the name and the offset of the whole: it is none that np.load returned.
    if not isinstance(array, np.memmap) or array.filename is None or not isinstance(array.base, mmap.mmap):
        return Rows(array)
    with Path(array.filename).open("rb") as file:
        return Rows(FileArray(file, array.dtype, array.shape, array.offset))


def check_features(
    chain: Chain,
    dataset: Dataset,
    folder: Path,
    *,
    augmentation: Augmentation | None = None,
    disk_bytes: int | None = None,
) -> None:
    """Refuse before any work a cache that cannot be made; arguments and errors are those of `cache_features`."""
    if augmentation is not None:
        check_augmentation(augmentation, dataset.input.shape)
    views = _views(dataset, augmentation)
    samples = sum(len(view.samples) for view in views)
    row_bytes = sum(_row_bytes(dtype, shape) for _, dtype, shape in view_maps(chain, dataset))
    needed_bytes = samples * row_bytes
    free_bytes = _free_bytes(folder)
    room_bytes = free_bytes if disk_bytes is None else min(free_bytes, disk_bytes)
    if needed_bytes <= room_bytes:
        return
    declared = disk_bytes is not None and disk_bytes <= free_bytes
    raise InvalidInputError(
        f"the features of {len(dataset.train)} training samples"
        + (f" in {augmentation.views} views" if augmentation else "")
        + f" and {len(dataset.validation)} validation samples at {chain.exit_count} exits need "
        f"{format_bytes(needed_bytes)} of disk and {format_bytes(room_bytes)} are "
        + ("allowed" if declared else f"free at {folder.parent}"),
        where="spec.cultivation.disk",
        do=("Raise it" if declared else "Build in a folder on a larger disk")
        + _fewer(dataset, len(views) - 1, room_bytes // row_bytes),
    )


def _fewer(dataset: Dataset, views: int, rows: int) -> str:
    """Say which samples or views of the training split to leave out so that so many rows are enough."""
    left = rows - len(dataset.validation)
    said = f", or set spec.data.trainSamples to at most {left // views}" if left >= views else ""
    if views == 1 or left < len(dataset.train):
        return said or ", or use fewer samples"
    fitting = left // len(dataset.train)
    return said + (
        f", or spec.cultivation.augmentation.views to {fitting}" if fitting > 1 else ", or leave out augmentation"
    )


def cache_features(
    chain: Chain,
    dataset: Dataset,
    folder: Path,
    report: Report,
    *,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    disk_bytes: int | None = None,
) -> Features:
    """Run the backbone over every view of the training split and over the validation split, once.

    A killed run goes on at the batch where it was; a finished cache is kept as it is. Memory does not grow with the
    data set: a batch is as many samples as keep its largest feature map under 64 MiB.

    Args:
        chain: the frozen backbone.
        dataset: its train and validation splits are cached.
        folder: appears once the cache is whole.
        report: told the samples done.
        augmentation: further views of training images; None: the samples themselves alone.
        seed: of the augmentation.
        disk_bytes: most that the cache may take.

    Raises:
        InvalidInputError: the disk declared or free is too small, or what is to be augmented is no image.
        MeedgeError: a feature leaves the range of fp16, or the disk fills up.
    """
    if folder.exists():
        return Features(folder)
    check_features(chain, dataset, folder, augmentation=augmentation, disk_bytes=disk_bytes)
    partial = _partial(folder)
    partial.mkdir(parents=True, exist_ok=True)
    views = _views(dataset, augmentation, seed)
    for part in (views[0], views[-1]):
        np.save(partial / f"{part.split}.labels.npy", part.samples.y)
    total = sum(len(part.samples) for part in views)
    before = 0

    def on_done(done: int) -> None:
        report("features", before + done, total)

    with on_device(training_device(), chain):
        for part in views:
            write_view(chain, dataset, part, partial, on_done)
            before += len(part.samples)
    (partial / "features.json").write_text(json.dumps({"views": len(views) - 1}))
    partial.replace(folder)
    return Features(folder)


def _views(dataset: Dataset, augmentation: Augmentation | None, seed: int = 0) -> list[View]:
    views = range(augmentation.views if augmentation else 1)
    train = [View("train", view, dataset.train, augmentation, seed) for view in views]
    return [*train, View("validation", 0, dataset.validation)]


def _row_bytes(dtype: type[np.generic], shape: Sequence[int]) -> int:
    return np.dtype(dtype).itemsize * int(np.prod(shape))


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _free_bytes(folder: Path) -> int:
    written = sum(path.stat().st_blocks * 512 for path in _partial(folder).glob("*.npy"))
    return max(0, shutil.disk_usage(folder.parent).free + written - _SPARE_BYTES)
