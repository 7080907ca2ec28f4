"""Workers die: the exit they worked on goes on where it was."""

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import growing
import pytest

from meedge_ray.api.elastic_model import Resources
from meedge_ray.train.cultivate import ExitTask
from meedge_ray.train.tasks import OnEpoch

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Fatal:
    """Cultivation whose worker kills itself in the middle, as the kernel does where memory runs out, but once only."""

    exit: ExitTask
    killed: Path
    stage: str = "cultivate"
    name: str = "exit 0"

    @property
    def output(self) -> Path:
        return self.exit.output

    @property
    def epochs(self) -> int:
        return self.exit.epochs

    @property
    def resources(self) -> Resources:
        return self.exit.resources

    @property
    def finished(self) -> bool:
        return self.exit.finished

    def run(self, on_epoch: OnEpoch) -> None:
        def once(epoch: int, figures: Mapping[str, float]) -> None:
            on_epoch(epoch, figures)
            if epoch == 2 and not self.killed.exists():
                self.killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        self.exit.run(once)


def test_an_exit_whose_worker_is_killed_goes_on_and_ends_with_the_same_bits(own_cluster: Any, tmp_path: Path) -> None:
    import ray

    from meedge_ray.jobs.tasks import run_on_ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    growing.write_features(tmp_path / "features")
    task = growing.task(tmp_path, epochs=4)
    told: list[str] = []
    run_on_ray([Fatal(task, tmp_path / "killed")], lambda *said: told.append(f"{said[0]} {said[1]:.2f}/{said[2]}"))
    assert (tmp_path / "killed").exists()
    assert told[-1] == "cultivate 1.00/1"
    assert told.count("cultivate 0.25/1") == 1, "the first epoch was trained again"
    unbroken = replace(task, output=tmp_path / "unbroken")
    unbroken.run(lambda *_: None)
    for name in ("weights.safetensors", "accuracy.json"):
        assert (task.output / name).read_bytes() == (unbroken.output / name).read_bytes()
