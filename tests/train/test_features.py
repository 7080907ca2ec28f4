import os
import signal
import subprocess
import sys
from pathlib import Path

import caching
import numpy as np
import pytest
import torch

from meedge_ray.api.elastic_model import Augmentation, Data
from meedge_ray.domain.errors import InvalidInputError, MeedgeError, UnavailableError
from meedge_ray.nn.backbones import build_backbone
from meedge_ray.nn.partition import partition
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.train.arrays import ArrayFile
from meedge_ray.train.augmentation import augmented
from meedge_ray.train.data import Dataset, load_data
from meedge_ray.train.features import FeatureReader, Features, cache_features, check_features
from meedge_ray.train.progress import silent

# glibc: one arena, large blocks mapped singly; else the peak has up to 60 MiB that were freed, more or less by chance.
FREED_AT_ONCE = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}


def cached(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, caching.__file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | FREED_AT_ONCE)


def archive(path: Path, count: int, *, side: int = 8, compressed: bool = False) -> Path:
    some = np.random.default_rng(0).normal(size=(64, 3, side, side)).astype(np.float32)
    x, y = np.resize(some, (count, *some.shape[1:])), np.arange(count) % 4
    (np.savez_compressed if compressed else np.savez)(path, x=x, y=y)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return caching.load(archive(tmp_path / "data.npz", 700))


