"""Which exits to run on a sample, so that a kill at an unknown time costs the least (EINet V).

Exit i is a conv part followed by a branch. What is run comes one after the other, so a result comes when all conv
parts up to its own and all branches run up to its own are done. With results of rising confidence c_1 < c_2 < ... at
times S_1 < S_2 < ..., and G(t) the chance of no kill before t, a plan is worth

    expectation = best_confidence G(elapsed) + sum over j of (c_j - c_{j-1}) G(S_j),    c_0 = best_confidence:

the mean, over the kill's time, of the confidence of the best result at hand from now on (EINet equation 4); a moment
before `elapsed_ms` counts nothing. The best plan is found exactly; how is told in `exit_loops`. EINet's own hybrid
search is here too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import numpy as np
import numpy.typing as npt

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search import native
from meedge_ray.search.exit_inputs import Booleans, Exits, Situation, read_exits, read_plan
from meedge_ray.search.exit_loops import best_by_law, best_uniform, search_hybrid, search_random, values

_REFUSED = (TypeError, ValueError, BufferError, OverflowError)  # by compiled code, which does not say it well


class ExitPlan(NamedTuple):
    """Which of N exits to run, [N], False before `start`; and what that is worth."""

    expectation: float
    execute: Booleans


def plan_exits(
    conv_ms: npt.ArrayLike,
    branch_ms: npt.ArrayLike,
    confidence: npt.ArrayLike,
    *,
    horizon_ms: float | None = None,
    survival: Callable[[Any], Any] | None = None,
    start: int = 0,
    elapsed_ms: float = 0.0,
    best_confidence: float = 0.0,
    replan_ms: float = 0.0,
) -> ExitPlan:
    """Return the plan with the highest expectation, the exact optimum.

    Arrays of float64 take the quickest way.

    Args:
        conv_ms: [N] time of every conv part.
        branch_ms: [N] time of every branch.
        confidence: [N] confidence of every exit's result, or its accuracy: fractions 0..1.
        horizon_ms: the span in which the kill may come; None takes the sum of all conv parts and branches.
        survival: chance 0..1 of not being killed before a time in ms, never rising, of an array or of one number;
            uniform over the horizon if None.
        start: the first exit not yet passed, 0..N.
        elapsed_ms: the time when its conv part begins.
        best_confidence: of the best result at hand, 0 before the first.
        replan_ms: what planning takes after every branch that is run.

    Raises:
        InvalidInputError: `where` names the argument that cannot be used.
    """
    execute = _no_exits(confidence)
    arguments = (conv_ms, branch_ms, confidence, execute)
    quick = _quickly("plan_exits", arguments, horizon_ms, survival, start, elapsed_ms, best_confidence, replan_ms)
    if quick is not None:
        return ExitPlan(quick, execute)
    exits = read_exits(
        conv_ms,
        branch_ms,
        confidence,
        horizon_ms=horizon_ms,
        survival=survival,
        start=start,
        elapsed_ms=elapsed_ms,
        best_confidence=best_confidence,
        replan_ms=replan_ms,
    )
    if exits.law is not None:
        return _planned(exits, best_by_law(exits))
    if native.kernels is None:
        return _planned(exits, best_uniform(exits))
    execute = np.zeros(len(exits.conv_ms), np.bool_)
    return ExitPlan(native.kernels.plan_exits(*_arguments(exits, execute)), execute)


def expectation(
    execute: npt.ArrayLike,
    conv_ms: npt.ArrayLike,
    branch_ms: npt.ArrayLike,
    confidence: npt.ArrayLike,
    **situation: Unpack[Situation],
) -> float:
    """Return what running the exits of `execute` [N] is worth (EINet, Algorithm 1).

    Other arguments as in `plan_exits`. Every branch run costs its time, even where it does not raise the confidence.

    Raises:
        InvalidInputError: `where` names the argument that cannot be used.
    """
    quick = _quickly("value_exits", (conv_ms, branch_ms, confidence, execute), **situation)
    if quick is not None:
        return quick
    exits = read_exits(conv_ms, branch_ms, confidence, **situation)
    plan = read_plan(execute, len(exits.conv_ms))
    if exits.law is None and native.kernels is not None:
        return float(native.kernels.value_exits(*_arguments(exits, plan)))
    return float(values(exits, plan[None, exits.start :])[0])


def hybrid_search(
    conv_ms: npt.ArrayLike,
    branch_ms: npt.ArrayLike,
    confidence: npt.ArrayLike,
    m: int = 4,
    **situation: Unpack[Situation],
) -> ExitPlan:
    """Return the plan of EINet's own search (Algorithm 2): the best of up to `m` exits, then one more at a time.

    With `m` of 0 it is the greedy search, with N it enumerates all plans. Other arguments as in `plan_exits`.

    Raises:
        InvalidInputError: `where` names the argument that cannot be used.
    """
    if not isinstance(m, int | np.integer) or m < 0:
        raise InvalidInputError(f"{m} is no number of exits", where="m", do="Give 0 or more")
    execute = _no_exits(confidence)
    quick = _quickly("hybrid_exits", (m, conv_ms, branch_ms, confidence, execute), **situation)
    if quick is not None:
        return ExitPlan(quick, execute)
    exits = read_exits(conv_ms, branch_ms, confidence, **situation)
    if exits.law is not None or native.kernels is None:
        return _planned(exits, search_hybrid(exits, m))
    execute = np.zeros(len(exits.conv_ms), np.bool_)
    return ExitPlan(native.kernels.hybrid_exits(m, *_arguments(exits, execute)), execute)


def random_search(
    conv_ms: npt.ArrayLike,
    branch_ms: npt.ArrayLike,
    confidence: npt.ArrayLike,
    plans: int = 10_000,
    seed: int = 0,
    **situation: Unpack[Situation],
) -> ExitPlan:
    """Return the best of so many random plans (EINet VI-C3). Other arguments as in `plan_exits`.

    Raises:
        InvalidInputError: `where` names the argument that cannot be used.
    """
    exits = read_exits(conv_ms, branch_ms, confidence, **situation)
    return _planned(exits, search_random(exits, plans, np.random.default_rng(seed)))


def static_plan(count: int, share: float) -> Booleans:
    """Return the plan [count] that runs a share of all exits, evenly spread, the last among them (EINet VI-A)."""
    from_the_last = np.ceil(np.arange(count + 1) * share - 1e-9)
    runs: Booleans = np.diff(from_the_last)[::-1] > 0
    return runs


def _quickly(
    kernel: str,
    arguments: tuple[Any, ...],
    horizon_ms: float | None = None,
    survival: Callable[[Any], Any] | None = None,
    start: int = 0,
    elapsed_ms: float = 0.0,
    best_confidence: float = 0.0,
    replan_ms: float = 0.0,
) -> float | None:
    # What the kernel makes of arguments as they are; None where it cannot take them.
    if survival is not None or native.kernels is None:
        return None
    given_ms = 0.0 if horizon_ms is None else horizon_ms or np.nan  # to compiled code 0 says that none is given
    try:
        value: float = getattr(native.kernels, kernel)(
            *arguments, given_ms, start, elapsed_ms, best_confidence, replan_ms
        )
    except _REFUSED:
        return None
    return value


def _no_exits(confidence: npt.ArrayLike) -> Booleans:
    # The plan that runs none of as many exits; what has no length is refused later.
    try:
        return np.zeros(len(confidence), np.bool_)  # type: ignore[arg-type]
    except TypeError:
        return np.zeros(0, np.bool_)


def _arguments(exits: Exits, execute: Booleans) -> tuple[Any, ...]:
    arrays = (exits.conv_ms, exits.branch_ms, exits.confidence, execute)
    return (*arrays, exits.horizon_ms, exits.start, exits.elapsed_ms, exits.best_confidence, exits.replan_ms)


def _planned(exits: Exits, ahead: Booleans) -> ExitPlan:
    execute = np.append(np.zeros(exits.start, np.bool_), ahead)
    return ExitPlan(float(values(exits, ahead[None])[0]), execute)
