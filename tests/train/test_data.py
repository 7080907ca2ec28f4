import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meedge_ray.api.elastic_model import Data
from meedge_ray.domain.errors import MeedgeError
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.train.data import load_data
from meedge_ray.train.samples import Rows


def data(**fields: Any) -> Data:
    return Data.model_validate(fields)


def save(folder: Path, x: np.ndarray, y: np.ndarray, name: str = "data.npz", **more: np.ndarray) -> Data:
    np.savez(folder / name, x=x, y=y, **more)
    return data(source="npz", path=name)


def refusal(declared: Data, folder: Path) -> str:
    with pytest.raises(MeedgeError) as raised:
        load_data(declared, folder)
    return str(raised.value)


def test_digits_need_no_download_and_split_without_overlap(tmp_path: Path) -> None:
    dataset = load_data(data(), tmp_path)
    assert dataset.input.shape == (1, 8, 8)
    assert len(dataset.classes) == 10
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (1151, 287, 359)
    rows = [{sample.tobytes() for sample in part.x} for part in (dataset.train, dataset.validation, dataset.test)]
    # The data set itself holds a few equal images; a leak would share hundreds.
    assert len(rows[0] & rows[1]) + len(rows[0] & rows[2]) + len(rows[1] & rows[2]) < 5


def test_the_same_seed_gives_the_same_split(tmp_path: Path) -> None:
    first, again = (load_data(data(split={"seed": 3}), tmp_path) for _ in range(2))
    other = load_data(data(split={"seed": 4}), tmp_path)
    assert np.array_equal(first.test.y, again.test.y)
    assert not np.array_equal(first.test.y, other.test.y)


def test_by_default_training_inputs_have_zero_mean_and_unit_variance(tmp_path: Path) -> None:
    dataset = load_data(data(), tmp_path)
    inputs = Normalizer(dataset.input).batch(dataset.train.x)
    assert inputs.dtype == np.float32
    assert abs(inputs.mean()) < 1e-3
    assert inputs.std() == pytest.approx(1, abs=1e-3)


def test_images_with_channels_last_and_sensor_tensors_are_both_taken(tmp_path: Path) -> None:
    y = np.arange(20) % 2
    images = save(tmp_path, np.zeros((20, 6, 5, 3), np.uint8), y)
    assert load_data(images, tmp_path).input.shape == (3, 6, 5)
    sensors = save(tmp_path, np.zeros((20, 22, 9, 9), np.float16), y)
    assert load_data(sensors, tmp_path).input.shape == (22, 9, 9)


def open_files() -> str:
    """Names of what this process has open, those of unlinked files among them."""
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of this very listing
            names.append(str(descriptor.readlink()))
    return "\n".join(names)


def test_an_archive_is_read_where_it_lies(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((50, 1, 4, 4)).astype(np.float32)
    dataset = load_data(save(tmp_path, x, np.arange(50) % 2), tmp_path)
    assert str(tmp_path / "data.npz") in open_files()
    seen = {sample.tobytes() for part in (dataset.train, dataset.validation, dataset.test) for sample in part.x}
    assert seen == {sample.tobytes() for sample in x}


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["u1", "f2", ">f4", "?"])
def test_archives_of_every_kind_hold_the_same_samples(tmp_path: Path, write: Any, order: str, kind: str) -> None:
    x = np.asarray(np.arange(50 * 2 * 5 * 5).reshape(50, 2, 5, 5) % 7, kind, order=order)
    write(tmp_path / "data.npz", y=np.arange(50) % 2, x=x)
    dataset = load_data(data(source="npz", path="data.npz"), tmp_path)
    whole = np.concatenate([np.asarray(part.x) for part in (dataset.train, dataset.validation, dataset.test)])
    assert sorted(whole.reshape(50, -1).tolist()) == sorted(x.reshape(50, -1).tolist())


def test_what_has_to_be_unpacked_lies_in_the_scratch_folder_and_vanishes(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    np.savez_compressed(tmp_path / "data.npz", x=np.ones((50, 1, 4, 4)), y=np.arange(50) % 2)
    dataset = load_data(data(source="npz", path="data.npz", imageSize=8), tmp_path, scratch=scratch)
    assert str(scratch) in open_files()
    assert not list(scratch.iterdir())
    del dataset
    assert str(scratch) not in open_files()


def test_channel_statistics_do_not_depend_on_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).normal(3, 5, (90, 3, 4, 4)).astype(np.float16)
    declared = save(tmp_path, x, np.arange(90) % 2)
    monkeypatch.setattr("meedge_ray.train.samples._CHUNK_BYTES", 700)
    dataset = load_data(declared, tmp_path)
    train = np.asarray(dataset.train.x).astype(np.float64)
    assert dataset.input.mean == pytest.approx(train.mean(axis=(0, 2, 3)), abs=1e-5)
    assert dataset.input.std == pytest.approx(train.std(axis=(0, 2, 3)), abs=1e-5)


def test_an_archive_cut_off_meanwhile_is_an_error_with_its_name(tmp_path: Path) -> None:
    dataset = load_data(save(tmp_path, np.zeros((50, 1, 4, 4)), np.arange(50) % 2), tmp_path)
    os.truncate(tmp_path / "data.npz", 1000)
    with pytest.raises(MeedgeError, match=r"data\.npz: was cut off"):
        np.asarray(dataset.train.x)


