"""Chooses, result by result, which resident branches an inference runs (EINet V)."""

from collections.abc import Callable, Collection, Sequence
from math import exp
from statistics import median
from time import perf_counter
from typing import Any, Literal, Self

import numpy as np

from meedge_ray.domain.elastic import Branch, Bundle, Profile
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime.engine import Planner, running_order
from meedge_ray.runtime.sessions import Floats
from meedge_ray.search.exit_plan import ExitPlan, plan_exits
from meedge_ray.search.inputs import Law
from meedge_ray.search.predictor import ConfidencePredictor

Planning = Literal["auto", "static", "samplewise"]
Search = Callable[..., ExitPlan]

_TIMED = 200  # decisions, to know what one costs


class StaticPlanner:
    """Runs the branches of one plan on every sample."""

    name = "static"

    def __init__(self, plan: Sequence[bool]) -> None:
        """Take for every resident branch in the order they run, and for the final exit, whether it is run."""
        self.plan = tuple(plan)

    def begin(self) -> Self:
        """Return the plan, which is all decisions."""
        return self

    @property
    def wanted(self) -> Sequence[bool]:
        """The plan."""
        return self.plan

    def after(self, result: int, logits: Floats, elapsed_ms: float) -> None:
        """Keep to the plan."""


def best_static(
    bundle: Bundle,
    profile: Profile,
    branches: Collection[Branch],
    *,
    horizon_ms: float,
    law: Law | None = None,
) -> StaticPlanner:
    """Return the plan that is best for the accuracies as they are on average (EINet VI-B).

    Args:
        bundle: the model.
        profile: the device type's times.
        branches: all resident ones, in any order.
        horizon_ms: the span in which the kill may come.
        law: of the kill's time; None is the uniform one.
    """
    results = Results(bundle, profile, branches)
    plan = plan_exits(results.conv_ms, results.branch_ms, results.accuracy, horizon_ms=horizon_ms, survival=law)
    return StaticPlanner(plan.execute.tolist())


def planner_for(
    planning: Planning,
    bundle: Bundle,
    profile: Profile,
    branches: Collection[Branch],
    predictor: ConfidencePredictor | None,
    *,
    horizon_ms: float,
    law: Law | None = None,
) -> Planner | None:
    """Return what plans the inferences of an engine with these branches resident; None where all of them are to run.

    Args:
        planning: "static", "samplewise", or "auto": sample by sample where the build found that it pays and the
            predictor is there.
        bundle: the model.
        profile: the device type's times.
        branches: all resident ones, in any order.
        predictor: of this model; needed to plan sample by sample.
        horizon_ms: the span in which the kill may come.
        law: of the kill's time; None is the uniform one.

    Raises:
        InvalidInputError: sample by sample is asked, and there is no predictor.
    """
    pays = predictor is not None and bundle.predictor is not None and bundle.predictor.pays
    if planning == "samplewise" or (planning == "auto" and pays):
        if predictor is None:
            raise InvalidInputError(
                "the bundle has no predictor", where="planning", do="Plan statically, or build the bundle again"
            )
        return SamplewisePlanner(bundle, profile, branches, predictor, horizon_ms=horizon_ms, law=law)
    static = best_static(bundle, profile, branches, horizon_ms=horizon_ms, law=law)
    return None if all(static.plan) else static


class ThresholdPlanner:
    """Runs all branches in turn until one is as confident as asked for, and then nothing more."""

    name = "threshold"

    def __init__(self, threshold: float, results: int) -> None:
        """Take the confidence, 0..1, and the number of results that can come, the final one among them."""
        self._threshold, self._all = threshold, (True,) * results

    def begin(self) -> "_UntilConfident":
        """Return the decisions of a new inference."""
        return _UntilConfident(self._threshold, self._all)


