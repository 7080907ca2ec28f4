"""What a stage of the build gives to workers: one task an exit, run here in turn or side by side on a cluster."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from meedge_ray.api.elastic_model import Resources
from meedge_ray.train.progress import Report

OnEpoch = Callable[[int, Mapping[str, float]], None]


class Task(Protocol):
    """The work of one stage at one exit.

    A worker anywhere can do it: it is small, and reads and writes the shared disk. It is finished once its output is
    there, whole.
    """

    @property
    def stage(self) -> str:
        """The stage's name in reports."""

    @property
    def exit_index(self) -> int:
        """The exit it works on."""

    @property
    def output(self) -> Path:
        """Where its result appears, on the shared disk."""

    @property
    def epochs(self) -> int:
        """How many times `on_epoch` will be called."""

    @property
    def resources(self) -> Resources:
        """What it takes of a cluster."""

    @property
    def finished(self) -> bool:
        """Whether its output is there."""

    def run(self, on_epoch: OnEpoch) -> None:
        """Do the work, going on where a killed run was; `on_epoch` is told the epochs done and `best_accuracy`."""


RunTasks = Callable[[Sequence[Task], Report], None]


def run_in_turn(tasks: Sequence[Task], report: Report) -> None:
    """Run one task after the other in this process: what a machine without Ray does."""
    for done, task in enumerate(tasks):

        def on_epoch(epoch: int, figures: Mapping[str, float], *, done: int = done, task: Task = task) -> None:
            detail = f"exit {task.exit_index}: best {figures['best_accuracy']:.1%}"
            report(task.stage, done + epoch / task.epochs, len(tasks), detail)

        task.run(on_epoch)
