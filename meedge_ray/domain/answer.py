"""What an inference returns, however it ended."""

from dataclasses import dataclass
from typing import Literal

Ending = Literal["completed", "deadline", "preempted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One result on the way. `branch` is None at the final exit; `at_ms` counts from the inference's start."""

    exit_index: int
    branch: str | None
    at_ms: float
    label: int
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The best result at hand when the inference ended; `label` is None where nothing was at hand yet.

    `outputs` lists every result in the order it came, `elapsed_ms` when the engine returned. `planner` says who chose
    among the `resident` branches: "none" ran all of them, "static" the best fixed plan, "samplewise" one for this
    sample.
    """

    label: int | None
    confidences: tuple[float, ...]
    exit_index: int | None
    branch: str | None
    ending: Ending
    elapsed_ms: float
    outputs: tuple[Output, ...]
    planner: str = "none"
    resident: int = 0
