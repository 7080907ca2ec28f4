import json
from pathlib import Path

import numpy as np
import pytest
from supernets import make_supernet
from worlds import SHAPE

from meedge_ray.bundle.manifest import read_bundle, unit_store, write_bundle


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle with variants."""
    made = make_supernet()
    folder = tmp_path_factory.mktemp("supernet")
    for data in made.units.values():
        unit_store(folder).put(data)
    write_bundle(folder, made.bundle)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x = np.random.default_rng(2).integers(0, 256, (30, *SHAPE), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(30) % 3)
    return tmp_path / "data.npz"


@pytest.mark.parametrize("strategy", ["surrogate", "evolution", "annealing", "plain-evolution", "plain-annealing"])
def test_adapt_finds_a_subnet_in_every_way(meedge, supernet: Path, data: Path, strategy: str) -> None:
    code, out, err = meedge(
        "adapt", supernet, "--latency-ms", 1000, "--data", data, "--strategy", strategy, "-o", "json"
    )
    assert (code, err) == (0, "")
    said = json.loads(out)
    names = {link.name for link in read_bundle(supernet).links}
    assert set(said["subnet"]) <= names
    assert said["latency_ms"] > 0
    assert 0 <= said["accuracy"] <= 1
    assert said["labelled"]
    assert said["shortfall_ms"] == 0
    assert 1 <= said["evaluated"] <= said["subnets"] + 1
    assert said["search_s"] > 0
    # All budgets are open, so none of those measured is better.
    assert said["accuracy"] == max(each["accuracy"] for each in said["pool"])


def test_inspect_shows_the_supernet(meedge, supernet: Path) -> None:
    code, out, _ = meedge("inspect", supernet)
    assert code == 0
    assert "6 lighter blocks make 13 bodies" in out
    bundle = read_bundle(supernet)
    assert all(variant.name in out for variant in bundle.variants)


def test_a_budget_below_the_fastest_is_answered_with_that_one(meedge, supernet: Path, data: Path) -> None:
    said = json.loads(meedge("adapt", supernet, "--latency-ms", 0.0001, "--data", data, "-o", "json")[1])
    assert said["evaluated"] == 2  # with the original
    assert said["shortfall_ms"] == pytest.approx(said["estimated_ms"] - 0.0001)
    _, out, _ = meedge("adapt", supernet, "--latency-ms", 0.0001, "--data", data)
    assert "no subnet is within the budget: the fastest misses it by" in out


def test_without_labels_the_original_judges(meedge, supernet: Path, data: Path, tmp_path: Path) -> None:
    with np.load(data) as file:
        np.savez(tmp_path / "unlabelled.npz", x=file["x"])
    said = json.loads(
        meedge("adapt", supernet, "--latency-ms", 1000, "--data", tmp_path / "unlabelled.npz", "-o", "json")[1]
    )
    assert not said["labelled"]
    assert said["original_accuracy"] == 1


def test_what_is_chosen_can_be_kept_as_a_bundle(meedge, supernet: Path, data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    said = json.loads(meedge("adapt", supernet, "--latency-ms", 1000, "--data", data, "--save", kept, "-o", "json")[1])
    bundle = read_bundle(kept)
    assert [block.name for block in bundle.blocks] == said["subnet"]
    assert bundle.final_accuracy == said["accuracy"]
    np.save(tmp_path / "x.npy", np.zeros(SHAPE, np.uint8))
    code, out, _ = meedge("infer", kept, "--memory", "1Gi", "--input", tmp_path / "x.npy", "-o", "json")
    assert code == 0
    assert json.loads(out)["ending"] == "completed"


@pytest.mark.parametrize(
    ("arrays", "options", "said"),
    [
        ({"x": np.zeros((3, 1, 2, 2))}, (), "--data: the sample has shape"),
        ({"x": np.zeros((3, *SHAPE)), "y": np.array([0, 1, 99])}, (), "--data: sample 2 has label 99"),
        ({"x": np.zeros((3, *SHAPE)), "y": np.zeros(2, int)}, (), "--data: the labels are int64 of shape (2,)"),
        ({"x": np.zeros((0, *SHAPE))}, (), "--data: there are no samples"),
        ({"y": np.zeros(2, int)}, (), "it has no array x"),
        ({"x": np.zeros((3, *SHAPE))}, ("--cache", "9999Ti"), "--cache: "),
        ({"x": np.zeros((3, *SHAPE))}, ("--latency-ms", "0"), "--latency-ms: 0.0 ms is no latency"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_option(
    meedge, supernet: Path, tmp_path: Path, arrays: dict, options: tuple, said: str
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    latency = () if "--latency-ms" in options else ("--latency-ms", 10)
    code, _, err = meedge("adapt", supernet, *latency, "--data", tmp_path / "data.npz", *options)
    assert code == 2
    assert said in err


def test_a_file_that_is_missing_or_no_npz_is_refused(meedge, supernet: Path, tmp_path: Path) -> None:
    assert "no such file" in meedge("adapt", supernet, "--latency-ms", 1, "--data", tmp_path / "none.npz")[2]
    (tmp_path / "odd.npz").write_text("x")
    assert "cannot be read as .npz" in meedge("adapt", supernet, "--latency-ms", 1, "--data", tmp_path / "odd.npz")[2]
