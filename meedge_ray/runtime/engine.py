"""The elastic engine: block by block, branch by branch, with the best result so far always at hand."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from threading import Lock
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from meedge_ray.domain.answer import Answer, Ending
from meedge_ray.domain.elastic import Block, Branch, InputSpec, Unit, units_of
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime.answers import best_answer
from meedge_ray.runtime.memory import release_to_os
from meedge_ray.runtime.preemption import Preemption
from meedge_ray.runtime.resident import ResidentUnits, Shape
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.runtime.sessions import Floats
from meedge_ray.runtime.steps import CHAIN, Exit, Step, steps_of

BATCH = 128  # samples evaluated at once: features of more only cost memory

_NEVER = Preemption()


@dataclass(frozen=True, slots=True)
class Body:
    """A chain of blocks from the input to the logits: the backbone, or a subnet with an accuracy of its own, 0..1."""

    blocks: tuple[Block, ...]
    final_accuracy: float


class Decisions(Protocol):
    """Which results one inference goes for; results are numbered in the order they would come, the final one last."""

    @property
    def wanted(self) -> Sequence[int]:
        """1 or 0, whether each result is wanted, as far as they are still to come."""

    def after(self, result: int, logits: Floats, elapsed_ms: float) -> None:
        """Decide anew after a result [1, classes] that came so long after the inference's start."""


class Planner(Protocol):
    """Plans the inferences of an engine with certain resident branches. Thread-safe."""

    @property
    def name(self) -> str:
        """What answers call it."""

    def begin(self, deadline_ms: float | None = None) -> Decisions:
        """Return the decisions of a new inference with this deadline, None where it has none."""


class _Chain(NamedTuple):
    units: tuple[Unit, ...]
    shapes: tuple[Shape, ...]  # of the output of each
    final: Exit


@dataclass(frozen=True, slots=True)
class _Placed:
    chain: _Chain
    branches: tuple[Branch, ...]
    units: ResidentUnits
    steps: tuple[Step, ...]
    slots: int
    planner: Planner | None

    @property
    def planner_name(self) -> str:
        return "none" if self.planner is None else self.planner.name


