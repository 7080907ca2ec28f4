import os
from pathlib import Path
from typing import Any

import pytest

from meedge_ray.api.elastic_model import ElasticModelSpec
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.train.contents import with_contents

FROM_FILE = {"architecture": "resnet8", "weights": "own.safetensors"}
TRAINED = {"architecture": "resnet8", "pretrain": {"epochs": 1}}


def held(base: Path, data: dict[str, Any] | None = None, model: dict[str, Any] | None = None) -> ElasticModelSpec:
    spec = ElasticModelSpec.model_validate({"model": model or TRAINED, "data": data or {}})
    return with_contents(spec, base, base / ".build" / "contents.json")


def images(folder: Path) -> Path:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.png").write_bytes(name.encode())
    return folder


def test_equal_files_are_equal_wherever_they_lie(tmp_path: Path) -> None:
    for name in ("own.safetensors", "moved.safetensors"):
        (tmp_path / name).write_bytes(b"weights")
    moved = held(tmp_path, model=FROM_FILE | {"weights": "moved.safetensors"})
    assert held(tmp_path, model=FROM_FILE) == moved
    (tmp_path / "moved.safetensors").write_bytes(b"other weights")
    assert held(tmp_path, model=FROM_FILE | {"weights": "moved.safetensors"}) != moved


@pytest.mark.parametrize("change", ["file", "name", "class", "more"])
def test_a_folder_of_images_is_what_is_in_it(tmp_path: Path, change: str) -> None:
    data = {"source": "imageFolder", "path": "images"}
    images(tmp_path / "images")
    images(tmp_path / "same")
    before = held(tmp_path, data)
    assert held(tmp_path, data | {"path": "same"}) == before
    if change == "file":
        (tmp_path / "images" / "cat" / "1.png").write_bytes(b"dog")
    elif change == "name":
        (tmp_path / "images" / "cat" / "1.png").rename(tmp_path / "images" / "cat" / "2.png")
    elif change == "class":
        (tmp_path / "images" / "emu").mkdir()
    else:
        (tmp_path / "images" / "cat" / "2.png").write_bytes(b"cat")
    assert held(tmp_path, data) != before


def test_data_and_its_test_split_both_count(tmp_path: Path) -> None:
    data = {"source": "npz", "path": "train.npz", "testPath": "test.npz"}
    for name in ("train.npz", "test.npz"):
        (tmp_path / name).write_bytes(name.encode())
    before = held(tmp_path, data)
    (tmp_path / "test.npz").write_bytes(b"other")
    assert held(tmp_path, data) != before


def test_where_a_published_data_set_is_kept_does_not_count(tmp_path: Path) -> None:
    assert held(tmp_path, {"source": "cifar10", "path": "here"}) == held(tmp_path, {"source": "cifar10"})


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(b"weights")
    before, times = held(tmp_path, model=FROM_FILE), weights.stat()
    weights.write_bytes(b"WEIGHTS")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert held(tmp_path, model=FROM_FILE) == before, "how else would it know?"
    weights.touch()
    assert held(tmp_path, model=FROM_FILE) != before


def test_what_it_remembers_may_be_lost(tmp_path: Path) -> None:
    (tmp_path / "own.safetensors").write_bytes(b"weights")
    before = held(tmp_path, model=FROM_FILE)
    (tmp_path / ".build" / "contents.json").write_text("{")
    assert held(tmp_path, model=FROM_FILE) == before


def test_what_is_not_there_is_left_to_who_reads_it(tmp_path: Path) -> None:
    absent = held(tmp_path, model=FROM_FILE)
    (tmp_path / "own.safetensors").write_bytes(b"weights")
    assert held(tmp_path, model=FROM_FILE) != absent


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"spec\.model\.weights: '\$MEEDGE_NOT_SET/own' names a variable"):
        held(tmp_path, model=FROM_FILE | {"weights": "$MEEDGE_NOT_SET/own"})
