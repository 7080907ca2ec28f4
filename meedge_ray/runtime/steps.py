"""What an inference does, step by step: the blocks of a chain, and behind each the branches of its exit."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from meedge_ray.domain.elastic import Branch, Unit
from meedge_ray.runtime.resident import ResidentUnits
from meedge_ray.runtime.sessions import UnitSession

CHAIN: Final = 0  # the slot of the chain's features; behind it come those that branches of the exit share


class Exit(NamedTuple):
    """Where a result comes from; `branch` is None at the final exit."""

    exit_index: int
    branch: str | None
    accuracy: float


class Step(NamedTuple):
    """One run of a loaded unit."""

    run: Callable[..., Any]
    output_names: list[str]
    input_name: str
    source: int  # the slot of its input
    target: int  # the slot of its output, unless that is a result
    exit: Exit | None  # None: the output is features, not a result
    results: tuple[int, ...]  # that need it; none where it always runs


def steps_of(blocks: Sequence[Unit], final: Exit, branches: Sequence[Branch], units: ResidentUnits) -> tuple[Step, ...]:
    """Return all steps of an inference.

    Args:
        blocks: the chain's units in order; the last one's output is the result of `final`.
        final: the final exit.
        branches: the resident ones in the order they run, which numbers their results.
        units: all of them loaded.
    """
    number = {branch.name: index for index, branch in enumerate(branches)}
    steps: list[Step] = []
    for index, block in enumerate(blocks):
        if index == final.exit_index:
            steps.append(_step(units[block], CHAIN, CHAIN, final, (len(branches),)))
        else:
            steps.append(_step(units[block], CHAIN, CHAIN, None))
        here = [branch for branch in branches if branch.exit_index == index]
        steps += _branch_steps(here, units, number)
    return tuple(steps)


def _branch_steps(branches: Sequence[Branch], units: ResidentUnits, number: dict[str, int]) -> Iterator[Step]:
    # Of one exit, in order. A slot holds what a run of first units makes of the chain's features.
    slots: dict[tuple[Unit, ...], int] = {(): CHAIN}
    for branch in branches:
        for end, unit in enumerate(branch.units, start=1):
            source, done = slots[branch.units[: end - 1]], branch.units[:end]
            if end == len(branch.units):
                exit_ = Exit(branch.exit_index, branch.name, branch.accuracy)
                yield _step(units[unit], source, source, exit_, (number[branch.name],))
            elif done not in slots:
                slots[done] = len(slots)
                users = tuple(number[other.name] for other in branches if other.units[:end] == done)
                yield _step(units[unit], source, slots[done], None, users)


def _step(unit: UnitSession, source: int, target: int, exit_: Exit | None, needed_by: tuple[int, ...] = ()) -> Step:
    return Step(unit.run, unit.output_names, unit.input_name, source, target, exit_, needed_by)
