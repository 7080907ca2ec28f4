"""Exit plans against brute force: every plan of few exits, valued by the definition."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search import native
from meedge_ray.search.exit_plan import (
    ExitPlan,
    expectation,
    hybrid_search,
    plan_exits,
    random_search,
    static_plan,
)
from meedge_ray.search.inputs import Floats
from meedge_ray.search.laws import histogram_law, normal_law

Law = Callable[[float], float]
compiled_or_not = pytest.mark.parametrize("compiled", [False, True])


def reference(
    execute: Any,
    conv_ms: Any,
    branch_ms: Any,
    confidence: Any,
    chance: Law,
    start: int = 0,
    elapsed_ms: float = 0.0,
    best_confidence: float = 0.0,
    replan_ms: float = 0.0,
) -> float:
    now, best = elapsed_ms, best_confidence
    value = best * chance(now)
    for index in range(start, len(conv_ms)):
        now += conv_ms[index]
        if execute[index]:
            now += branch_ms[index] + replan_ms
            if confidence[index] > best:
                value += (confidence[index] - best) * chance(now)
                best = confidence[index]
    return value


def uniform(horizon_ms: float) -> Law:
    return lambda time_ms: max(0.0, 1.0 - time_ms / horizon_ms)


def plans(count: int, start: int) -> list[tuple[bool, ...]]:
    return [(False,) * start + bits for bits in product((False, True), repeat=count - start)]


@st.composite
def situations(draw: st.DrawFn, most: int = 8) -> dict[str, Any]:
    count = draw(st.integers(1, most))
    # Few levels make ties and zeros; many make none.
    levels = draw(st.sampled_from([2, 5, 10_000]))
    number = st.integers(0, levels).map(lambda value: value / levels)
    arrays = [np.array(draw(st.lists(number, min_size=count, max_size=count))) for _ in range(3)]
    if draw(st.booleans()):
        arrays[2].sort()
    conv_ms, branch_ms, confidence = arrays
    situation: dict[str, Any] = {"conv_ms": conv_ms, "branch_ms": branch_ms, "confidence": confidence}
    if draw(st.booleans()):
        situation |= {
            "start": draw(st.integers(0, count)),
            "elapsed_ms": draw(number),
            "best_confidence": draw(number),
            "replan_ms": draw(number) / 4,
        }
    total = float(conv_ms.sum() + branch_ms.sum())
    share = draw(st.sampled_from([None, 0.3, 0.9, 1.3]))  # of what all would take: some plans overrun it
    situation["horizon_ms"] = None if share is None or total == 0 else share * total
    return situation


def solved(situation: dict[str, Any], chance: Law, **law: Any) -> tuple[ExitPlan, float]:
    plan = plan_exits(**situation, **law)
    known = {key: value for key, value in situation.items() if key != "horizon_ms"}
    every = plans(len(situation["conv_ms"]), situation.get("start", 0))
    best = max(reference(execute, chance=chance, **known) for execute in every)
    assert plan.expectation == pytest.approx(reference(plan.execute, chance=chance, **known), abs=1e-12)
    assert plan.expectation == pytest.approx(expectation(plan.execute, **situation, **law), abs=1e-12)
    assert not plan.execute[: situation.get("start", 0)].any()
    return plan, best


@compiled_or_not
@settings(max_examples=200)
@given(situation=situations())
def test_the_uniform_plan_is_the_best_of_all(compiled: bool, situation: dict[str, Any]) -> None:
    horizon_ms = situation["horizon_ms"] or float(situation["conv_ms"].sum() + situation["branch_ms"].sum())
    chance = uniform(horizon_ms) if horizon_ms > 0 else lambda _time_ms: 1.0
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(native, "kernels", None)
        plan, best = solved(situation, chance)
    assert plan.expectation == pytest.approx(best, abs=1e-11)


@settings(max_examples=150)
@given(situation=situations(most=7), kind=st.sampled_from(["one number", "normal", "histogram", "step"]))
def test_the_plan_of_any_law_is_the_best_of_all(situation: dict[str, Any], kind: str) -> None:
    situation = situation | {"horizon_ms": situation["horizon_ms"] or 2.0}
    horizon_ms = situation["horizon_ms"]
    laws: dict[str, Any] = {
        "one number": lambda time_ms: max(0.0, 1.0 - float(time_ms) / horizon_ms),
        "normal": normal_law(horizon_ms / 2, horizon_ms / 5, horizon_ms=horizon_ms),
        "histogram": histogram_law([0, horizon_ms / 3, horizon_ms], [1, 3], horizon_ms=horizon_ms),
        "step": lambda times: np.where(times < horizon_ms / 2, 1.0, 0.25),
    }
    law = laws[kind]
    plan, best = solved(situation, lambda time_ms: float(law(np.float64(time_ms))), survival=law)
    assert plan.expectation == pytest.approx(best, abs=1e-11)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 14))
def test_up_to_fourteen_exits_enumeration_finds_nothing_better(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    arrays = random.random((3, count))
    arrays[1] *= random.random()
    assert plan_exits(*arrays).expectation == pytest.approx(hybrid_search(*arrays, m=count).expectation, abs=1e-12)


@settings(max_examples=150)
@given(situation=situations(most=30), outputs=st.integers(0, 3))
def test_the_compiled_planners_and_their_twins_agree_to_the_bit(situation: dict[str, Any], outputs: int) -> None:
    def all_of_them() -> list[Any]:
        plan, hybrid = plan_exits(**situation), hybrid_search(**situation, m=outputs)
        return [plan.expectation, plan.execute.tolist(), hybrid.expectation, hybrid.execute.tolist()]

    compiled = all_of_them()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "kernels", None)
        assert all_of_them() == compiled


def wavy(times_ms: Floats, horizon_ms: float) -> Floats:
    """A law as steep in places as it is flat in others, so that many plans stay possible."""
    share = np.clip(times_ms / horizon_ms, 0, 1)
    wave: Floats = 1 - share + np.sin(12 * np.pi * share) / 40
    return wave


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 25))
def test_the_compiled_planner_of_any_law_and_its_twin_agree_to_the_bit(seed: int, count: int) -> None:
    conv_ms, branch_ms, confidence = np.random.default_rng(seed).random((3, count))
    horizon_ms = float(conv_ms.sum() + branch_ms.sum())
    confidence.sort()

    def planned() -> tuple[float, list[bool]]:
        plan = plan_exits(conv_ms, branch_ms, confidence, survival=partial(wavy, horizon_ms=horizon_ms))
        return plan.expectation, plan.execute.tolist()

    compiled = planned()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "kernels", None)
        assert planned() == compiled


@settings(max_examples=100)
@given(situation=situations(most=40), seed=st.integers(0, 99))
def test_no_other_search_finds_a_better_plan(situation: dict[str, Any], seed: int) -> None:
    best = plan_exits(**situation).expectation + 1e-12
    assert hybrid_search(**situation, m=1).expectation <= best
    assert random_search(**situation, plans=200, seed=seed).expectation <= best
    for share in (0.25, 0.5, 1.0):
        assert expectation(static_plan(len(situation["conv_ms"]), share), **situation) <= best


def test_the_law_of_the_uniform_plan_given_as_a_function_gives_the_same() -> None:
    random = np.random.default_rng(5)
    conv_ms, branch_ms, confidence = random.random((3, 40))
    horizon_ms = float(conv_ms.sum() + branch_ms.sum())
    plain = plan_exits(conv_ms, branch_ms, confidence)
    by_law = plan_exits(conv_ms, branch_ms, confidence, survival=lambda times: np.maximum(0, 1 - times / horizon_ms))
    assert by_law.expectation == pytest.approx(plain.expectation, abs=1e-12)
    assert (by_law.execute == plain.execute).all()


def test_an_example_by_hand() -> None:
    # Running the first: .5 from 2 on, .9 from 4 on: (.5 x 2 + .9 x 0) / 4. Skipping it: .9 from 3 on: .9 / 4.
    plan = plan_exits([1.0, 1.0], [1.0, 1.0], [0.5, 0.9])
    assert plan.expectation == pytest.approx(0.25)
    assert plan.execute.tolist() == [True, False]
    # With a longer horizon both are worth it: .5 from 2 to 4, .9 from 4 to 8.
    longer = plan_exits([1.0, 1.0], [1.0, 1.0], [0.5, 0.9], horizon_ms=8)
    assert longer.expectation == pytest.approx((0.5 * 2 + 0.9 * 4) / 8)
    assert longer.execute.tolist() == [True, True]


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_static_plan_runs_its_share_and_ends_with_the_last(share: float) -> None:
    for count in range(1, 30):
        assert static_plan(count, share)[-1]
        assert static_plan(count, share).sum() == np.ceil(count * share)
    plan = static_plan(20, share)
    assert plan.sum() == 20 * share
    assert plan[-1]
    assert np.diff(np.flatnonzero(plan)).tolist() == [round(1 / share)] * (int(20 * share) - 1)


GOOD: dict[str, Any] = {"conv_ms": [1.0, 2.0], "branch_ms": [0.5, 0.5], "confidence": [0.4, 0.8]}


@compiled_or_not
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("branch_ms", [0.5]),
        ("confidence", [0.4, 0.8, 0.9]),
        ("confidence", [0.4, 1.2]),
        ("confidence", [0.4, -0.1]),
        ("confidence", [0.4, float("nan")]),
        ("confidence", [[0.4, 0.8]]),
        ("conv_ms", [1.0, -2.0]),
        ("conv_ms", [1.0, float("inf")]),
        ("branch_ms", [float("nan"), 0.5]),
        ("branch_ms", ["a", "b"]),
        ("horizon_ms", 0),
        ("horizon_ms", -1.0),
        ("horizon_ms", float("nan")),
        ("start", 3),
        ("start", -1),
        ("start", 0.5),
        ("elapsed_ms", -1.0),
        ("best_confidence", 1.5),
        ("replan_ms", float("inf")),
        ("survival", lambda times: np.asarray(times) / 4),
        ("survival", lambda times: 2 - np.asarray(times)),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    compiled: bool, argument: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "kernels", None)
    as_arrays = {key: np.array(numbers) for key, numbers in GOOD.items()}
    for given_ in (GOOD, as_arrays):
        arguments = given_ | {argument: value}
        for call in (plan_exits, hybrid_search, lambda **rest: expectation([True, True], **rest)):
            with pytest.raises(InvalidInputError) as refusal:
                call(**arguments)
            assert refusal.value.where == argument


@compiled_or_not
def test_a_law_that_fails_in_the_middle_is_said_and_nothing_breaks(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "kernels", None)

    def short(times: Any) -> Any:
        return np.ones(1) if 1 < np.size(times) < 100 else np.ones_like(times)

    def broken(times: Any) -> Any:
        if np.size(times) < 100:
            raise ZeroDivisionError
        return np.ones_like(times)

    with pytest.raises(InvalidInputError, match=r"of times \(3,\) it gives chances \(1,\)"):
        plan_exits(**GOOD, survival=short)
    with pytest.raises(ZeroDivisionError):
        plan_exits(**GOOD, survival=broken)


def test_a_plan_or_a_number_of_outputs_that_cannot_be_used_is_refused_by_name() -> None:
    for execute in ([True], [0.5, 1.0], ["a", "b"]):
        with pytest.raises(InvalidInputError) as refusal:
            expectation(execute, **GOOD)
        assert refusal.value.where == "execute"
    with pytest.raises(InvalidInputError) as refusal:
        hybrid_search(**GOOD, m=-1)
    assert refusal.value.where == "m"


def test_lists_and_other_number_types_are_taken() -> None:
    expected = plan_exits(**{key: np.array(value) for key, value in GOOD.items()})
    for kind in (list, tuple, np.float32):
        given_ = {key: np.float32(value) if kind is np.float32 else kind(value) for key, value in GOOD.items()}
        assert plan_exits(**given_).expectation == pytest.approx(expected.expectation, abs=1e-6)


def test_no_exit_is_a_plan_that_runs_none() -> None:
    plan = plan_exits([], [], [], best_confidence=0.5, horizon_ms=4, elapsed_ms=1)
    assert plan.execute.shape == (0,)
    assert plan.expectation == pytest.approx(0.5 * 3 / 4)
