"""Reads samples from every source a manifest can name."""

import importlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from meedge_ray.api.elastic_model import Data
from meedge_ray.domain.errors import InvalidInputError, UnavailableError
from meedge_ray.domain.paths import expand_path
from meedge_ray.train.arrays import FileArray, npy_array, unpacked, written
from meedge_ray.train.samples import Raw, Rows, Samples

Loaded = tuple[Samples, Samples | None, tuple[str, ...]]


def _digits(_data: Data, _base_dir: Path, _scratch: Path | None) -> Loaded:
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    x = bunch.images.astype(np.uint8)[:, None]
    return Samples(Rows(x), bunch.target.astype(np.int64)), None, tuple(str(name) for name in bunch.target_names)


def _npz(data: Data, base_dir: Path, scratch: Path | None) -> Loaded:
    train, names = _read_npz(_existing(data.path, base_dir, "spec.data.path"), scratch)
    test = None
    if data.test_path is not None:
        test, _ = _read_npz(_existing(data.test_path, base_dir, "spec.data.testPath"), scratch)
    count = int(max(train.y.max(initial=0), 0 if test is None else test.y.max(initial=0))) + 1
    return train, test, names or tuple(str(index) for index in range(count))


def _read_npz(path: Path, scratch: Path | None) -> tuple[Samples, tuple[str, ...]]:
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name[: -len(".npy")] for name in archive.namelist() if name.endswith(".npy")}
            missing = {"x", "y"} - arrays
            if missing:
                raise InvalidInputError(
                    f"has no array {sorted(missing)[0]!r}, only {sorted(arrays)}",
                    where=str(path),
                    do="Save it with numpy.savez(path, x=samples, y=labels)",
                )
            x = _open_member(path, archive, "x.npy", scratch)
            y = _read_member(archive, "y.npy")
            names = tuple(str(name) for name in _read_member(archive, "classes.npy")) if "classes" in arrays else ()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidInputError(
            f"cannot be read as .npz ({error})", where=str(path), do="Save it with numpy.savez(path, x=..., y=...)"
        ) from error
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or x.shape[:1] != y.shape:
        raise InvalidInputError(
            f"y must hold one integer label a sample; x is {x.shape}, y is {y.shape} of {y.dtype}", where=str(path)
        )
    return Samples(Rows(x, arrange=_channels_first), y.astype(np.int64)), names


def _open_member(path: Path, archive: zipfile.ZipFile, name: str, scratch: Path | None) -> Raw | FileArray:
    """Return an array where it lies in the file; a compressed one has to be unpacked."""
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED:
        with archive.open(member) as stream:
            return unpacked(stream, scratch)
    with path.open("rb") as file:
        file.seek(member.header_offset)
        name_bytes, extra_bytes = struct.unpack("<26xHH", file.read(30))
        file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
        return npy_array(file)


def _read_member(archive: zipfile.ZipFile, name: str) -> Raw:
    with archive.open(name) as stream:
        array: Raw = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _channels_first(x: Raw) -> Raw:
    if x.ndim == 3:
        return x[:, None]
    # Image files store channels last; a sensor tensor is never uint8 with 1, 3 or 4 at its end.
    if x.ndim == 4 and x.dtype == np.uint8 and x.shape[-1] in (1, 3, 4):
        return x.transpose(0, 3, 1, 2)
    return x


def _torchvision(data: Data, base_dir: Path, _scratch: Path | None) -> Loaded:
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
        Samples(Rows(np.asarray(split.data), arrange=_channels_first), np.asarray(split.targets, np.int64))
        for split in splits
    )
    return train, test, tuple(str(name) for name in splits[0].classes)


def _image_folder(data: Data, base_dir: Path, scratch: Path | None) -> Loaded:
    folder = _existing(data.path, base_dir, "spec.data.path")
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if len(classes) < 2:
        raise InvalidInputError(
            f"holds {len(classes)} class folders", where=str(folder), do="Give each class a folder of images"
        )
    train = _read_folder(folder, classes, data.image_size, scratch)
    test = None
    if data.test_path is not None:
        test = _read_folder(
            _existing(data.test_path, base_dir, "spec.data.testPath"), classes, data.image_size, scratch
        )
    return train, test, classes


def _read_folder(folder: Path, classes: tuple[str, ...], side: int | None, scratch: Path | None) -> Samples:
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).glob("*"))]
    if not files:
        raise InvalidInputError("holds no images", where=str(folder))
    shape = _pixels(files[0][0], side).shape
    x = written(_pictures(files, side, shape), np.uint8, (len(files), *shape), scratch)
    return Samples(Rows(x, arrange=_channels_first), np.asarray([label for _, label in files], np.int64))


def _pictures(files: Sequence[tuple[Path, int]], side: int | None, shape: tuple[int, ...]) -> Iterator[Raw]:
    for path, _ in files:
        pixels = _pixels(path, side)
        if pixels.shape != shape:
            raise InvalidInputError(
                f"is {pixels.shape[:2]} pixels where others are {shape[:2]}",
                where=str(path),
                do="Set spec.data.imageSize to bring all images to one size",
            )
        yield pixels


def _pixels(path: Path, side: int | None) -> Raw:
    image = importlib.import_module("PIL.Image")
    try:
        with image.open(path) as opened:
            picture = opened.convert("RGB")
            return np.asarray(picture.resize((side, side)) if side else picture)
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise InvalidInputError(
            f"cannot be read as an image ({error})", where=str(path), do="Remove or replace it"
        ) from error


SOURCES: dict[str, Callable[[Data, Path, Path | None], Loaded]] = {
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
