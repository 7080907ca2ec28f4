"""The samples a manifest names: checked at the door, split once."""

import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meedge_ray.api.elastic_model import Data, Normalization
from meedge_ray.domain.elastic import InputSpec
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.train.arrays import written
from meedge_ray.train.samples import Raw, Rows, Samples
from meedge_ray.train.sources import SOURCES


@dataclass(frozen=True, slots=True)
class Dataset:
    """Three disjoint splits. Branches learn on `train`; all choices are made on `validation`; `test` only reports."""

    train: Samples
    validation: Samples
    test: Samples
    classes: tuple[str, ...]
    input: InputSpec


def load_data(data: Data, base_dir: Path, *, scratch: Path | None = None) -> Dataset:
    """Open, check and split the samples a manifest names; what is on the disk is read batch after batch, never whole.

    Args:
        data: the manifest's data section.
        base_dir: the folder relative paths start from.
        scratch: where samples lie unpacked while the process lives, if they have to be (decoded images, compressed
            .npz, resized samples); None: the system's folder for temporary files.

    Raises:
        InvalidInputError: a file or folder is missing or malformed, values are not finite, shapes differ.
        UnavailableError: a download failed.
    """
    train, test, classes = SOURCES[data.source](data, base_dir, scratch)
    train = _checked(train, len(classes), data, scratch)
    test = None if test is None else _checked(test, len(classes), data, scratch)
    if test is not None and test.x.shape[1:] != train.x.shape[1:]:
        raise InvalidInputError(
            f"test samples have shape {test.x.shape[1:]}, training samples {train.x.shape[1:]}",
            where="spec.data.testPath",
            do="Bring both splits to one shape",
        )
    train, validation, test = _split(train, test, data)
    spec = _input_spec(train, data.normalization)
    return Dataset(train, validation, test, classes, spec)


def image_shape(dataset: Dataset) -> tuple[int, int, int]:
    """Return channels, height and width of a sample.

    Raises:
        InvalidInputError: samples are no images.
    """
    if len(dataset.input.shape) != 3:
        raise InvalidInputError(
            f"a sample has shape {dataset.input.shape}; branches need [channels, height, width]", where="spec.data"
        )
    channels, height, width = dataset.input.shape
    return channels, height, width


def _checked(samples: Samples, classes: int, data: Data, scratch: Path | None) -> Samples:
    x, y = samples.x, samples.y
    if len(x.shape) < 2 or not len(x) or x.dtype.kind not in "fiub":
        raise InvalidInputError(f"x is {x.shape} of {x.dtype}, no batch of numbers", where="spec.data")
    if x.dtype.kind == "f":
        _check_finite(samples)
    if y.min() < 0 or y.max() >= classes:
        raise InvalidInputError(
            f"labels run from {y.min()} to {y.max()} with {classes} classes", where="spec.data", do="Count from 0"
        )
    side = data.image_size
    if side is None or len(x.shape) != 4 or x.shape[-2:] == (side, side):
        return samples
    resized = written(
        (_resized(part, side) for part in samples.chunks()),
        np.uint8 if x.dtype == np.uint8 else np.float32,
        (*x.shape[:2], side, side),
        scratch,
    )
    return Samples(Rows(resized), y)


def _check_finite(samples: Samples) -> None:
    bad: list[int] = []
    start = 0
    for part in samples.chunks():
        finite = np.isfinite(part).reshape(len(part), -1).all(axis=1)
        bad.extend((start + np.flatnonzero(~finite)).tolist())
        start += len(part)
    if bad:
        raise InvalidInputError(
            f"sample {bad[0]} holds NaN or infinity ({len(bad)} of {start} samples do)",
            where="spec.data",
            do="Remove or repair them",
        )


def _resized(images: Raw, side: int) -> Raw:
    torch = importlib.import_module("torch")
    resized: Raw = torch.nn.functional.interpolate(
        torch.from_numpy(images.astype(np.float32)), (side, side), mode="bilinear", antialias=True
    ).numpy()
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8) if images.dtype == np.uint8 else resized


def _split(train: Samples, test: Samples | None, data: Data) -> tuple[Samples, Samples, Samples]:
    random = np.random.default_rng(data.split.seed)
    if test is None:
        test, train = _drawn(train, data.split.test_percent, random)
    if data.split.validation_from == "test":
        validation, test = _drawn(test, data.split.validation_percent, random)
    else:
        validation, train = _drawn(train, data.split.validation_percent, random)
    if data.train_samples is not None and data.train_samples < len(train):
        train = train[np.sort(random.permutation(len(train))[: data.train_samples])]
    return train, validation, test


def _drawn(samples: Samples, percent: int, random: np.random.Generator) -> tuple[Samples, Samples]:
    count = len(samples) * percent // 100
    if not 0 < count < len(samples):
        raise InvalidInputError(f"{len(samples)} samples are too few to split", where="spec.data.split")
    order = random.permutation(len(samples))
    return samples[np.sort(order[:count])], samples[np.sort(order[count:])]


def _input_spec(train: Samples, normalization: Normalization | None) -> InputSpec:
    shape = tuple(int(side) for side in train.x.shape[1:])
    if normalization is None:
        mean, std = _statistics(train)
        return InputSpec(shape=shape, mean=_numbers(mean), std=_numbers(np.where(std > 0, std, 1.0)))
    spec = InputSpec(
        shape=shape,
        scale=float(normalization.scale),
        mean=tuple(float(value) for value in normalization.mean),
        std=tuple(float(value) for value in normalization.std),
    )
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) not in (1, shape[0]) or (name == "std" and min(values) <= 0):
            raise InvalidInputError(
                f"{name} must hold one number, or one for each of {shape[0]} channels, std above zero",
                where=f"spec.data.normalization.{name}",
            )
    return spec


def _statistics(samples: Samples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of every channel, combined chunk by chunk (Chan et al. 1979)."""
    axes = (0, *range(2, len(samples.x.shape)))
    count, mean, squares = 0, np.zeros(samples.x.shape[1]), np.zeros(samples.x.shape[1])
    for part in samples.chunks():
        size = part.size // part.shape[1]
        part_mean = part.mean(axis=axes, dtype=np.float64)
        apart = part_mean - mean
        count += size
        mean += apart * size / count
        squares += part.var(axis=axes, dtype=np.float64) * size + apart**2 * size * (count - size) / count
    return mean, np.sqrt(squares / count)


def _numbers(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in np.atleast_1d(values))
