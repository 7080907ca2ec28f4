from dataclasses import replace

import numpy as np
import pytest
from supernets import make_supernet

from meedge_ray.bundle.manifest import bundle_json, parse_bundle
from meedge_ray.domain.errors import InvalidInputError, NotFoundError
from meedge_ray.runtime import subnets
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.exit_planning import best_static
from meedge_ray.runtime.placing import Placer
from meedge_ray.runtime.subnets import (
    covering_subnets,
    link_times,
    profiled_links,
    subnet_blocks,
    subnet_bundle,
    subnet_space,
)

SUBNET = (0, 8, 3)  # the block in the middle and the one after it are merged


@pytest.fixture(scope="module")
def supernet():
    return make_supernet()


@pytest.fixture(scope="module")
def bundle(supernet):
    return subnet_bundle(supernet.bundle, SUBNET, final_accuracy=0.7, branch_accuracy={"exit2-small": 0.25})


def test_the_space_has_every_way_through_the_supernet(supernet):
    # Of the ways over 3 places: two links a step, 2 + 2 merged beside one step, or the long one.
    assert subnet_space(supernet.bundle).count == 2 * 2 * 2 + 2 + 2 + 1


def test_the_links_are_the_blocks(supernet, bundle):
    links = supernet.bundle.links
    assert [block.name for block in bundle.blocks] == ["block0", "merged-3-1", "block3"]
    assert [block.unit for block in bundle.blocks] == [links[link].unit for link in SUBNET]
    assert bundle.blocks[0] is supernet.bundle.blocks[0]
    merged = bundle.blocks[1]
    assert (merged.input_shape, merged.output_shape) == ((4, 4, 4), (4, 4, 4))
    assert (merged.parameters, merged.flops) == (links[8].parameters, links[8].flops)
    assert bundle.variants == ()
    assert (bundle.final_accuracy, bundle.model) == (0.7, "tiny")


def test_a_variant_has_the_shapes_of_what_it_replaces(supernet):
    [body, head] = subnet_blocks(supernet.bundle, (9, 3))
    assert (body.input_shape, body.output_shape) == ((2, 4, 4), (4, 4, 4))
    assert (head.input_shape, head.output_shape) == ((4, 4, 4), (3,))


def test_branches_keep_their_place_in_the_network(supernet, bundle):
    kept = {branch.name: (branch.exit_index, branch.accuracy) for branch in bundle.branches}
    theirs = {branch.name: branch.accuracy for branch in supernet.bundle.branches}
    assert kept == {
        "exit0-small": (0, theirs["exit0-small"]),
        "exit0-large": (0, theirs["exit0-large"]),
        "exit2-small": (1, 0.25),
        "exit2-large": (1, theirs["exit2-large"]),
    }


def test_the_profile_has_the_times_of_the_links(supernet, bundle):
    [profile], [whole] = bundle.profiles.values(), supernet.bundle.profiles.values()
    name = "merged-3-1"
    assert profile.block_ms == (whole.block_ms[0], whole.variant_ms[name], whole.block_ms[3])
    assert profile.block_std_ms == (whole.block_std_ms[0], whole.variant_std_ms[name], whole.block_std_ms[3])
    assert profile.branch_ms == {branch.name: whole.branch_ms[branch.name] for branch in bundle.branches}
    assert profile.branch_std_ms.keys() == profile.branch_ms.keys()
    assert not profile.variant_ms
    assert not profile.variant_std_ms


def test_a_profile_that_does_not_know_the_variants_is_left_out(supernet):
    [profile] = supernet.bundle.profiles.values()
    old = replace(profile, device_type="old", variant_ms={}, variant_std_ms={})
    both = replace(supernet.bundle, profiles={"old": old, **supernet.bundle.profiles})
    assert subnet_bundle(both, SUBNET, final_accuracy=0.7).profiles.keys() == {"board-1t"}
    with pytest.raises(NotFoundError, match="no time of variant shrunk50-0") as error:
        profiled_links(both, old)
    assert error.value.where == "profiles.old"


def test_the_bundle_of_a_subnet_is_a_bundle(bundle):
    assert parse_bundle(bundle_json(bundle)) == bundle


def test_placement_planning_and_engine_take_it_unchanged(supernet, bundle):
    placer = Placer(bundle)
    placement = placer.place(10**9)
    chosen = [branch for branch in bundle.branches if branch.name in placement.branches]
    assert chosen
    planner = best_static(bundle, placer.profile, chosen, horizon_ms=placer.horizon_ms)
    files = [supernet.read(block.unit) for block in bundle.blocks]
    engine = Engine(bundle.input, files, final_accuracy=bundle.final_accuracy)
    engine.place(chosen, supernet.read, planner)
    answer = engine.infer(engine.random_sample())
    assert (answer.ending, answer.planner) == ("completed", "static")


@pytest.mark.parametrize("subnet", [(), (0, 1, 2), (0, 2, 3), (0, 1, 2, 3, 3), (0, 8, 99), (-4, 1, 2, 3)])
def test_what_is_no_way_through_the_network_is_refused(supernet, subnet):
    with pytest.raises(InvalidInputError) as error:
        subnet_bundle(supernet.bundle, subnet, final_accuracy=0.7)
    assert error.value.where == "subnet"


def test_few_random_subnets_use_every_link(supernet):
    space = subnet_space(supernet.bundle)
    drawn = [list(covering_subnets(space, np.random.default_rng(seed))) for seed in range(20)]
    for chosen in drawn:
        for subnet in chosen:
            space.check(subnet)
        assert {link for subnet in chosen for link in subnet} == set(range(10))
        assert len(chosen) == 5  # as many as links pass over the middle block
    assert len({tuple(chosen) for chosen in drawn}) > 1


def test_every_link_has_a_time(supernet):
    read = []
    mean_ms, std_ms = link_times(supernet.bundle, lambda unit: read.append(unit) or supernet.read(unit), runs=4)
    assert mean_ms.shape == std_ms.shape == (10,)
    assert (mean_ms > 0).all()
    assert (std_ms >= 0).all()
    assert {unit.sha256 for unit in read} == {link.unit.sha256 for link in supernet.bundle.links}


def test_a_links_time_is_that_of_the_runs_of_subnets_with_it(supernet, monkeypatch):
    def unit_times(engine, sample):
        sizes = [engine._placed.units[unit].size_bytes for unit in engine._placed.chain.units]
        return np.array(sizes, float), {}

    monkeypatch.setattr(Engine, "unit_times", unit_times)
    mean_ms, std_ms = link_times(supernet.bundle, supernet.read, runs=2)
    assert mean_ms.tolist() == [link.unit.size_bytes for link in supernet.bundle.links]
    assert not std_ms.any()


def test_one_subnet_at_a_time_is_in_memory_while_links_are_timed(supernet, monkeypatch):
    alive, most = [], []

    class Watched(Engine):
        def __init__(self, *arguments, **options):
            alive.append(None)
            super().__init__(*arguments, **options)
            most.append(len(alive))

        def __del__(self):
            alive.pop()

    monkeypatch.setattr(subnets, "Engine", Watched)
    link_times(supernet.bundle, supernet.read, runs=1)
    assert most == [1] * 5


def test_no_runs_are_refused(supernet):
    with pytest.raises(InvalidInputError, match="measure nothing"):
        link_times(supernet.bundle, supernet.read, runs=0)


def test_a_model_without_variants_has_link_times_too(world):
    assert link_times(world.bundle, world.read, runs=1)[0].shape == (4,)
