from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.domain.errors import BudgetError, InvalidInputError, NotFoundError
from meedge_ray.runtime.placing import HORIZON_FACTOR, Placer


@pytest.fixture(scope="module")
def placer(world):
    return Placer(world.bundle)


def size_bytes(bundle, names):
    return bundle.backbone_bytes + sum(branch.unit.size_bytes for branch in bundle.branches if branch.name in names)


@given(extra_bytes=st.integers(0, 25_000))
def test_a_placement_fits_and_no_set_that_fits_is_better(world, placer, extra_bytes):
    memory_bytes = world.bundle.backbone_bytes + extra_bytes
    placement = placer.place(memory_bytes)
    assert placement.size_bytes == size_bytes(world.bundle, placement.branches) <= memory_bytes
    assert placement.expectation == pytest.approx(placer.expectation(placement.branches))
    names = [branch.name for branch in world.bundle.branches]
    best = max(
        placer.expectation(chosen)
        for count in range(len(names) + 1)
        for chosen in combinations(names, count)
        if size_bytes(world.bundle, chosen) <= memory_bytes
    )
    assert placement.expectation == pytest.approx(best)
    heuristic = placer.place_hpf(memory_bytes, search_ms=1)
    assert heuristic.size_bytes == size_bytes(world.bundle, heuristic.branches) <= memory_bytes
    assert heuristic.expectation <= placement.expectation + 1e-9
    assert (placement.method, heuristic.method) == ("frontier", "hpf")


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
    held = {world.branch("exit0-small").unit.sha256, world.branch("exit2-large").unit.sha256}
    limited = placer.restricted(held)
    assert set(limited.place(whole_bytes).branches) <= {"exit0-small", "exit2-large"}
    assert limited.place(whole_bytes).branches
    assert placer.restricted(frozenset()).place(whole_bytes).branches == ()
    assert limited.expectation(("exit1-small",)) == placer.expectation(("exit1-small",))


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
