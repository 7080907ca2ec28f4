"""A decision of sample-wise planning: from results so far to how likely each exit is right, and from that to a plan.

What is ahead is predicted (EINet IV-C), then the exits behind the last result are planned anew (EINet V). Both are one
compiled step where `plan_exits` plans; a law of the kill's time other than the uniform one is made a table for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meedge_ray.search import native
from meedge_ray.search.exit_plan import ExitPlan, plan_exits
from meedge_ray.search.inputs import UNBOUNDED, Floats, Integers, Law
from meedge_ray.search.predictor import ConfidencePredictor

Search = Callable[..., ExitPlan]

SUREST = 1e-3  # nearer to 0 or 1 no confidence is told from another
_TABLE = 1025  # times of a law
_STATE_NUMBERS = 2  # before what was seen: how many slots are passed, and the answer's result, counted from 1


@dataclass(frozen=True, slots=True)
class Results:
    """The results that can come, in the order they would, the final one last; arrays of shape [K + 1].

    `slot` is the exit point of each, `conv_ms` the backbone's time from the result before. `slope`, `bias` and `offset`
    are its `Calibration`. The answer at hand is the result with the highest `accuracy`, the earlier of equals.
    """

    slot: Integers
    conv_ms: Floats
    branch_ms: Floats
    slope: Floats
    bias: Floats
    offset: Floats
    accuracy: Floats


class Decider:
    """What the decisions of all inferences share."""

    def __init__(
        self,
        results: Results,
        predictor: ConfidencePredictor,
        *,
        horizon_ms: float,
        law: Law | None = None,
        replan_ms: float = 0.0,
        search: Search = plan_exits,
    ) -> None:
        """Take what can come.

        Args:
            results: checked, times in ms.
            predictor: of the model's slots.
            horizon_ms: the span in which the kill may come.
            law: of the kill's time; None is the uniform one.
            replan_ms: what a decision takes.
            search: what plans; arguments as of `plan_exits`.
        """
        self.results, self.predictor, self.search = results, predictor, search
        grid = np.linspace(0.0, horizon_ms, _TABLE)
        chance = np.zeros(0) if law is None else law(grid)
        steepness = 0.0 if law is None else min(UNBOUNDED, law.steepness * horizon_ms)
        table = None if law is None else Law(lambda times: np.interp(times, grid, chance), law.steepness)
        self.settings: dict[str, Any] = {"horizon_ms": horizon_ms, "survival": table, "replan_ms": replan_ms}
        self.compiled: Callable[..., None] | None = None
        if native.kernels is not None and search is plan_exits:
            arrays = (*_columns(results), results.slot, predictor.packed, chance)
            numbers = (predictor.slots, *predictor.hidden, horizon_ms, replan_ms, steepness)
            self.compiled = partial(native.kernels.decide, native.kernels.decider(*arrays, *numbers))

    def begin(self, first: Sequence[int]) -> "Decisions":
        """Return the decisions of an inference that goes for the results of a first plan."""
        return Decisions(self, first)


class Decisions:
    """One inference's: what was seen so far, and which results are wanted; by result, 1 or 0."""

    __slots__ = ("_decider", "_state", "wanted")

    def __init__(self, decider: Decider, first: Sequence[int]) -> None:
        self.wanted = bytearray(first)
        self._decider = decider
        self._state = bytearray(8 * _STATE_NUMBERS + 4 * decider.predictor.slots)

    def after(self, result: int, logits: NDArray[np.float32] | float, elapsed_ms: float) -> None:
        """Predict what is ahead and plan it, after a result with these logits, or with this confidence."""
        decider = self._decider
        if decider.compiled is not None:
            decider.compiled(self._state, self.wanted, result, logits, elapsed_ms)
        else:
            self._decide(result, logits if isinstance(logits, float) else confidence_of(logits), elapsed_ms)

    def _decide(self, result: int, confidence: float, elapsed_ms: float) -> None:
        results = self._decider.results
        numbers = np.frombuffer(self._state, np.float64, _STATE_NUMBERS)
        seen = np.frombuffer(self._state, np.float32, offset=numbers.nbytes)
        known, slot = int(numbers[0]), int(results.slot[result])
        chance = float(calibrated(confidence, results.slope[result], results.bias[result]))
        answer = int(numbers[1]) - 1
        if answer < 0 or results.accuracy[result] > results.accuracy[answer]:
            answer = result
        # Slots passed over have the confidence before them (EINet IV-C).
        seen[known:slot] = seen[known - 1] if known else 0.0
        seen[slot] = chance - results.offset[result]
        numbers[:] = slot + 1, answer + 1
        predicted = self._decider.predictor.predict(seen, slot + 1)
        likely = np.clip(predicted[results.slot] + results.offset, 0.0, 1.0)
        plan = self._decider.search(
            results.conv_ms,
            results.branch_ms,
            likely,
            start=result + 1,
            elapsed_ms=elapsed_ms,
            best_confidence=float(likely[answer]),
            **self._decider.settings,
        )
        self.wanted[result + 1 :] = plan.execute[result + 1 :].tobytes()


def calibrated(confidence: Any, slope: Any, bias: Any) -> Any:  # noqa: ANN401 - numbers or arrays of them
    """Return the chance that a result of this confidence is right, see `Calibration`."""
    inside = np.clip(confidence, SUREST, 1 - SUREST)
    return 1 / (1 + np.exp(-(slope * np.log(inside / (1 - inside)) + bias)))


def _columns(results: Results) -> tuple[Floats, ...]:
    return results.conv_ms, results.branch_ms, results.slope, results.bias, results.offset, results.accuracy


def confidence_of(logits: NDArray[np.float32]) -> float:
    """Return the highest of the softmax of logits [1, classes]; 0 of what is no number."""
    row = logits[0].tolist()
    top = max(row)
    confidence = 1.0 / sum([exp(value - top) for value in row])
    return confidence if confidence >= 0.0 else 0.0
