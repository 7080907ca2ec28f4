"""Labelled samples from every source a manifest can name, split once and checked at the door."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meedge_ray.api.elastic_model import Data, Normalization
from meedge_ray.domain.elastic import InputSpec
from meedge_ray.domain.errors import InvalidInputError, UnavailableError
from meedge_ray.domain.paths import expand_path

Raw = NDArray[Any]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Samples:
    """Raw samples `x` [N, C, H, W] (or [N, ...]) as the data set stores them, and labels `y` [N]."""

    x: Raw
    y: Labels

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, chosen: NDArray[np.int64] | slice) -> "Samples":
        return Samples(self.x[chosen], self.y[chosen])


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
    train, test, classes = _SOURCES[data.source](data, base_dir)
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


def normalize(spec: InputSpec, raw: Raw) -> NDArray[np.float32]:
    """Return the backbone's input [N, ...] for raw samples [N, ...]: `(raw * scale - mean) / std` per channel."""
    per_channel = (1, -1, *[1] * (raw.ndim - 2))
    mean = np.asarray(spec.mean, np.float32).reshape(per_channel)
    std = np.asarray(spec.std, np.float32).reshape(per_channel)
    scaled: NDArray[np.float32] = (raw.astype(np.float32) * np.float32(spec.scale) - mean) / std
    return scaled


_Loaded = tuple[Samples, Samples | None, tuple[str, ...]]


def _digits(_data: Data, _base_dir: Path) -> _Loaded:
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    x = bunch.images.astype(np.uint8)[:, None]
    return Samples(x, bunch.target.astype(np.int64)), None, tuple(str(name) for name in bunch.target_names)


def _npz(data: Data, base_dir: Path) -> _Loaded:
    train, names = _read_npz(_existing(data.path, base_dir, "spec.data.path"))
    test = None
    if data.test_path is not None:
        test, _ = _read_npz(_existing(data.test_path, base_dir, "spec.data.testPath"))
    count = int(max(train.y.max(initial=0), 0 if test is None else test.y.max(initial=0))) + 1
    return train, test, names or tuple(str(index) for index in range(count))


def _read_npz(path: Path) -> tuple[Samples, tuple[str, ...]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = {"x", "y"} - set(archive.files)
            if missing:
                raise InvalidInputError(
                    f"has no array {sorted(missing)[0]!r}, only {sorted(archive.files)}",
                    where=str(path),
                    do="Save it with numpy.savez(path, x=samples, y=labels)",
                )
            x, y = archive["x"], archive["y"]
            names = tuple(str(name) for name in archive["classes"]) if "classes" in archive.files else ()
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"cannot be read as .npz ({error})", where=str(path), do="Save it with numpy.savez(path, x=..., y=...)"
        ) from error
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or len(x) != len(y):
        raise InvalidInputError(
            f"y must hold one integer label a sample; x is {x.shape}, y is {y.shape} of {y.dtype}", where=str(path)
        )
    return Samples(_channels_first(x), y.astype(np.int64)), names


def _channels_first(x: Raw) -> Raw:
    if x.ndim == 3:
        return x[:, None]
    # Image files store channels last; a sensor tensor is never uint8 with 1, 3 or 4 at its end.
    if x.ndim == 4 and x.dtype == np.uint8 and x.shape[-1] in (1, 3, 4):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x


def _torchvision(data: Data, base_dir: Path) -> _Loaded:
    datasets = importlib.import_module("meedge_ray.nn.vision").torchvision.datasets
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "mnist": datasets.MNIST}[data.source]
    root = expand_path(data.path, base_dir, where="spec.data.path") if data.path else Path.home() / ".cache" / "meedge"
    try:
        splits = [kind(str(root), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise UnavailableError(
            f"{data.source} could not be downloaded ({error})",
            where="spec.data.source",
            do=f"Put it under {root}, or save x and y in an .npz file and use source: npz",
        ) from error
    train, test = (
        Samples(_channels_first(np.asarray(split.data)), np.asarray(split.targets, np.int64)) for split in splits
    )
    return train, test, tuple(str(name) for name in splits[0].classes)


def _image_folder(data: Data, base_dir: Path) -> _Loaded:
    folder = _existing(data.path, base_dir, "spec.data.path")
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if len(classes) < 2:
        raise InvalidInputError(
            f"holds {len(classes)} class folders", where=str(folder), do="Give each class a folder of images"
        )
    train = _read_folder(folder, classes, data.image_size)
    test = None
    if data.test_path is not None:
        test = _read_folder(_existing(data.test_path, base_dir, "spec.data.testPath"), classes, data.image_size)
    return train, test, classes


def _read_folder(folder: Path, classes: tuple[str, ...], side: int | None) -> Samples:
    image = importlib.import_module("PIL.Image")
    pixels: list[Raw] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).glob("*")):
            try:
                with image.open(path) as opened:
                    picture = opened.convert("RGB")
                    pixels.append(np.asarray(picture.resize((side, side)) if side else picture))
            except OSError as error:
                raise InvalidInputError(
                    f"cannot be read as an image ({error})", where=str(path), do="Remove or replace it"
                ) from error
            if pixels[-1].shape != pixels[0].shape:
                raise InvalidInputError(
                    f"is {pixels[-1].shape[:2]} pixels where others are {pixels[0].shape[:2]}",
                    where=str(path),
                    do="Set spec.data.imageSize to bring all images to one size",
                )
            labels.append(label)
    if not pixels:
        raise InvalidInputError("holds no images", where=str(folder))
    return Samples(_channels_first(np.stack(pixels)), np.asarray(labels, np.int64))


_SOURCES: dict[str, Callable[[Data, Path], _Loaded]] = {
    "digits": _digits,
    "npz": _npz,
    "imageFolder": _image_folder,
    "cifar10": _torchvision,
    "cifar100": _torchvision,
    "mnist": _torchvision,
}


def _existing(path: str | None, base_dir: Path, where: str) -> Path:
    expanded = expand_path(path or "", base_dir, where=where)
    if not expanded.exists():
        raise InvalidInputError(f"{expanded} does not exist", where=where, do="Paths start from the manifest's folder")
    return expanded


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
