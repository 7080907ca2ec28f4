"""The elastic engine: block by block, branch by branch, with the best result so far always at hand."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf
from threading import Lock
from time import perf_counter
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from meedge_ray.domain.answer import Answer, Ending, Output
from meedge_ray.domain.elastic import Branch, InputSpec, Unit, units_of
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime.memory import release_to_os
from meedge_ray.runtime.preemption import Preemption
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.runtime.sessions import Floats, UnitSession, checked_output, load_unit

BATCH = 128  # samples evaluated at once: features of more only cost memory

# So few confidences are quicker in plain Python: 4 against 13 microseconds for 10, right after a network ran.
FEW_NUMBERS = 32

_CHAIN: Final = 0  # the slot of the chain's features; behind it come those that branches of the exit share
_NEVER = Preemption()


class Exit(NamedTuple):
    """Where a result comes from; `branch` is None at the final exit."""

    exit_index: int
    branch: str | None
    accuracy: float


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

    def begin(self) -> Decisions:
        """Return the decisions of a new inference."""


class _Step(NamedTuple):
    run: Callable[..., Any]
    output_names: list[str]
    input_name: str
    source: int  # the slot of its input
    target: int  # the slot of its output, unless that is a result
    exit: Exit | None  # None: the output is features, not a result
    results: tuple[int, ...]  # that need it; none where it always runs


@dataclass(frozen=True, slots=True)
class _Placed:
    branches: tuple[Branch, ...]
    sessions: Mapping[str, UnitSession]  # of the branches' units, by SHA-256
    steps: tuple[_Step, ...]
    slots: int
    size_bytes: int
    planner: Planner | None

    @property
    def planner_name(self) -> str:
        return "none" if self.planner is None else self.planner.name


class Engine:
    """Runs the backbone block by block and the resident branches on the way, in ONNX Runtime, a session a unit.

    A unit that branches share is loaded once; where it comes first in branches of one exit, an inference runs it once.
    Every method may be called from any thread. An inference sees one consistent set of branches however often
    it is replaced meanwhile.
    """

    def __init__(
        self, input_spec: InputSpec, blocks: Sequence[bytes], *, final_accuracy: float, threads: int = 1
    ) -> None:
        """Load the backbone, without branches.

        Args:
            input_spec: what raw samples are like.
            blocks: ONNX bytes of the chain, in order; the last block's output are the final exit's logits.
            final_accuracy: validation accuracy of the final exit, 0..1.
            threads: threads one unit may use.

        Raises:
            InvalidInputError: there is no block, or one cannot be used after the one before.
        """
        if not blocks:
            raise InvalidInputError("a model has at least one block", where="blocks")
        self._normalizer = Normalizer(input_spec)
        self._threads = threads
        self._final = Exit(len(blocks) - 1, None, final_accuracy)
        self._placing = Lock()
        self._blocks: list[UnitSession] = []
        self._feature_shapes: list[tuple[int, ...]] = []
        features = np.zeros((1, *input_spec.shape), np.float32)
        for index, data in enumerate(blocks):
            name = f"block {index}"
            block = load_unit(data, name=name, threads=threads)
            features = checked_output(block, features, name=name, shape=None)
            self._blocks.append(block)
            self._feature_shapes.append(features.shape)
        if features.ndim != 2:
            raise InvalidInputError(
                f"the last block returns shape {features.shape}, expected are logits (1, classes)", where=name
            )
        self._logits_shape = features.shape
        self._placed = self._placement((), {})

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
        """Bytes of the units loaded now, blocks and branches; a shared unit counts once."""
        return self._placed.size_bytes

    def place(self, branches: Sequence[Branch], read: Callable[[Unit], bytes], planner: Planner | None = None) -> None:
        """Make exactly these branches the resident ones: keep what is loaded, load the rest, then swap.

        Branches of one exit run in the order of their accuracy. Inferences under way go on with the branches
        they started with. Until the swap old and new branches are in memory together.

        Args:
            branches: the wanted ones, in any order.
            read: returns a unit's verified bytes; asked once for every unit that is not loaded yet.
            planner: of exactly these branches, chooses which of them an inference runs; None runs all.

        Raises:
            InvalidInputError: a branch does not fit its exit point; the resident branches stay as they are.
            MeedgeError: whatever getting a unit's bytes raised; the resident branches stay as they are.
        """
        with self._placing:
            self._swap(branches, read, planner)
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
        decisions = None if placed.planner is None else placed.planner.begin()
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
                if decisions is not None and exit_ is not self._final:
                    decisions.after(needed_by[0], value, (now - start) * 1e3)
                    now = perf_counter()
        else:
            ended = now < limit and stop.at == inf
        ending: Ending = "preempted" if stop.at <= limit and stop.at != inf else "deadline"
        if ended or (results and results[-1][0] is self._final):
            ending = "completed"
        return _answer(results, ending, start, placed)

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
        none = np.empty((0, self._logits_shape[1]), np.float32)
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
            if target == _CHAIN:
                block_ms.append(time_ms)
            else:
                slot_ms[target] = slot_ms[source] + time_ms
        return np.asarray(block_ms), branch_ms

    def random_sample(self, seed: int = 0) -> Floats:
        """Return a raw sample whose normalized values are standard normal, for measuring time."""
        shape = self._normalizer.shape
        return self._normalizer.raw(np.random.default_rng(seed).standard_normal(shape, np.float32))

    def _swap(self, branches: Sequence[Branch], read: Callable[[Unit], bytes], planner: Planner | None) -> None:
        resident, sessions = set(self._placed.branches), dict(self._placed.sessions)
        ordered = running_order(branches)
        for branch in ordered:
            if branch not in resident:
                self._load(branch, read, sessions)
        kept = {unit.sha256: sessions[unit.sha256] for unit in units_of(ordered)}
        self._placed = self._placement(ordered, kept, planner)

    def _load(self, branch: Branch, read: Callable[[Unit], bytes], sessions: dict[str, UnitSession]) -> None:
        # Adds to `sessions` what they lack, and runs the whole branch once.
        name = f"branch {branch.name}"
        if not 0 <= branch.exit_index < len(self._blocks) - 1:
            raise InvalidInputError(f"there is no exit point {branch.exit_index}", where=name)
        features = np.zeros(self._feature_shapes[branch.exit_index], np.float32)
        last = len(branch.units) - 1
        for index, unit in enumerate(branch.units):
            if unit.sha256 not in sessions:
                sessions[unit.sha256] = load_unit(read(unit), name=name, threads=self._threads)
            shape = self._logits_shape if index == last else None
            features = checked_output(sessions[unit.sha256], features, name=name, shape=shape)

    def _placement(
        self, branches: tuple[Branch, ...], sessions: Mapping[str, UnitSession], planner: Planner | None = None
    ) -> _Placed:
        number = {branch.name: index for index, branch in enumerate(branches)}
        steps: list[_Step] = []
        for index, block in enumerate(self._blocks):
            if index == self._final.exit_index:
                steps.append(_step(block, _CHAIN, _CHAIN, self._final, (len(branches),)))
            else:
                steps.append(_step(block, _CHAIN, _CHAIN, None))
            here = [branch for branch in branches if branch.exit_index == index]
            steps += _branch_steps(here, sessions, number)
        return _Placed(
            branches=branches,
            sessions=sessions,
            steps=tuple(steps),
            slots=1 + max(step.target for step in steps),
            size_bytes=sum(session.size_bytes for session in (*self._blocks, *sessions.values())),
            planner=planner,
        )


def running_order(branches: Collection[Branch]) -> tuple[Branch, ...]:
    """Return branches in the order an inference runs them."""
    return tuple(sorted(branches, key=lambda branch: (branch.exit_index, branch.accuracy)))


def _branch_steps(
    branches: Sequence[Branch], sessions: Mapping[str, UnitSession], number: Mapping[str, int]
) -> Iterator[_Step]:
    # Of one exit, in order. A slot holds what a run of first units makes of the chain's features.
    slots: dict[tuple[Unit, ...], int] = {(): _CHAIN}
    for branch in branches:
        for end, unit in enumerate(branch.units, start=1):
            source, done = slots[branch.units[: end - 1]], branch.units[:end]
            if end == len(branch.units):
                exit_ = Exit(branch.exit_index, branch.name, branch.accuracy)
                yield _step(sessions[unit.sha256], source, source, exit_, (number[branch.name],))
            elif done not in slots:
                slots[done] = len(slots)
                users = tuple(number[other.name] for other in branches if other.units[:end] == done)
                yield _step(sessions[unit.sha256], source, slots[done], None, users)


def _step(unit: UnitSession, source: int, target: int, exit_: Exit | None, needed_by: tuple[int, ...] = ()) -> _Step:
    return _Step(unit.run, unit.output_names, unit.input_name, source, target, exit_, needed_by)


def _checked_deadline(deadline_ms: float) -> float:
    if not deadline_ms >= 0:
        raise InvalidInputError(f"{deadline_ms} ms is no deadline", where="deadline_ms", do="Give 0 or more")
    return deadline_ms


def _answer(results: Sequence[tuple[Exit, float, Floats]], ending: Ending, start: float, placed: _Placed) -> Answer:
    if not results:
        return Answer(
            label=None,
            confidences=(),
            exit_index=None,
            branch=None,
            ending=ending,
            elapsed_ms=(perf_counter() - start) * 1e3,
            outputs=(),
            planner=placed.planner_name,
            resident=len(placed.branches),
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
        planner=placed.planner_name,
        resident=len(placed.branches),
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
