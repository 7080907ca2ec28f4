from dataclasses import replace
from itertools import combinations
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meedge_ray.api.serving import Score
from meedge_ray.api.time_distribution import UNIFORM, Histogram, Normal, TimeDistribution
from meedge_ray.domain.elastic import bytes_of, units_of
from meedge_ray.domain.errors import BudgetError, InvalidInputError, NotFoundError
from meedge_ray.runtime import placing, problem
from meedge_ray.runtime.placing import HORIZON_FACTOR, Placer
from meedge_ray.runtime.sending import Fetching, Sending
from meedge_ray.search.priority import SCORES

LATE = TimeDistribution(normal=Normal(mean_ms=4.0, standard_deviation_ms=0.5))
EARLY = TimeDistribution(histogram=Histogram(edges_ms=(0.0, 1.5, 2.0, 5.0), probabilities=(0.5, 0.4, 0.1)))


@pytest.fixture(scope="module")
def placer(world):
    return Placer(world.bundle)


def size_bytes(bundle, names):
    return bundle.backbone_bytes + bytes_of(branch for branch in bundle.branches if branch.name in names)


def sets(world):
    names = [branch.name for branch in world.bundle.branches]
    return [chosen for count in range(len(names) + 1) for chosen in combinations(names, count)]


def sending(world, held, limit_bytes, **options):
    """A time in which just `limit_bytes` can be sent: at 1 bit/s a byte takes 8 s, and half of one is spare."""
    return Sending(
        fetching=Fetching(world.bundle, held),
        latency_budget_ms=(limit_bytes + options.get("request_bytes", 0)) * 8e3 + 4e3,
        rate_bps=1.0,
        **options,
    )


def to_send(world, held, names):
    wanted = [*(block.unit for block in world.bundle.blocks), *units_of(map(world.branch, names))]
    return sum(unit.size_bytes for unit in wanted if unit.sha256 not in held)


def draw_limits(data, world):
    """Units held, a memory, and bytes that can be sent, enough for the missing blocks."""
    held = frozenset(data.draw(st.lists(st.sampled_from(sorted(world.units)), unique=True)))
    whole = sum(map(len, world.units.values()))
    memory_bytes = data.draw(st.integers(world.bundle.backbone_bytes, whole))
    return held, memory_bytes, data.draw(st.integers(to_send(world, held, ()), whole))


@pytest.mark.parametrize("distribution", [UNIFORM, LATE, EARLY], ids=["uniform", "late", "early"])
@given(extra_bytes=st.integers(0, 25_000))
def test_a_placement_fits_and_no_set_that_fits_is_better(world, distribution, extra_bytes):
    placer = Placer(world.bundle, distribution=distribution)
    memory_bytes = world.bundle.backbone_bytes + extra_bytes
    placement = placer.place(memory_bytes)
    assert placement.method == "frontier"
    assert placement.size_bytes == size_bytes(world.bundle, placement.branches) <= memory_bytes
    assert placement.expectation == pytest.approx(placer.expectation(placement.branches))
    best = max(placer.expectation(chosen) for chosen in sets(world) if size_bytes(world.bundle, chosen) <= memory_bytes)
    assert placement.expectation == pytest.approx(best)


@pytest.mark.parametrize("score", get_args(Score))
@settings(max_examples=20)
@given(extra_bytes=st.integers(0, 25_000))
def test_hpf_fits_with_every_score_and_is_never_better(world, placer, score, extra_bytes):
    memory_bytes = world.bundle.backbone_bytes + extra_bytes
    heuristic = placer.place_hpf(memory_bytes, search_ms=1, score=score)
    assert heuristic.method == "hpf"
    assert heuristic.size_bytes == size_bytes(world.bundle, heuristic.branches) <= memory_bytes
    assert heuristic.expectation <= placer.place(memory_bytes).expectation + 1e-9


def test_requests_name_the_scores_there_are():
    assert get_args(Score) == SCORES


def test_hpf_is_refused_what_it_is_not_published_for(world, placer, whole_bytes):
    with pytest.raises(InvalidInputError, match="equally likely") as caught:
        Placer(world.bundle, distribution=LATE).place_hpf(whole_bytes)
    assert caught.value.where == "method"
    with pytest.raises(InvalidInputError) as caught:
        placer.place_hpf(whole_bytes, score="m8")
    assert caught.value.where == "score"


def test_the_law_decides_what_is_placed(world, whole_bytes):
    memory_bytes = world.bundle.backbone_bytes + max(branch.size_bytes for branch in world.bundle.branches)
    early, late = (Placer(world.bundle, distribution=law).place(memory_bytes) for law in (EARLY, LATE))
    assert early.branches != late.branches
    assert Placer(world.bundle, distribution=LATE).restricted(frozenset(world.units)).place(
        whole_bytes
    ).expectation == pytest.approx(Placer(world.bundle, distribution=LATE).place(whole_bytes).expectation)