class Engine:
    """Runs a body block by block and the resident branches on the way, in ONNX Runtime, a session a unit.

    The body is the backbone until another is placed. A unit that is needed twice is loaded once; where it comes first
    in branches of one exit, an inference runs it once. Every method may be called from any thread. An inference sees
    one body and one set of branches however often they are replaced meanwhile.
    """

    def __init__(
        self, input_spec: InputSpec, blocks: Iterable[bytes], *, final_accuracy: float, threads: int = 1
    ) -> None:
        """Load the backbone, without branches.

        Args:
            input_spec: what raw samples are like.
            blocks: ONNX bytes of the chain, in order; the last block's output are the final exit's logits. Each is
                asked for when the ones before are loaded: of an iterator's files one is in memory at a time.
            final_accuracy: validation accuracy of the final exit, 0..1.
            threads: threads one unit may use.

        Raises:
            InvalidInputError: there is no block, or one cannot be used after the one before.
        """
        self._normalizer = Normalizer(input_spec)
        self._placing = Lock()
        units = ResidentUnits(threads)
        chain = [units.load_bytes(data, name=f"block {index}") for index, data in enumerate(blocks)]
        names = [f"block {index}" for index in range(len(chain))]
        self._placed = _placement(self._chain(chain, names, final_accuracy, units), (), units, None)

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the resident branches in the order they run."""
        return tuple(branch.name for branch in self._placed.branches)

    @property
    def planner(self) -> str:
        """What chooses among the resident branches, by the planner's name; "none" where all of them run."""
        return self._placed.planner_name

    @property
    def resident_bytes(self) -> int:
        """Bytes of the units loaded now: body, branches, and what is kept besides; a shared unit counts once."""
        return self._placed.units.size_bytes

    def place(
        self,
        branches: Sequence[Branch],
        read: Callable[[Unit], bytes],
        planner: Planner | None = None,
        *,
        body: Body | None = None,
        keep: Collection[Unit] = (),
    ) -> None:
        """Make exactly these what is resident: keep what is loaded of them, load the rest one by one, then swap.

        Branches of one exit run in the order of their accuracy. Inferences under way go on with the body and the
        branches they started with. Until the swap old and new are in memory together.

        Args:
            branches: the wanted ones, in any order; their exit points are those of the body placed with them.
            read: returns a unit's verified bytes; asked once for every unit that is not loaded yet.
            planner: of exactly these branches and this body, chooses which of them an inference runs; None runs all.
            body: whose blocks an inference runs, for the same classes as before; None leaves the one there is.
            keep: units to hold loaded besides, so that placing them later needs no loading.

        Raises:
            InvalidInputError: a block does not follow the one before, or a branch does not fit its exit point; what
                was resident stays.
            MeedgeError: whatever getting a unit's bytes raised; what was resident stays.
        """
        with self._placing:
            self._swap(branches, read, planner, body, keep)
        release_to_os()

    def infer(
        self,
        sample: Any,  # noqa: ANN401 - whatever a user hands over
        *,
        deadline_ms: float | None = None,
        preemption: Preemption | None = None,
    ) -> Answer:
        """Run until the last wanted exit, the deadline or the preemption, and return the best result at hand then.

        The best is that of the exit with the highest validation accuracy, the earlier of equals. After every
        unit the clock and `preemption` are looked at. A result that comes at the deadline or later does not
        count: the answer is what a process killed at that moment would have had.

        Args:
            sample: one raw sample of the input's shape, numbers of any type.
            deadline_ms: counted from this call.
            preemption: ends the inference when tripped.

        Raises:
            InvalidInputError: the sample has another shape or is not finite numbers; the deadline is negative.
        """
        start = now = perf_counter()
        limit = inf if deadline_ms is None else start + _checked_deadline(deadline_ms) / 1e3
        stop = _NEVER if preemption is None else preemption
        placed = self._placed
        slots = [self._normalizer.one(sample)] * placed.slots
        results: list[tuple[Exit, float, Floats]] = []
        decisions = None if placed.planner is None else placed.planner.begin(deadline_ms)
        final = placed.chain.final
        ended = False  # all that was wanted was run
        for run, output_names, input_name, source, target, exit_, needed_by in placed.steps:
            if now >= limit or stop.at != inf:
                break
            if decisions is not None and needed_by and not any(decisions.wanted[result] for result in needed_by):
                continue
            value = run(output_names, {input_name: slots[source]}, None)[0]
            now = perf_counter()
            if exit_ is None:
                slots[target] = value
            elif now < limit and now < stop.at:
                results.append((exit_, now, value))
                if decisions is not None and exit_ is not final:
                    decisions.after(needed_by[0], value, (now - start) * 1e3)
                    now = perf_counter()
        else:
            ended = now < limit and stop.at == inf
        ending: Ending = "preempted" if stop.at <= limit and stop.at != inf else "deadline"
        if ended or (results and results[-1][0] is final):
            ending = "completed"
        return best_answer(results, ending, start, planner=placed.planner_name, resident=len(placed.branches))

    def infer_batch(self, samples: Any) -> dict[str | None, Floats]:  # noqa: ANN401
        """Return logits of shape `(n, classes)` by resident branch, and by None those of the final exit.

        Raises:
            InvalidInputError: `samples` has not shape `(n, *input.shape)` or is not finite numbers.
        """
        placed = self._placed
        inputs = self._normalizer.batch(samples)
        parts: dict[str | None, list[Floats]] = {step.exit.branch: [] for step in placed.steps if step.exit}
        for first in range(0, len(inputs), BATCH):
            slots = [inputs[first : first + BATCH]] * placed.slots
            for run, output_names, input_name, source, target, exit_, _ in placed.steps:
                value = run(output_names, {input_name: slots[source]}, None)[0]
                if exit_ is None:
                    slots[target] = value
                else:
                    parts[exit_.branch].append(value)
        none = np.empty((0, placed.chain.shapes[-1][1]), np.float32)
        return {branch: np.concatenate([none, *values]) for branch, values in parts.items()}

    def unit_times(self, sample: Any) -> tuple[NDArray[np.float64], dict[str, float]]:  # noqa: ANN401
        """Run one raw sample to the end; return the ms of every block, and of every resident branch by name.

        Times are from result to result, as an inference has them: with what the engine does between two units, and
        in the first block with what it does to the sample. A branch's time is that of all its units: one that others
        share runs once and counts for each of them.

        Raises:
            InvalidInputError: the sample has another shape or is not finite numbers.
        """
        now = perf_counter()
        placed = self._placed
        slots = [self._normalizer.one(sample)] * placed.slots
        slot_ms = [0.0] * placed.slots  # spent since the chain
        block_ms: list[float] = []
        branch_ms: dict[str, float] = {}
        for run, output_names, input_name, source, target, exit_, _ in placed.steps:
            before = now
            value = run(output_names, {input_name: slots[source]}, None)[0]
            now = perf_counter()
            time_ms = (now - before) * 1e3
            if exit_ is not None and exit_.branch is not None:
                branch_ms[exit_.branch] = slot_ms[source] + time_ms
                continue
            slots[target] = value
            if target == CHAIN:
                block_ms.append(time_ms)
            else:
                slot_ms[target] = slot_ms[source] + time_ms
        return np.asarray(block_ms), branch_ms

    def random_sample(self, seed: int = 0) -> Floats:
        """Return a raw sample whose normalized values are standard normal, for measuring time."""
        shape = self._normalizer.shape
        return self._normalizer.raw(np.random.default_rng(seed).standard_normal(shape, np.float32))

    def _swap(
        self,
        branches: Sequence[Branch],
        read: Callable[[Unit], bytes],
        planner: Planner | None,
        body: Body | None,
        keep: Collection[Unit],
    ) -> None:
        chain, units = self._placed.chain, self._placed.units.copy()
        if body is not None:
            chain = self._body_chain(body, read, units)
        ordered = running_order(branches)
        for branch in ordered:
            _load_branch(branch, chain, read, units)
        for unit in keep:
            units.load([unit], read, name=f"unit {unit.sha256}")
        needed = units.only((*chain.units, *units_of(ordered), *keep))
        self._placed = _placement(chain, ordered, needed, planner)

    def _body_chain(self, body: Body, read: Callable[[Unit], bytes], units: ResidentUnits) -> _Chain:
        # Adds to `units` what they lack.
        names = [f"block {block.name}" for block in body.blocks]
        for name, block in zip(names, body.blocks, strict=True):
            units.load([block.unit], read, name=name)
        chain = self._chain([block.unit for block in body.blocks], names, body.final_accuracy, units)
        expected = self._placed.chain.shapes[-1]
        if chain.shapes[-1] != expected:
            raise InvalidInputError(f"it returns shape {chain.shapes[-1]}, expected is {expected}", where=names[-1])
        return chain

    def _chain(self, blocks: Sequence[Unit], names: Sequence[str], accuracy: float, units: ResidentUnits) -> _Chain:
        if not blocks:
            raise InvalidInputError("a model has at least one block", where="blocks")
        shape: Shape = (1, *self._normalizer.shape)
        shapes = [
            shape := units.output_shape(block, shape, name=name) for block, name in zip(blocks, names, strict=True)
        ]
        if len(shape) != 2:
            raise InvalidInputError(
                f"the last block returns shape {shape}, expected are logits (1, classes)", where=names[-1]
            )
        return _Chain(tuple(blocks), tuple(shapes), Exit(len(blocks) - 1, None, accuracy))


