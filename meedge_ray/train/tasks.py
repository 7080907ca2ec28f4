"""What a stage of the build gives to workers: tasks, run here in turn or side by side on a cluster."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from meedge_ray.api.elastic_model import Resources
from meedge_ray.train.progress import Report

OnEpoch = Callable[[int, Mapping[str, float]], None]


class Task(Protocol):
    """A part of one stage's work, such as that at one exit.

    A worker anywhere can do it: it is small, and reads and writes the shared disk. It is finished once its output is
    there, whole.
    """

    @property
    def stage(self) -> str:
        """The stage's name in reports."""

    @property
    def name(self) -> str:
        """What it works on, such as "exit 3", in reports."""

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
        """Do the work, going on where a killed run was; `on_epoch` is told the epochs done and `accuracy`."""


RunTasks = Callable[[Sequence[Task], Report], None]


def run_in_turn(tasks: Sequence[Task], report: Report) -> None:
    """Run one task after the other in this process: what a machine without Ray does."""
    for done, task in enumerate(tasks):

        def on_epoch(epoch: int, figures: Mapping[str, float], *, done: int = done, task: Task = task) -> None:
            report(task.stage, done + epoch / task.epochs, len(tasks), detail(task, figures))

        task.run(on_epoch)


def detail(task: Task, figures: Mapping[str, float]) -> str:
    """Return what a report says of a task's progress."""
    return f"{task.name}: accuracy {figures['accuracy']:.1%}"
