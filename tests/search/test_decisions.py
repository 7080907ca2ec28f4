"""Decisions of sample-wise planning: the compiled step against predicting and planning one after the other."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from meedge_ray.search import native
from meedge_ray.search.decisions import Decider, Decisions, Results, confidence_of
from meedge_ray.search.exit_plan import hybrid_search, plan_exits
from meedge_ray.search.laws import normal_law
from meedge_ray.search.predictor import ConfidencePredictor

kernels = pytest.mark.skipif(native.kernels is None, reason="no compiled kernels here")


def world(seed: int, slots: int) -> tuple[Results, ConfidencePredictor, np.random.Generator]:
    random = np.random.default_rng(seed)
    hidden = (int(random.integers(1, 40)), int(random.integers(1, 20)))
    widths = (slots, *hidden, slots)
    tensors = {}
    for layer in range(3):
        shape = (widths[layer], widths[layer + 1])
        tensors[f"weight{layer}"] = (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        tensors[f"bias{layer}"] = random.random(shape[1]).astype(np.float32)
    # Some slots have no branch, some have two.
    slot = np.sort(np.append(random.integers(0, slots - 1, random.integers(1, slots)), slots - 1))
    conv_ms = random.random(len(slot)) * (np.diff(slot, prepend=-1) > 0)
    branch_ms, slope, bias, offset, accuracy = random.random((5, len(slot)))
    results = Results(slot, conv_ms, branch_ms, slope + 0.5, bias - 0.5, (offset - 0.5) / 2, accuracy)
    return results, ConfidencePredictor.from_tensors(tensors), random


def followed(decisions: Decisions, results: Results, logits: Any) -> list[list[int]]:
    """Return what was wanted after every result that was run."""
    now_ms, wanted = 0.0, []
    for result in range(len(results.slot)):
        now_ms += float(results.conv_ms[result])
        if decisions.wanted[result]:
            now_ms += float(results.branch_ms[result])
            decisions.after(result, logits[result], now_ms)
            wanted.append(list(decisions.wanted))
    return wanted


@kernels
@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    slots=st.integers(2, 45),
    share=st.sampled_from([0.4, 1.0, 2.0]),
    normal=st.booleans(),
)
def test_the_compiled_step_predicts_and_plans_as_its_parts_do(
    seed: int, slots: int, share: float, normal: bool
) -> None:
    results, predictor, random = world(seed, slots)
    logits = (3 * random.standard_normal((len(results.slot), 1, 10))).astype(np.float32)
    horizon_ms = share * float(results.conv_ms.sum() + results.branch_ms.sum())
    first = random.integers(0, 2, len(results.slot)).tolist()

    def decided(**other: Any) -> list[list[int]]:
        law = normal_law(horizon_ms / 2, horizon_ms / 3, horizon_ms=horizon_ms) if normal else None
        decider = Decider(results, predictor, horizon_ms=horizon_ms, law=law, replan_ms=0.01, **other)
        assert (decider.compiled is None) == bool(other)
        return followed(decider.begin(first), results, logits)

    assert decided() == decided(search=lambda *arrays, **rest: plan_exits(*arrays, **rest))


def test_without_kernels_the_same_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    results, predictor, random = world(3, 12)
    logits = random.standard_normal((len(results.slot), 1, 10)).astype(np.float32)
    every = [1] * len(results.slot)
    compiled = followed(Decider(results, predictor, horizon_ms=9.0).begin(every), results, logits)
    monkeypatch.setattr(native, "kernels", None)
    assert followed(Decider(results, predictor, horizon_ms=9.0).begin(every), results, logits) == compiled


def test_another_search_plans_where_it_is_asked_for() -> None:
    results, predictor, _ = world(4, 8)
    asked = []

    def search(*arrays: Any, **rest: Any) -> Any:
        asked.append(rest)
        return hybrid_search(*arrays, m=1, **rest)

    decisions = Decider(results, predictor, horizon_ms=5.0, replan_ms=0.25, search=search).begin([1] * 8)
    decisions.after(0, 0.5, 1.5)
    [rest] = asked
    assert (rest["start"], rest["elapsed_ms"], rest["replan_ms"]) == (1, 1.5, 0.25)
    chance = 1 / (1 + np.exp(-results.bias[0]))  # of a confidence of a half
    seen = np.zeros(8, np.float32)
    seen[: results.slot[0] + 1] = 0
    seen[results.slot[0]] = chance - results.offset[0]
    likely = predictor.predict(seen, int(results.slot[0]) + 1)[results.slot[0]] + results.offset[0]
    assert rest["best_confidence"] == pytest.approx(np.clip(likely, 0, 1))


@pytest.mark.parametrize("compiled", [False, True])
def test_logits_that_are_no_numbers_are_a_result_that_is_sure_of_nothing(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "kernels", None)
    results, predictor, _ = world(5, 6)
    wanted = []
    for logits in (np.full((1, 4), np.nan, np.float32), 0.0):
        decisions = Decider(results, predictor, horizon_ms=5.0).begin([1] * len(results.slot))
        decisions.after(0, logits, 0.5)
        wanted.append(decisions.wanted)
    assert wanted[0] == wanted[1]


def test_the_confidence_is_the_highest_of_the_softmax() -> None:
    logits = np.array([[1.0, -2.0, 3.0]], np.float32)
    softmax = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert confidence_of(logits) == pytest.approx(softmax[2])
    assert confidence_of(np.full((1, 3), np.nan, np.float32)) == 0.0


@kernels
def test_the_compiled_step_refuses_what_would_break_it() -> None:
    results, predictor, _ = world(6, 6)
    count = len(results.slot)
    compiled = native.kernels
    assert compiled is not None
    lines = (results.slope, results.bias, results.offset, results.accuracy)
    arrays = (results.conv_ms, results.branch_ms, *lines, results.slot, predictor.packed, np.linspace(1, 0, 9))
    numbers = (6, *predictor.hidden, 5.0, 0.0, 1.0)
    decider = compiled.decider(*arrays, *numbers)
    state, wanted = bytearray(16 + 4 * 6), bytearray(count)
    for bad in (
        (*arrays[:6], results.slot + 1, *arrays[7:], *numbers),
        (*arrays[:6], results.slot[::-1].copy(), *arrays[7:], *numbers),
        (*arrays[:7], predictor.packed[1:], arrays[8], *numbers),
        (*arrays[:8], np.zeros(9, np.float32), *numbers),
        (*arrays[:1], results.branch_ms[1:], *arrays[2:], *numbers),
        (*arrays, 0, *numbers[1:]),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it says, nothing is read out of bounds
            compiled.decider(*bad)
    for changed in (
        {"state": state[1:]},
        {"wanted": wanted[1:]},
        {"result": count},
        {"result": -1},
        {"elapsed_ms": float("nan")},
        {"logits": np.zeros(3)},
        {"logits": np.zeros(0, np.float32)},
        {"state": bytearray(np.array([7.0, 0.0]).tobytes()) + state[16:]},
        {"state": bytearray(np.array([0.0, 99.0]).tobytes()) + state[16:]},
    ):
        given_ = {"state": state, "wanted": wanted, "result": 0, "logits": 0.5, "elapsed_ms": 0.0} | changed
        with pytest.raises(ValueError):  # noqa: PT011
            compiled.decide(decider, *given_.values())
    with pytest.raises(ValueError, match="PyCapsule"):
        compiled.decide(object(), state, wanted, 0, 0.5, 0.0)