@pytest.mark.parametrize(
    ("distribution", "field"),
    [
        (TimeDistribution(normal=Normal(mean_ms=90, standard_deviation_ms=1)), "normal.mean_ms"),
        (TimeDistribution(histogram=Histogram(edges_ms=(0, 9), probabilities=(1,))), "histogram.edges_ms"),
    ],
)
def test_a_law_that_the_horizon_cuts_off_is_refused(world, distribution, field):
    with pytest.raises(InvalidInputError, match="longer horizon_ms") as caught:
        Placer(world.bundle, distribution=distribution)
    assert caught.value.where == f"distribution.{field}"
    assert Placer(world.bundle, distribution=distribution, horizon_ms=100.0).place(10**9)


@pytest.mark.parametrize("distribution", [UNIFORM, LATE], ids=["uniform", "late"])
@given(data=st.data())
def test_in_time_the_best_set_that_fits_and_can_be_sent_is_placed(world, distribution, data):
    placer = Placer(world.bundle, distribution=distribution)
    held, memory_bytes, limit_bytes = draw_limits(data, world)
    got = placer.place_in_time(memory_bytes, sending(world, held, limit_bytes, request_bytes=100))
    assert got.size_bytes == size_bytes(world.bundle, got.branches) <= memory_bytes
    assert to_send(world, held, got.branches) <= limit_bytes
    best = max(
        placer.expectation(chosen)
        for chosen in sets(world)
        if size_bytes(world.bundle, chosen) <= memory_bytes and to_send(world, held, chosen) <= limit_bytes
    )
    assert got.expectation == pytest.approx(best)
    assert got.expectation == pytest.approx(placer.expectation(got.branches))


@given(data=st.data())
def test_in_time_shared_units_are_sent_once(worlds, data):
    world = worlds(shared=True, blocks=2, final_accuracy=0.3)
    placer = Placer(world.bundle)
    held, memory_bytes, limit_bytes = draw_limits(data, world)
    got = placer.place_in_time(memory_bytes, sending(world, held, limit_bytes))
    assert got.size_bytes <= memory_bytes
    assert to_send(world, held, got.branches) <= limit_bytes
    assert got.expectation >= max(
        point.expectation
        for point in placer.points()
        if point.size_bytes <= memory_bytes and to_send(world, held, point.branches) <= limit_bytes
    )


@given(data=st.data())
def test_in_time_hpf_keeps_to_both_limits(world, placer, data):
    held, memory_bytes, limit_bytes = draw_limits(data, world)
    got = placer.place_hpf(memory_bytes, sending=sending(world, held, limit_bytes))
    assert got.size_bytes == size_bytes(world.bundle, got.branches) <= memory_bytes
    assert to_send(world, held, got.branches) <= limit_bytes
    exact = placer.place_in_time(memory_bytes, sending(world, held, limit_bytes))
    assert placer.expectation(()) <= got.expectation <= exact.expectation + 1e-9


def test_what_takes_the_first_search_longer_is_left_to_hpf(world, placer, monkeypatch):
    # Both limits bind: the two large branches cannot be held together, and one that is held need not be sent.
    held = {unit.sha256 for unit in units_of(map(world.branch, ("exit0-large", "exit2-large")))}
    held |= {block.unit.sha256 for block in world.bundle.blocks}
    memory_bytes = size_bytes(world.bundle, ("exit2-large", "exit1-small"))
    link = sending(world, held, to_send(world, held, ("exit1-small",)))
    placer.points()
    with_both = placer.place_in_time(memory_bytes, link)
    monkeypatch.setattr(placer, "_frontier_ms", float("inf"))
    assert placer.place_in_time(memory_bytes, link).expectation == pytest.approx(with_both.expectation)


def test_without_time_to_search_the_frontiers_best_point_that_can_be_sent_is_placed(world, placer, monkeypatch):
    monkeypatch.setattr(placing, "SEARCH_SHARE", 0.0)
    monkeypatch.setattr(problem, "hpf_placement", None)
    whole = sum(map(len, world.units.values()))
    for limit_bytes in range(world.bundle.backbone_bytes, whole, 997):
        got = placer.place_in_time(whole, sending(world, (), limit_bytes))
        feasible = [point for point in placer.points() if point.size_bytes <= limit_bytes]
        assert got.expectation == max(point.expectation for point in feasible)


