"""From the results of one inference to its answer."""

from collections.abc import Sequence
from math import exp
from time import perf_counter

import numpy as np

from meedge_ray.domain.answer import Answer, Ending, Output
from meedge_ray.runtime.sessions import Floats
from meedge_ray.runtime.steps import Exit

# So few confidences are quicker in plain Python: 4 against 13 microseconds for 10, right after a network ran.
FEW_NUMBERS = 32


def best_answer(
    results: Sequence[tuple[Exit, float, Floats]], ending: Ending, start: float, *, planner: str, resident: int
) -> Answer:
    """Return the answer of an inference: the result of the highest validation accuracy, the earlier of equals.

    Args:
        results: exit, time on the clock of `perf_counter` and logits [1, classes] of each, in the order they came.
        ending: how the inference ended.
        start: when it began, on the same clock.
        planner: the name of what chose among the resident branches.
        resident: the number of these.
    """
    if not results:
        return Answer(
            label=None,
            confidences=(),
            exit_index=None,
            branch=None,
            ending=ending,
            elapsed_ms=(perf_counter() - start) * 1e3,
            outputs=(),
            planner=planner,
            resident=resident,
        )
    confidences = _softmax([logits for _, _, logits in results])
    highest = [max(row) for row in confidences]
    labels = [row.index(top) for row, top in zip(confidences, highest, strict=True)]
    outputs = tuple(
        [
            Output(
                exit_index=exit_.exit_index,
                branch=exit_.branch,
                at_ms=(at - start) * 1e3,
                label=label,
                confidence=confidence,
            )
            for (exit_, at, _), label, confidence in zip(results, labels, highest, strict=True)
        ]
    )
    best = max(range(len(results)), key=lambda index: results[index][0].accuracy)
    return Answer(
        label=labels[best],
        confidences=tuple(confidences[best]),
        exit_index=outputs[best].exit_index,
        branch=outputs[best].branch,
        ending=ending,
        elapsed_ms=(perf_counter() - start) * 1e3,
        outputs=outputs,
        planner=planner,
        resident=resident,
    )


def _softmax(logits: Sequence[Floats]) -> list[list[float]]:
    if len(logits) * logits[0].size > FEW_NUMBERS:
        array = np.concatenate(logits)
        exponentials = np.exp(array - np.maximum.reduce(array, 1, keepdims=True))
        numbers: list[list[float]] = (exponentials / np.add.reduce(exponentials, 1, keepdims=True)).tolist()
        return numbers
    rows = []
    for result in logits:
        row = result[0].tolist()
        top = max(row)
        shares = [exp(value - top) for value in row]
        total = sum(shares)
        rows.append([share / total for share in shares])
    return rows
