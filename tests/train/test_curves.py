import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import World

from meedge_ray.train.curves import accuracy_curve, anytime_curve, finite_time_curve, mean_accuracy

fractions = st.floats(0, 1)
results = st.lists(st.tuples(st.floats(0.01, 5), fractions, fractions), min_size=1, max_size=6)


@given(results, st.floats(0.5, 10))
def test_the_mean_accuracy_is_the_integral_of_what_is_at_hand(
    steps: list[tuple[float, float, float]], horizon_ms: float
) -> None:
    at_ms = np.cumsum([step[0] for step in steps])
    known, truth = [step[1] for step in steps], [step[2] for step in steps]
    curve = accuracy_curve(at_ms.tolist(), known, truth)
    moments = (np.arange(4000) + 0.5) / 4000 * horizon_ms
    at_hand = []
    for moment in moments:
        came = [index for index in range(len(steps)) if at_ms[index] <= moment]
        at_hand.append(truth[max(came, key=lambda index: (known[index], -index))] if came else 0.0)
    assert mean_accuracy(curve, horizon_ms) == pytest.approx(np.mean(at_hand), abs=0.005)


def test_a_known_time_is_spent_on_the_one_best_branch(world: World) -> None:
    # Blocks take 1 ms, small branches 0.1 and large ones 0.2; each is alone with its blocks.
    [profile] = world.bundle.profiles.values()
    branches = [world.branch(name) for name in ("exit0-small", "exit0-large", "exit2-large")]
    scores = {branch.name: branch.accuracy - 0.01 for branch in branches} | {None: 0.89}
    curve = finite_time_curve(world.bundle, profile, branches, scores)
    assert [time_ms for time_ms, _ in curve] == pytest.approx([1.1, 1.2, 3.2, 4.0])
    assert [accuracy for _, accuracy in curve] == pytest.approx([0.29, 0.39, 0.723, 0.89])


def test_a_time_known_beforehand_is_never_worth_less_than_one_that_is_not(world: World) -> None:
    [profile] = world.bundle.profiles.values()
    branches = world.bundle.branches
    scores = {branch.name: branch.accuracy for branch in branches} | {None: world.bundle.final_accuracy}
    finite = finite_time_curve(world.bundle, profile, branches, scores)
    anytime = anytime_curve(world.bundle, profile, branches, scores)
    for time_ms, accuracy in anytime:
        assert max(at_hand for at_ms, at_hand in finite if at_ms <= time_ms) >= accuracy