class SamplewisePlanner:
    """Predicts the confidences of the results ahead from those that came, and plans anew after each (EINet V).

    What a decision costs is measured when the planner is made, and counted in every plan.
    """

    name = "samplewise"

    def __init__(
        self,
        bundle: Bundle,
        profile: Profile,
        branches: Collection[Branch],
        predictor: ConfidencePredictor,
        *,
        horizon_ms: float,
        law: Law | None = None,
        search: Search = plan_exits,
    ) -> None:
        """Plan for resident branches.

        Args:
            bundle: the model.
            profile: the device type's times.
            branches: all resident ones, in any order.
            predictor: of this model.
            horizon_ms: the span in which the kill may come.
            law: of the kill's time; None is the uniform one.
            search: what plans; arguments as of `plan_exits`.
        """
        self._results = Results(bundle, profile, branches)
        self._predictor = predictor
        self._search = search
        self._settings: dict[str, Any] = {"horizon_ms": horizon_ms, "survival": law, "replan_ms": 0.0}
        self._first = [True] * len(self._results.slot)
        self.replan_ms = self._decision_ms()
        self._settings["replan_ms"] = self.replan_ms
        results = self._results
        # No decision follows the final exit: what a plan adds there is taken off before.
        results.conv_ms[-1] -= min(self.replan_ms, results.conv_ms[-1])
        first = search(results.conv_ms, results.branch_ms, results.accuracy, **self._settings)
        self._first = first.execute.tolist()

    def begin(self) -> "Samplewise":
        """Return the decisions of a new inference."""
        return Samplewise(self._results, self._predictor, self._search, self._settings, self._first)

    def _decision_ms(self) -> float:
        logits = np.zeros((1, self._results.classes), np.float32)
        times = []
        for _ in range(_TIMED):
            decisions = self.begin()
            start = perf_counter()
            decisions.after(0, logits, float(self._results.conv_ms[0] + self._results.branch_ms[0]))
            times.append((perf_counter() - start) * 1e3)
        return median(times)


class Results:
    """The results that can come, in order, the final one last: K + 1; arrays of that shape.

    `slot` is the exit point of each, `offset` by how much surer it is than the exit point's branches
    are on average.
    """

    def __init__(self, bundle: Bundle, profile: Profile, branches: Collection[Branch]) -> None:
        ordered = running_order(branches)
        final = len(bundle.blocks) - 1
        self.classes = len(bundle.classes)
        self.slot = np.array([*(branch.exit_index for branch in ordered), final])
        reach_ms = np.cumsum(profile.block_ms)[self.slot]
        self.conv_ms = np.diff(reach_ms, prepend=0.0)
        self.branch_ms = np.array([*(profile.branch_ms[branch.name] for branch in ordered), 0.0])
        self.accuracy = np.array([*(branch.accuracy for branch in ordered), bundle.final_accuracy])
        offsets = {} if bundle.predictor is None else bundle.predictor.offsets
        self.offset = np.array([*(offsets.get(branch.name, 0.0) for branch in ordered), 0.0])


class _UntilConfident:
    """One inference's decisions."""

    def __init__(self, threshold: float, wanted: Sequence[bool]) -> None:
        self.wanted, self._threshold = wanted, threshold

    def after(self, result: int, logits: Floats, elapsed_ms: float) -> None:  # noqa: ARG002 - of Decisions
        """Stop where this result is sure enough."""
        if _confidence(logits) >= self._threshold:
            self.wanted = (False,) * len(self.wanted)


class Samplewise:
    """One inference's decisions: what was seen so far, and the plan for it."""

    def __init__(
        self,
        results: Results,
        predictor: ConfidencePredictor,
        search: Search,
        settings: dict[str, Any],
        first: Sequence[bool],
    ) -> None:
        self.wanted = first
        self._results, self._predictor, self._search, self._settings = results, predictor, search, settings
        self._seen = np.zeros(results.slot[-1] + 1, np.float32)
        self._known, self._last, self._best = 0, 0.0, 0.0

    def after(self, result: int, logits: Floats, elapsed_ms: float) -> None:
        """Predict the confidences ahead, and plan anew."""
        self.saw(result, _confidence(logits), elapsed_ms)

    def saw(self, result: int, confidence: float, elapsed_ms: float) -> None:
        """Plan anew after a result of this confidence."""
        results = self._results
        slot = int(results.slot[result])
        # Slots passed over have the confidence before them (EINet IV-C).
        self._seen[self._known : slot] = self._last
        self._seen[slot] = self._last = confidence - results.offset[result]
        self._known, self._best = slot + 1, max(self._best, confidence)
        predicted = self._predictor.predict(self._seen, self._known)
        plan = self._search(
            results.conv_ms,
            results.branch_ms,
            np.clip(predicted[results.slot] + results.offset, 0.0, 1.0),
            start=result + 1,
            elapsed_ms=elapsed_ms,
            best_confidence=self._best,
            **self._settings,
        )
        self.wanted = plan.execute.tolist()


def _confidence(logits: Floats) -> float:
    row = logits[0].tolist()
    top = max(row)
    return 1.0 / sum([exp(value - top) for value in row])