def test_features_are_those_of_the_backbone(dataset: Dataset, tmp_path: Path) -> None:
    chain = caching.network((3, 8, 8), 4)
    features = cache_features(chain, dataset, tmp_path / "features", silent)
    assert features.views == 1
    for split in ("train", "validation"):
        samples = getattr(dataset, split)
        x = torch.from_numpy(Normalizer(dataset.input).batch(samples.x))
        with torch.inference_mode():
            maps, logits = chain.features(x), chain.run(x)
        for exit_index, expected in enumerate(maps):
            mapped = features.features(exit_index, split)
            assert mapped.dtype == np.float16
            assert not mapped.flags.writeable
            np.testing.assert_allclose(mapped, expected.numpy(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(features.logits(split), logits.numpy(), rtol=1e-4, atol=1e-4)
        assert np.array_equal(features.labels(split), samples.y)
    right = logits.argmax(1).numpy() == dataset.validation.y
    assert features.final_accuracy == pytest.approx(right.mean())


def test_a_further_view_is_that_of_augmented_samples(dataset: Dataset, tmp_path: Path) -> None:
    chain = caching.network((3, 8, 8), 4)
    augmentation = Augmentation(views=3)
    features = cache_features(chain, dataset, tmp_path / "features", silent, augmentation=augmentation, seed=9)
    assert features.views == 3
    train = np.asarray(dataset.train.x)
    for view in (1, 2):
        changed = augmented(train, np.arange(len(train)), augmentation=augmentation, seed=9, view=view)
        with torch.inference_mode():
            first, _ = chain.features(torch.from_numpy(Normalizer(dataset.input).batch(changed)))
        np.testing.assert_allclose(features.features(0, "train", view), first.numpy(), rtol=1e-3, atol=1e-3)
    with pytest.raises(FileNotFoundError):
        features.features(0, "validation", 1)


def test_a_reader_reads_what_the_map_holds(dataset: Dataset, tmp_path: Path) -> None:
    mapped = cache_features(caching.network((3, 8, 8), 4), dataset, tmp_path / "features", silent).features(0, "train")
    reader = FeatureReader(mapped)
    chosen = np.array([5, 0, 311, 5])
    assert np.array_equal(reader.batch(chosen), np.asarray(mapped)[chosen])
    assert np.array_equal(reader.batch(slice(3, 9)), np.asarray(mapped)[3:9])
    assert reader.batch(chosen).flags.writeable
    part = FeatureReader(mapped[10:])
    assert np.array_equal(part.batch(chosen), np.asarray(mapped)[chosen + 10])


def test_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    """Two exits of 32 KiB a sample in two views, samples of 12 KiB: 1500 more are 160 MiB more."""
    peaks = []
    for name, count in (("few", 500), ("many", 2000)):
        path = archive(tmp_path / f"{name}.npz", count, side=32, compressed=True)
        with cached(tmp_path / f"{name}-features", path) as process:
            peaks.append(int(process.communicate()[0]))
    on_disk = sum(file.stat().st_size for file in (tmp_path / "many-features").iterdir())
    assert on_disk > 160 * 2**20
    assert peaks[1] - peaks[0] < 16 * 2**20, peaks


def test_a_killed_cache_goes_on_and_ends_in_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    chain = caching.network((3, 8, 8), 4)
    path = tmp_path / "data.npz"
    whole = cache_features(chain, dataset, tmp_path / "whole", silent, augmentation=caching.AUGMENTATION, seed=5)
    # 448 training samples in two batches a view, each appending two exits and the logits: killed in the fourth.
    with cached(tmp_path / "killed", path, 11) as process:
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    told: list[float] = []
    resumed = cache_features(
        chain,
        dataset,
        tmp_path / "killed",
        lambda stage, done, total, detail="": told.append(done),
        augmentation=caching.AUGMENTATION,
        seed=5,
    )
    assert told == [896, 1008]
    names = sorted(file.name for file in whole.folder.iterdir())
    assert names == sorted(file.name for file in resumed.folder.iterdir())
    assert all((whole.folder / name).read_bytes() == (resumed.folder / name).read_bytes() for name in names)


def test_a_finished_cache_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    chain = caching.network((3, 8, 8), 4)
    cache_features(chain, dataset, tmp_path / "features", silent)

    def never(stage: str, done: float, total: float, detail: str = "") -> None:
        raise AssertionError(stage)

    assert cache_features(chain, dataset, tmp_path / "features", never) == Features(tmp_path / "features")


def refusal(dataset: Dataset, folder: Path, disk_bytes: int | None, views: int = 1) -> str:
    augmentation = Augmentation(views=views) if views > 1 else None
    with pytest.raises(InvalidInputError) as raised:
        check_features(caching.network((3, 8, 8), 4), dataset, folder, augmentation=augmentation, disk_bytes=disk_bytes)
    return str(raised.value)


def test_a_declared_disk_is_kept_to_the_byte(dataset: Dataset, tmp_path: Path) -> None:
    chain, folder = caching.network((3, 8, 8), 4), tmp_path / "features"
    row_bytes = 2 * 16 * 8 * 8 * 2 + 4 * 4
    needed = (448 + 112) * row_bytes
    check_features(chain, dataset, folder, disk_bytes=needed)
    said = refusal(dataset, folder, needed - 1)
    assert said.startswith("spec.cultivation.disk: the features of 448 training samples and 112 validation samples")
    assert "spec.data.trainSamples to at most 447" in said
    assert "augmentation" not in said
    said = refusal(dataset, folder, (3 * 448 + 112) * row_bytes - 1, views=3)
    assert "in 3 views" in said
    assert "spec.cultivation.augmentation.views to 2" in said
    assert "leave out augmentation" in refusal(dataset, folder, needed, views=3)
    assert "use fewer samples" in refusal(dataset, folder, 1)
    assert not folder.exists()


def test_a_disk_too_full_is_refused_before_work(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meedge_ray.train.features._SPARE_BYTES", 2**60)
    said = refusal(dataset, tmp_path / "features", None)
    assert f"free at {tmp_path}. Build in a folder on a larger disk" in said


def test_a_disk_that_fills_up_meanwhile_is_an_error_with_a_name() -> None:
    with pytest.raises(UnavailableError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        ArrayFile(Path("/dev/full"), np.float16, (4, 2))


def test_augmented_sensor_data_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((40, 22, 20, 20), np.float16), y=np.arange(40) % 5)
    sensors = caching.load(tmp_path / "data.npz")
    with pytest.raises(InvalidInputError, match=r"spec\.cultivation\.augmentation"):
        check_features(caching.network((22, 20, 20), 5), sensors, tmp_path / "f", augmentation=Augmentation())


def test_features_beyond_fp16_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    chain = caching.network((3, 8, 8), 4)
    with torch.no_grad():
        next(chain.pieces[0].module.parameters()).mul_(1e6)
    with pytest.raises(MeedgeError, match="exit 0: a feature is not finite or beyond the range of fp16"):
        cache_features(chain, dataset, tmp_path / "features", silent)


def test_sensor_tensors_work_end_to_end(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.random((120, 22, 20, 20)).astype(np.float16)
    np.savez_compressed(tmp_path / "bvp.npz", x=x, y=random.integers(0, 5, 120))
    sensors = load_data(Data.model_validate({"source": "npz", "path": "bvp.npz"}), tmp_path)
    assert sensors.input.shape == (22, 20, 20)
    assert sensors.train.x.dtype == np.float16
    chain = partition(build_backbone("lenet", input_shape=(22, 20, 20), classes=5, arguments={}), (22, 20, 20))
    features = cache_features(chain, sensors, tmp_path / "features", silent)
    assert features.features(0, "train").shape == (len(sensors.train), *chain.map_shape(0))
    assert 0 <= features.final_accuracy <= 1
