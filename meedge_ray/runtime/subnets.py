"""Subnets as a device runs them: each is a bundle of its own, and every link has a time (AdaptiveNet 5)."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from meedge_ray.domain.elastic import Block, Branch, Bundle, Profile, Unit
from meedge_ray.domain.errors import InvalidInputError, NotFoundError
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.memory import release_to_os
from meedge_ray.runtime.profiler import RUNS, WARM_UP_RUNS, kept_runs
from meedge_ray.search.subnets import Subnet, SubnetSpace, slowest


def subnet_space(bundle: Bundle) -> SubnetSpace:
    """Return all subnets of the bundle's supernet."""
    links = bundle.links
    return SubnetSpace([link.start for link in links], [link.end for link in links])


def subnet_blocks(bundle: Bundle, subnet: Subnet) -> tuple[Block, ...]:
    """Return the links of a subnet as the blocks of a chain, with their names.

    Raises:
        InvalidInputError: it is no way from the input to the output; `where` is "subnet".
    """
    subnet_space(bundle).check(subnet)
    return tuple(_block(bundle, link) for link in subnet)


def subnet_bundle(
    bundle: Bundle,
    subnet: Subnet,
    *,
    final_accuracy: float,
    branch_accuracy: Mapping[str, float] | None = None,
) -> Bundle:
    """Return a subnet as a bundle without variants: placement, planning and the engine take it like any other.

    It has the branches whose places the subnet visits, their exit points numbered anew. Predictor, confidences and
    baselines stay behind: they know the exits of the original. So do profiles without a time of every link.

    Args:
        bundle: with the variants.
        subnet: numbers of links.
        final_accuracy: of the subnet, 0..1.
        branch_accuracy: by name, of branches behind the subnet's features; a branch not named keeps its own.

    Raises:
        InvalidInputError: it is no way from the input to the output; `where` is "subnet".
    """
    blocks, links = subnet_blocks(bundle, subnet), bundle.links
    exit_index = {links[link].end - 1: index for index, link in enumerate(subnet[:-1])}
    accuracy = branch_accuracy or {}
    branches = tuple(
        replace(
            branch,
            exit_index=exit_index[branch.exit_index],
            accuracy=accuracy.get(branch.name, branch.accuracy),
        )
        for branch in bundle.branches
        if branch.exit_index in exit_index
    )
    return replace(
        bundle,
        blocks=blocks,
        final_accuracy=final_accuracy,
        branches=branches,
        variants=(),
        baselines={},
        eliminated=(),
        profiles=dict(_profiles(bundle, subnet, branches)),
        confidences=None,
        predictor=None,
    )


def profiled_links(bundle: Bundle, profile: Profile) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the profile's mean and standard deviation of the time of every link, in ms, [links] each.

    Raises:
        NotFoundError: it has no time of a variant.
    """
    names = [variant.name for variant in bundle.variants]
    lacking = [name for name in names if name not in profile.variant_ms]
    if lacking:
        raise NotFoundError(
            f"there is no time of variant {lacking[0]}",
            where=f"profiles.{profile.device_type}",
            do="Profile the bundle on this device",
        )
    mean_ms = (*profile.block_ms, *(profile.variant_ms[name] for name in names))
    std_ms = (*profile.block_std_ms, *(profile.variant_std_ms[name] for name in names))
    return np.array(mean_ms), np.array(std_ms)


def link_times(
    bundle: Bundle, read: Callable[[Unit], bytes], *, runs: int = RUNS, threads: int = 1, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure the time of every link on this device, batch 1, as it runs in a chain (AdaptiveNet 5.1's table).

    Random subnets that together use every link run one after the other; one subnet's units are in memory at a time.
    Times are from result to result; those of links at the input are with the sample's preparation. So the sum over the
    links of a subnet is its latency.

    Args:
        bundle: with the variants.
        read: returns a unit's verified bytes.
        runs: counted runs of every subnet.
        threads: threads one unit may use.
        seed: of the subnets.

    Returns:
        Mean and standard deviation over the runs in ms, the slowest left out, [links] each.

    Raises:
        InvalidInputError: `runs` is not above 0, or a link does not fit where it is.
        MeedgeError: whatever getting a unit's bytes raised.
    """
    if runs < 1:
        raise InvalidInputError(f"{runs} runs measure nothing", where="runs", do="Give 1 or more")
    times_ms: dict[int, list[float]] = defaultdict(list)
    for subnet in covering_subnets(subnet_space(bundle), np.random.default_rng(seed)):
        for row in _timed(bundle, subnet, read, runs, threads):
            for link, time_ms in zip(subnet, row, strict=True):
                times_ms[link].append(time_ms)
        release_to_os()
    kept = [kept_runs(times_ms[link]) for link in range(len(bundle.links))]
    return np.array([times.mean() for times in kept]), np.array([times.std() for times in kept])


def covering_subnets(space: SubnetSpace, rng: np.random.Generator) -> Iterator[Subnet]:
    """Yield random subnets until every link was in one; each has as many links that were in none as can be."""
    new = np.ones(len(space.starts))
    while new.any():
        subnet = slowest(space, new + rng.random(len(new)) / len(new))  # the most new links, else at random
        new[list(subnet)] = 0
        yield subnet


def _block(bundle: Bundle, link: int) -> Block:
    if link < len(bundle.blocks):
        return bundle.blocks[link]
    variant = bundle.variants[link - len(bundle.blocks)]
    return Block(
        name=variant.name,
        unit=variant.unit,
        input_shape=bundle.blocks[variant.start].input_shape,
        output_shape=bundle.blocks[variant.end - 1].output_shape,
        parameters=variant.parameters,
        flops=variant.flops,
    )


def _profiles(bundle: Bundle, subnet: Subnet, branches: Sequence[Branch]) -> Iterator[tuple[str, Profile]]:
    names = [branch.name for branch in branches]
    for device_type, profile in bundle.profiles.items():
        try:
            mean_ms, std_ms = profiled_links(bundle, profile)
        except NotFoundError:
            continue
        yield (
            device_type,
            replace(
                profile,
                block_ms=tuple(mean_ms[list(subnet)].tolist()),
                block_std_ms=tuple(std_ms[list(subnet)].tolist()),
                branch_ms={name: profile.branch_ms[name] for name in names},
                branch_std_ms={name: profile.branch_std_ms[name] for name in names},
                variant_ms={},
                variant_std_ms={},
            ),
        )


def _timed(bundle: Bundle, subnet: Subnet, read: Callable[[Unit], bytes], runs: int, threads: int) -> list[list[float]]:
    # Of every run, of every link.
    files = (read(block.unit) for block in subnet_blocks(bundle, subnet))
    engine = Engine(bundle.input, files, final_accuracy=bundle.final_accuracy, threads=threads)
    sample = engine.random_sample()
    for _ in range(WARM_UP_RUNS):
        engine.unit_times(sample)
    return [engine.unit_times(sample)[0].tolist() for _ in range(runs)]
