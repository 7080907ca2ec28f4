"""Cultivation as a Ray Tune run: one trial an exit, all its branches trained together.

Which exits are finished is known from their folders alone, so a run that was killed goes on without Tune's own
(pickled) experiment state.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

# Read at import: no loggers (37 ms a trial instead of 88), and no tables between our own progress.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import torch
from ray import tune

from meedge_ray.domain.errors import MeedgeError
from meedge_ray.train.cultivate import ExitTask, cultivate_exit
from meedge_ray.train.progress import Report, silent

_RETRIES = 2  # of an exit whose worker died


def cultivate_on_ray(tasks: Sequence[ExitTask], report: Report) -> None:
    """Train the exits as trials on the cluster this process is connected to.

    Raises:
        MeedgeError: a trial failed for good; the exits that finished stay finished.
    """
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, tasks=list(tasks)), {"cpu": 1}),
        param_space={"task": tune.grid_search(list(range(len(tasks))))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
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
                f"cultivation failed ({reasons[0] if reasons else 'the trial ended early'})",
                where=f"exit {task.exit_index}",
                do="Run the build again: the exits that finished are kept",
            )


def _trial(config: Mapping[str, int], tasks: Sequence[ExitTask]) -> None:
    task = tasks[config["task"]]
    torch.set_num_threads(1)  # one core a trial: exits run side by side rather than operators

    def on_epoch(epoch: int, figures: Mapping[str, float]) -> None:
        tune.report({"epoch": epoch, **figures})

    cultivate_exit(task, on_epoch)


class _Progress(tune.Callback):  # type: ignore[misc]  # Ray ships no usable types
    """Turns trials' results into progress."""

    def __init__(self, tasks: Sequence[ExitTask], report: Report) -> None:
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
            "cultivate",
            sum(self._epochs.values()) / task.settings.epochs,
            len(self._tasks),
            f"exit {task.exit_index}: best {result['best_accuracy']:.1%}",
        )
