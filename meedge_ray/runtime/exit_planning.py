"""Chooses, result by result, which resident branches an inference runs (EINet V)."""

from collections.abc import Collection, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Literal, Self

import numpy as np

from meedge_ray.domain.elastic import FINAL, Branch, Bundle, Calibration, Profile
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime.engine import Planner, running_order
from meedge_ray.runtime.sessions import Floats
from meedge_ray.search.decisions import Decider, Decisions, Results, Search, confidence_of
from meedge_ray.search.exit_plan import plan_exits
from meedge_ray.search.inputs import Law
from meedge_ray.search.predictor import ConfidencePredictor

Planning = Literal["auto", "static", "samplewise"]

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
    def wanted(self) -> Sequence[int]:
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
    results = results_of(bundle, profile, branches)
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
            predictor is there, for the uniform law: for others a decision takes up to eighty times as long.
        bundle: the model.
        profile: the device type's times.
        branches: all resident ones, in any order.
        predictor: of this model; needed to plan sample by sample.
        horizon_ms: the span in which the kill may come.
        law: of the kill's time; None is the uniform one.

    Raises:
        InvalidInputError: sample by sample is asked, and there is no predictor.
    """
    pays = law is None and predictor is not None and bundle.predictor is not None and bundle.predictor.pays
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
    """Predicts how likely the results ahead are right from those that came, and plans anew after each (EINet V).

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
        results = results_of(bundle, profile, branches)
        decider = partial(Decider, results, predictor, horizon_ms=horizon_ms, law=law, search=search)
        self.replan_ms = _decision_ms(decider(), len(bundle.classes))
        # No decision follows the final exit: what a plan adds there is taken off before.
        results.conv_ms[-1] -= min(self.replan_ms, results.conv_ms[-1])
        self._decider = decider(replan_ms=self.replan_ms)
        first = search(results.conv_ms, results.branch_ms, results.accuracy, **self._decider.settings)
        self._first = first.execute.tolist()

    def begin(self) -> Decisions:
        """Return the decisions of a new inference."""
        return self._decider.begin(self._first)


def results_of(bundle: Bundle, profile: Profile, branches: Collection[Branch]) -> Results:
    """Return the results that can come with these resident branches."""
    ordered = running_order(branches)
    slot = np.array([*(branch.exit_index for branch in ordered), len(bundle.blocks) - 1])
    known = {} if bundle.predictor is None else bundle.predictor.calibrations
    calibrations = [known.get(name, Calibration()) for name in (*(branch.name for branch in ordered), FINAL)]
    return Results(
        slot=slot,
        conv_ms=np.diff(np.cumsum(profile.block_ms)[slot], prepend=0.0),
        branch_ms=np.array([*(profile.branch_ms[branch.name] for branch in ordered), 0.0]),
        slope=np.array([each.slope for each in calibrations]),
        bias=np.array([each.bias for each in calibrations]),
        offset=np.array([each.offset for each in calibrations]),
        accuracy=np.array([*(branch.accuracy for branch in ordered), bundle.final_accuracy]),
    )


class _UntilConfident:
    """One inference's decisions."""

    def __init__(self, threshold: float, wanted: Sequence[bool]) -> None:
        self.wanted, self._threshold = wanted, threshold

    def after(self, result: int, logits: Floats, elapsed_ms: float) -> None:  # noqa: ARG002 - of Decisions
        """Stop where this result is sure enough."""
        if confidence_of(logits) >= self._threshold:
            self.wanted = (False,) * len(self.wanted)


def _decision_ms(decider: Decider, classes: int) -> float:
    logits = np.zeros((1, classes), np.float32)
    at_ms = float(decider.results.conv_ms[0] + decider.results.branch_ms[0])
    times = []
    for _ in range(_TIMED):
        decisions = decider.begin(bytes(len(decider.results.slot)))
        start = perf_counter()
        decisions.after(0, logits, at_ms)
        times.append((perf_counter() - start) * 1e3)
    return median(times)