def test_rows_are_those_of_the_array_however_they_are_chosen() -> None:
    array = np.arange(60).reshape(10, 3, 2)
    rows = Rows(array, arrange=lambda batch: batch.transpose(0, 2, 1)).take(np.array([7, 1, 1, 4])).take(slice(1, None))
    array = array.transpose(0, 2, 1)
    assert rows.shape == (3, 2, 3)
    assert rows[:0].shape == (0, 2, 3)
    assert np.array_equal(rows, array[[1, 1, 4]])
    assert np.array_equal(rows[-1], array[4])
    assert rows[np.array([2, 0])].flags.c_contiguous
    assert np.array_equal(rows[np.array([2, 0])], array[[4, 1]])


def test_a_test_split_apart_stays_apart(tmp_path: Path) -> None:
    save(tmp_path, np.ones((7, 1, 4, 4)), np.arange(7) % 2, "test.npz")
    save(tmp_path, np.zeros((50, 1, 4, 4)), np.arange(50) % 2, "train.npz")
    dataset = load_data(data(source="npz", path="train.npz", testPath="test.npz"), tmp_path)
    assert len(dataset.test) == 7
    assert len(dataset.train) + len(dataset.validation) == 50


def test_validation_can_come_from_the_test_split(tmp_path: Path) -> None:
    save(tmp_path, np.ones((10, 1, 4, 4)), np.arange(10) % 2, "test.npz")
    save(tmp_path, np.zeros((50, 1, 4, 4)), np.arange(50) % 2, "train.npz")
    split = {"validationFrom": "test", "validationPercent": 40}
    dataset = load_data(data(source="npz", path="train.npz", testPath="test.npz", split=split), tmp_path)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (50, 4, 6)
    assert np.asarray(dataset.validation.x).min() == 1


def test_training_samples_can_be_limited(tmp_path: Path) -> None:
    assert len(load_data(data(trainSamples=100), tmp_path).train) == 100


def test_images_are_resized(tmp_path: Path) -> None:
    dataset = load_data(data(imageSize=16), tmp_path)
    assert dataset.input.shape == (1, 16, 16)
    assert dataset.train.x.dtype == np.uint8


def test_a_path_may_hold_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, np.zeros((20, 1, 4, 4)), np.arange(20) % 2)
    monkeypatch.setenv("SAMPLES", str(tmp_path))
    assert len(load_data(data(source="npz", path="${SAMPLES}/data.npz"), Path("/nowhere")).classes) == 2
    assert "not set" in refusal(data(source="npz", path="${UNSET_HERE}/data.npz"), tmp_path)


def test_an_image_folder_is_one_class_a_folder(tmp_path: Path) -> None:
    for name, shade in (("cat", 10), ("dog", 200)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (8, 8), (shade, shade, shade)).save(tmp_path / "pets" / name / f"{index}.png")
    dataset = load_data(data(source="imageFolder", path="pets"), tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.input.shape == (3, 8, 8)
    Image.new("RGB", (9, 8)).save(tmp_path / "pets" / "dog" / "wide.png")
    assert "imageSize" in refusal(data(source="imageFolder", path="pets"), tmp_path)
    (tmp_path / "pets" / "dog" / "wide.png").write_text("no image")
    assert "wide.png" in refusal(data(source="imageFolder", path="pets", imageSize=8), tmp_path)


def test_nan_is_refused_with_the_sample(tmp_path: Path) -> None:
    x = np.zeros((20, 1, 4, 4))
    x[7, 0, 1, 1] = np.nan
    assert "sample 7 holds NaN" in refusal(save(tmp_path, x, np.arange(20) % 2), tmp_path)


def test_bad_files_are_refused_by_name(tmp_path: Path) -> None:
    assert "data.npz does not exist" in refusal(data(source="npz", path="data.npz"), tmp_path)
    (tmp_path / "data.npz").write_bytes(b"PK not an archive")
    assert "cannot be read as .npz" in refusal(data(source="npz", path="data.npz"), tmp_path)
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros((20, 1, 64, 64)), y=np.zeros(20, np.int64))
    whole = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "data.npz").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as .npz" in refusal(data(source="npz", path="data.npz"), tmp_path)
    np.save(tmp_path / "data.npy", np.zeros(3))
    assert "cannot be read as .npz" in refusal(data(source="npz", path="data.npy"), tmp_path)
    np.savez(tmp_path / "data.npz", inputs=np.zeros(3))
    assert "has no array 'x'" in refusal(data(source="npz", path="data.npz"), tmp_path)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.array([{"a": 1}], dtype=object), y=np.zeros(1, np.int64))
    assert "cannot be read as .npz" in refusal(data(source="npz", path="data.npz"), tmp_path)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.zeros((20, 1, 4, 4)), np.zeros(20), "one integer label a sample"),
        (np.zeros((20, 1, 4, 4)), np.zeros(19, np.int64), "one integer label a sample"),
        (np.zeros((20, 1, 4, 4)), np.full(20, -1), "labels run from -1"),
        (np.zeros((3, 1, 4, 4)), np.zeros(3, np.int64), "too few to split"),
        (np.zeros((0, 1, 4, 4)), np.zeros(0, np.int64), "no batch of numbers"),
        (np.zeros(20), np.zeros(20, np.int64), "no batch of numbers"),
        (np.zeros(()), np.zeros(20, np.int64), "one integer label a sample"),
        (np.zeros((20, 4, 4), complex), np.zeros(20, np.int64), "no batch of numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, x: np.ndarray, y: np.ndarray, said: str) -> None:
    assert said in refusal(save(tmp_path, x, y), tmp_path)


def test_a_normalization_of_other_channels_is_refused(tmp_path: Path) -> None:
    declared = data(normalization={"mean": ["0.1", "0.2"], "std": ["1"]})
    assert "spec.data.normalization.mean" in refusal(declared, tmp_path)
