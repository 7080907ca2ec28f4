"""The samples a manifest names: checked at the door, split once."""

import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meedge_ray.api.elastic_model import Data, Normalization
from meedge_ray.domain.elastic import InputSpec
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.train.samples import Raw, Samples
from meedge_ray.train.sources import SOURCES


@dataclass(frozen=True, slots=True)
class Dataset:
    """Three disjoint splits. Branches learn on `train`; all choices are made on `validation`; `test` only reports."""

    train: Samples
    validation: Samples
    test: Samples
    classes: tuple[str, ...]
    input: InputSpec


def load_data(data: Data, base_dir: Path) -> Dataset:
    """Load, check and split the samples a manifest names.

    Args:
        data: the manifest's data section.
        base_dir: the folder relative paths start from.

    Raises:
        InvalidInputError: a file or folder is missing or malformed, values are not finite, shapes differ.
        UnavailableError: a download failed.
    """
    train, test, classes = SOURCES[data.source](data, base_dir)
    train = _checked(train, len(classes), data)
    test = None if test is None else _checked(test, len(classes), data)
    if test is not None and test.x.shape[1:] != train.x.shape[1:]:
        raise InvalidInputError(
            f"test samples have shape {test.x.shape[1:]}, training samples {train.x.shape[1:]}",
            where="spec.data.testPath",
            do="Bring both splits to one shape",
        )
    train, validation, test = _split(train, test, data)
    spec = _input_spec(train.x, data.normalization)
    return Dataset(train, validation, test, classes, spec)


def _checked(samples: Samples, classes: int, data: Data) -> Samples:
    x, y = samples.x, samples.y
    if x.ndim < 2 or not len(x) or not (np.issubdtype(x.dtype, np.number) or x.dtype == np.bool_):
        raise InvalidInputError(f"x is {x.shape} of {x.dtype}, no batch of numbers", where="spec.data")
    if np.issubdtype(x.dtype, np.floating):
        bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
        if len(bad):
            raise InvalidInputError(
                f"sample {bad[0]} holds NaN or infinity ({len(bad)} of {len(x)} samples do)",
                where="spec.data",
                do="Remove or repair them",
            )
    if y.min() < 0 or y.max() >= classes:
        raise InvalidInputError(
            f"labels run from {y.min()} to {y.max()} with {classes} classes", where="spec.data", do="Count from 0"
        )
    if data.image_size is not None and x.ndim == 4 and x.shape[-2:] != (data.image_size, data.image_size):
        return Samples(_resized(x, data.image_size), y)
    return samples


def _resized(x: Raw, side: int) -> Raw:
    torch = importlib.import_module("torch")
    batches = [
        torch.nn.functional.interpolate(
            torch.from_numpy(np.ascontiguousarray(part)).float(), (side, side), mode="bilinear", antialias=True
        ).numpy()
        for part in np.array_split(x, max(1, len(x) // 1024))
    ]
    resized = np.concatenate(batches)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8) if x.dtype == np.uint8 else resized


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


def _input_spec(x: Raw, normalization: Normalization | None) -> InputSpec:
    shape = tuple(int(side) for side in x.shape[1:])
    if normalization is None:
        axes = (0, *range(2, x.ndim))
        mean = x.mean(axis=axes, dtype=np.float64)
        std = x.std(axis=axes, dtype=np.float64)
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


def _numbers(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in np.atleast_1d(values))
