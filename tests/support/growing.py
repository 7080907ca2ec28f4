"""A small exit to cultivate, and a process that cultivates it: `python growing.py TASK.json FOLDER`."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meedge_ray.api.elastic_model import Cultivation, Zoo
from meedge_ray.nn.branches import zoo_branches
from meedge_ray.train.cultivate import ExitTask

SHAPE = (4, 8, 8)
CLASSES = 3
ZOO = {
    "convolutions": [
        {"kind": "none"},
        {"kind": "depthwise", "kernelSize": 5},
        {"kind": "dilated"},
        {"kind": "separable", "layers": 2},
        {"kind": "spatiallySeparable"},
    ],
    "fullyConnected": [{"pooledSize": 1}, {"pooledSize": 2, "hidden": [6]}, {"pooledSize": 4, "hidden": [8, 6]}],
}


def write_features(folder: Path, *, views: int = 1, samples: int = 90) -> Path:
    """Write maps that tell their class by the mean of a quarter of one channel, and a little by their texture."""
    random = np.random.default_rng(7)
    folder.mkdir(parents=True)
    for split, count in (("train", views), ("validation", 1)):
        labels = np.arange(samples) % CLASSES
        np.save(folder / f"{split}.labels.npy", labels)
        for view in range(count):
            maps = random.normal(size=(samples, *SHAPE))
            maps[np.arange(samples), labels, :4, :4] += 0.8
            np.save(folder / f"{split}.{view}.0.npy", maps.astype(np.float16))
    (folder / "features.json").write_text(json.dumps({"views": views}))
    return folder


def task(folder: Path, *, zoo: dict[str, Any] = ZOO, output: str = "exit-00", **settings: Any) -> ExitTask:
    parsed = Zoo.model_validate(zoo)
    declared = {"epochs": 2, "batchSize": 30, "learningRate": "0.01"} | settings
    return ExitTask(
        exit_index=0,
        choices=tuple(zoo_branches(parsed, SHAPE)),
        classes=CLASSES,
        features=folder / "features",
        output=folder / output,
        settings=Cultivation.model_validate(declared),
        shared_convolutions=parsed.shared_convolutions,
    )


def main() -> None:
    torch.set_num_threads(1)
    arguments = json.loads(Path(sys.argv[1]).read_text())

    def on_epoch(epoch: int, _figures: object) -> None:
        sys.stdout.write(f"{epoch}\n")
        sys.stdout.flush()

    task(Path(sys.argv[2]), **arguments).run(on_epoch)


if __name__ == "__main__":
    main()