def test_a_time_in_which_nothing_can_be_sent_is_refused_before_any_search(world, monkeypatch):
    monkeypatch.setattr(problem, "placement_frontier", None)
    monkeypatch.setattr(problem, "hpf_placement", None)
    placer = Placer(world.bundle)
    backbone = world.bundle.backbone_bytes
    for place in (placer.place_in_time, lambda memory, link: placer.place_hpf(memory, sending=link)):
        with pytest.raises(BudgetError, match=f"missing blocks are {backbone} bytes, {backbone - 1} can") as caught:
            place(10**9, sending(world, (), backbone - 1))
        assert caught.value.where == "latency_budget_ms"
        late = Sending(
            fetching=Fetching(world.bundle, world.units), latency_budget_ms=800.0, rate_bps=1e3, request_bytes=100
        )
        with pytest.raises(BudgetError, match="800 ms are over before any unit can be sent") as caught:
            place(10**9, late)
        assert caught.value.where == "latency_budget_ms"
        with pytest.raises(BudgetError) as caught:
            place(backbone - 1, sending(world, (), 10**6))
        assert caught.value.where == "memory_bytes"


def test_branches_are_named_in_the_order_the_engine_runs_them(world, placer):
    for placement in placer.points():
        assert world.engine(*placement.branches).branches == placement.branches


def test_the_points_rise_from_the_bare_backbone(world, placer):
    points = placer.points()
    assert (points[0].branches, points[0].size_bytes) == ((), world.bundle.backbone_bytes)
    assert [point.size_bytes - world.bundle.backbone_bytes for point in points] == list(placer.frontier().size_bytes)
    values = [point.expectation for point in points]
    assert values == sorted(values)
    assert placer.frontier() is placer.frontier()


def test_below_the_backbone_both_numbers_are_said(world, placer):
    need = world.bundle.backbone_bytes
    for place in (placer.place, placer.place_hpf):
        with pytest.raises(BudgetError, match=f"needs {need} bytes.*budget is {need - 1}"):
            place(need - 1)
    assert placer.place(need).branches == ()


def test_the_default_horizon_leaves_the_single_exit_its_time(placer):
    assert placer.horizon_ms == HORIZON_FACTOR * 4.0
    assert placer.expectation(()) == pytest.approx(0.9 * (1 - 1 / HORIZON_FACTOR))


def test_a_horizon_below_the_single_exit_is_refused(world):
    for horizon_ms in (3.9, -1.0, float("nan")):
        with pytest.raises(InvalidInputError, match="4 ms"):
            Placer(world.bundle, horizon_ms=horizon_ms)
    assert Placer(world.bundle, horizon_ms=8.0).place(10**9).horizon_ms == 8.0


def test_only_held_units_are_placed_when_restricted(world, placer, whole_bytes):
    held = {unit.sha256 for unit in units_of([world.branch("exit0-small"), world.branch("exit2-large")])}
    limited = placer.restricted(held)
    assert set(limited.place(whole_bytes).branches) <= {"exit0-small", "exit2-large"}
    assert limited.place(whole_bytes).branches
    assert placer.restricted(frozenset()).place(whole_bytes).branches == ()
    assert limited.expectation(("exit1-small",)) == placer.expectation(("exit1-small",))


def test_a_shared_unit_is_charged_to_every_branch_and_counted_once(worlds):
    world = worlds(shared=True, blocks=2, final_accuracy=0.3)
    placer = Placer(world.bundle)
    charged = placer.frontier().size_bytes
    for point, charge in zip(placer.points(), charged, strict=True):
        chosen = [world.branch(name) for name in point.branches]
        assert charge == sum(branch.size_bytes for branch in chosen)
        assert point.size_bytes - world.bundle.backbone_bytes == bytes_of(chosen) <= charge
    assert point.size_bytes - world.bundle.backbone_bytes < charge


def test_a_branch_is_held_when_all_of_its_units_are(worlds):
    world = worlds(shared=True)
    branch = world.branch("exit1-small")
    for missing in branch.units:
        held = {unit.sha256 for unit in branch.units if unit != missing}
        assert Placer(world.bundle, held=held).place(10**9).branches == ()
    assert Placer(world.bundle, held={unit.sha256 for unit in branch.units}).place(10**9).branches == (branch.name,)


def test_baselines_are_weighed_by_name(world):
    branch = world.branch("exit1-large")
    bundle = replace(world.bundle, branches=(), baselines={"fixed": (branch,)})
    assert Placer(bundle).expectation(["exit1-large"]) == Placer(world.bundle).expectation(["exit1-large"])
    assert Placer(bundle).place(10**9).branches == ()
    with pytest.raises(NotFoundError, match="no branch 'exit9'"):
        Placer(bundle).expectation(["exit9"])


def test_the_device_type_may_be_left_out_only_where_there_is_one(world):
    [profile] = world.bundle.profiles.values()
    two = replace(world.bundle, profiles={"board-1t": profile, "desk": replace(profile, device_type="desk")})
    with pytest.raises(InvalidInputError, match=r"must be named.*board-1t, desk"):
        Placer(two)
    assert Placer(two, device_type="desk").device_type == "desk"
    with pytest.raises(NotFoundError, match=r"device type phone.*board-1t, desk"):
        Placer(two, device_type="phone")
    with pytest.raises(InvalidInputError, match="none"):
        Placer(replace(world.bundle, profiles={}))