def running_order(branches: Collection[Branch]) -> tuple[Branch, ...]:
    """Return branches in the order an inference runs them."""
    return tuple(sorted(branches, key=lambda branch: (branch.exit_index, branch.accuracy)))


def _load_branch(branch: Branch, chain: _Chain, read: Callable[[Unit], bytes], units: ResidentUnits) -> None:
    # Adds to `units` what they lack.
    name = f"branch {branch.name}"
    if not 0 <= branch.exit_index < chain.final.exit_index:
        raise InvalidInputError(f"there is no exit point {branch.exit_index}", where=name)
    units.load(branch.units, read, name=name)
    shape = chain.shapes[branch.exit_index]
    for unit in branch.units[:-1]:
        shape = units.output_shape(unit, shape, name=name)
    units.output_shape(branch.units[-1], shape, name=name, expected=chain.shapes[-1])


def _placement(chain: _Chain, branches: tuple[Branch, ...], units: ResidentUnits, planner: Planner | None) -> _Placed:
    steps = steps_of(chain.units, chain.final, branches, units)
    return _Placed(
        chain=chain,
        branches=branches,
        units=units,
        steps=steps,
        slots=1 + max(step.target for step in steps),
        planner=planner,
    )


def _checked_deadline(deadline_ms: float) -> float:
    if not deadline_ms >= 0:
        raise InvalidInputError(f"{deadline_ms} ms is no deadline", where="deadline_ms", do="Give 0 or more")
    return deadline_ms
