"""A stage of the build as a Ray Tune run: one trial a task.

Which tasks are finished is known from their folders alone, so a run that was killed goes on without Tune's own
(pickled) experiment state.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

# Read at import: no loggers (37 ms a trial instead of 88), and no tables between our own progress.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
import torch
from ray import tune

from meedge_ray.api.elastic_model import Resources
from meedge_ray.domain.errors import MeedgeError
from meedge_ray.train.progress import Report, silent
from meedge_ray.train.tasks import Task, detail

_RETRIES = 2  # of a task whose worker died


def run_on_ray(tasks: Sequence[Task], report: Report) -> None:
    """Do one stage's tasks as trials on the cluster this process is connected to: GPUs are shared where there are any.

    Raises:
        MeedgeError: a trial failed for good; the tasks that finished stay finished.
    """
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, tasks=list(tasks)), _taken(tasks[0].resources)),
        param_space={"task": tune.grid_search(list(range(len(tasks))))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name=f"tune-{tasks[0].stage}",
            storage_path=str(tasks[0].output.parent.resolve()),
            callbacks=[_Progress(tasks, report)],
            failure_config=tune.FailureConfig(max_failures=_RETRIES),
            verbose=0,
        ),
    )
    # It warns of every trial whose loggers are off, and prints the traceback of what is raised below in one line.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    results = tuner.fit()
    for task in tasks:
        if not task.finished:
            reasons = [str(result.error).strip().splitlines()[-1] for result in results if result.error]
            raise MeedgeError(
                f"{task.stage} failed ({reasons[0] if reasons else 'the trial ended early'})",
                where=task.name,
                do="Run the build again: what finished is kept",
            )


def _taken(resources: Resources) -> dict[str, float]:
    taken: dict[str, float] = {"cpu": resources.cpus}
    if ray.cluster_resources().get("GPU", 0) > 0:
        taken["gpu"] = float(resources.gpus)
    return taken


def _trial(config: Mapping[str, int], tasks: Sequence[Task]) -> None:
    task = tasks[config["task"]]
    torch.set_num_threads(task.resources.cpus)

    def on_epoch(epoch: int, figures: Mapping[str, float]) -> None:
        tune.report({"epoch": epoch, **figures})

    task.run(on_epoch)


class _Progress(tune.Callback):  # type: ignore[misc]  # Ray ships no usable types
    """Turns trials' results into progress."""

    def __init__(self, tasks: Sequence[Task], report: Report) -> None:
        self._tasks = tasks
        self._report = report
        self._epochs = dict.fromkeys(range(len(tasks)), 0)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out who listens: Tune pickles callbacks into an experiment state that nobody restores."""
        return {"_tasks": self._tasks, "_report": silent, "_epochs": self._epochs}

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002 - Tune's signature
        trials: list[Any],  # noqa: ARG002
        trial: Any,  # noqa: ANN401
        result: Mapping[str, Any],
        **info: Any,  # noqa: ANN401, ARG002
    ) -> None:
        number = int(trial.config["task"])
        self._epochs[number] = int(result["epoch"])
        task = self._tasks[number]
        self._report(
            task.stage,
            sum(done / each.epochs for done, each in zip(self._epochs.values(), self._tasks, strict=True)),
            len(self._tasks),
            detail(task, result),
        )
