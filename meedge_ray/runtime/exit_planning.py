"""Chooses, result by result, which resident branches an inference runs (EINet V)."""

from collections.abc import Collection, Sequence
from functools import lru_cache, partial
from math import erf, sqrt
from statistics import median
from time import perf_counter
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from meedge_ray.domain.answer import Answer
from meedge_ray.domain.elastic import FINAL, Branch, Bundle, Calibration, Profile
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime import engine
from meedge_ray.runtime.engine import Planner, running_order
from meedge_ray.runtime.latency import LatencyMonitor
from meedge_ray.runtime.sessions import Floats
from meedge_ray.search.decisions import Decider, Decisions, Results, Search, confidence_of
from meedge_ray.search.exit_plan import plan_exits
from meedge_ray.search.inputs import Law
from meedge_ray.search.predictor import ConfidencePredictor

_erf = np.frompyfunc(erf, 1, 1)

Planning = Literal["auto", "static", "samplewise"]

_TIMED = 200  # decisions, to know what one costs

# Of a deadline's plan: by what share inferences vary around the profile, and how many plans are kept.
_SPREAD = 0.3
_KEPT_PLANS = 128
_INSTANT_MS = 1e-9
_BACK_OFF = 2.0


class StaticPlanner:
    """Runs the branches of one plan on every sample."""

    name = "static"

    def __init__(self, plan: Sequence[bool]) -> None:
        """Take for every resident branch in the order they run, and for the final exit, whether it is run."""
        self.plan = tuple(plan)

    def begin(self, deadline_ms: float | None = None) -> Self:  # noqa: ARG002 - of Planner
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


class FiniteTimePlanner:
    """Plans for the deadline of each inference, where it has one (MEEdge 3.4: finite-time inference).

    A deadline is a kill at a known time: what counts is the best result at hand then, and earlier ones are run only as
    far as it may come late. An inference takes X times as long as profiled, X normal around what the last ones took: a
    result of time t counts with the chance of X t <= deadline.
    """

    name = "finiteTime"

    def __init__(
        self,
        bundle: Bundle,
        profile: Profile,
        branches: Collection[Branch],
        *,
        otherwise: Planner | None,
        monitor: LatencyMonitor,
    ) -> None:
        """Plan for resident branches.

        Args:
            bundle: the model.
            profile: the device type's times.
            branches: all resident ones, in any order.
            otherwise: plans inferences without a deadline; None runs all branches.
            monitor: of what inferences take against the profile.
        """
        self._results = results_of(bundle, profile, branches)
        self._otherwise = StaticPlanner([True] * len(self._results.slot)) if otherwise is None else otherwise
        self._monitor = monitor
        self._plan = lru_cache(maxsize=_KEPT_PLANS)(self._planned)

    def begin(self, deadline_ms: float | None = None) -> engine.Decisions:
        """Return the decisions of a new inference."""
        if deadline_ms is None:
            return self._otherwise.begin()
        return self._plan(float(f"{self._monitor.within_ms(deadline_ms):.2g}"))

    def _planned(self, deadline_ms: float) -> StaticPlanner:
        results = self._results
        if not deadline_ms > 0:
            return StaticPlanner([True] * len(results.slot))
        plan = plan_exits(results.conv_ms, results.branch_ms, results.accuracy, survival=partial(_in_time, deadline_ms))
        # Where nothing would come in time, what comes first is still the best there is.
        return StaticPlanner(plan.execute.tolist() if plan.execute.any() else [True] * len(results.slot))


def learn_pace(monitor: LatencyMonitor, profile: Profile, answer: Answer, deadline_ms: float | None) -> None:
    """Tell a monitor how long an inference took against the profile.

    Of one that ended without any result it is only known that it was too slow for its plan. It counts as twice as slow
    as was thought: else plans that are too long, which never bring anything, would never be given up.
    """
    if answer.outputs:
        last = answer.outputs[-1]
        run = [output.branch for output in answer.outputs if output.branch is not None]
        monitor.observe(last.at_ms, profile.result_ms(last.exit_index, run))
    elif answer.ending == "deadline" and deadline_ms is not None:
        planned_ms = monitor.within_ms(deadline_ms)
        if planned_ms > profile.block_ms[0]:  # less would be too little for any plan
            monitor.observe(_BACK_OFF * answer.elapsed_ms, planned_ms)


def _in_time(deadline_ms: float, times_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    # The chance that what takes so long by the profile comes by the deadline.
    scaled = (deadline_ms / np.maximum(times_ms, _INSTANT_MS) - 1.0) / (_SPREAD * sqrt(2))
    return np.asarray(1.0 + _erf(scaled), np.float64) / 2


class ThresholdPlanner:
    """Runs all branches in turn until one is as confident as asked for, and then nothing more."""

    name = "threshold"

    def __init__(self, threshold: float, results: int) -> None:
        """Take the confidence, 0..1, and the number of results that can come, the final one among them."""
        self._threshold, self._all = threshold, (True,) * results

    def begin(self, deadline_ms: float | None = None) -> "_UntilConfident":  # noqa: ARG002 - of Planner
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

    def begin(self, deadline_ms: float | None = None) -> Decisions:  # noqa: ARG002 - of Planner
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
