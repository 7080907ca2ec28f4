"""A small build of every stage, and processes that run one each: `python staging.py FOLDER STAGE[:LINE]...`.

They tell of their progress, and are killed where that is LINE.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from meedge_ray.api.elastic_model import ElasticModel
from meedge_ray.train.build import run_stage
from meedge_ray.train.manifest import Manifest

SPEC: dict[str, Any] = {
    "model": {"architecture": "resnet8", "pretrain": {"epochs": 2, "learningRate": "0.005"}},
    "data": {"trainSamples": 200},
    "zoo": {"convolutions": [{"kind": "none"}], "fullyConnected": [{"pooledSize": 2, "hidden": [12]}]},
    "cultivation": {"epochs": 3, "learningRate": "0.01"},
    "sharing": {"epochs": 1},
    "supernet": {
        "mergedBlocks": 2,
        "shrunk": [],
        "distillation": {"epochs": 1, "learningRate": "0.003"},
        "tuning": {"epochs": 1, "learningRate": "0.001"},
        "granularityPercent": 100,
        "batchSize": 64,
    },
}


def declared(base_dir: Path, *, labels: dict[str, str] | None = None, **changed: Any) -> Manifest:
    content = {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "ElasticModel",
        "metadata": {"name": "staged", "labels": labels or {}},
        "spec": SPEC | changed,
    }
    return Manifest(ElasticModel.model_validate(content), base_dir)


def work(folder: Path, stage: str, last: str) -> None:
    def report(stage: str, done: float, total: float, detail: str = "") -> None:
        line = f"{stage} {done:.2f}/{total:.0f}"
        say(line)
        if line == last:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    run_stage(stage, declared(folder.parent), folder, report=report)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    fork = multiprocessing.get_context("fork")  # each its own process, but torch is imported once
    for argument in sys.argv[2:]:
        stage, _, last = argument.partition(":")
        process = fork.Process(target=work, args=(Path(sys.argv[1]), stage, last))
        process.start()
        process.join()
        say(f"{stage} ended with {process.exitcode}")


if __name__ == "__main__":
    main()
