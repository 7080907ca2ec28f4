"""Spaces of subnets small enough to list all ways, how to list them, and one that is too large."""

from itertools import combinations

import numpy as np
from hypothesis import strategies as st

from meedge_ray.search.subnets import Subnet, SubnetSpace

# Four blocks, two variants of the second, one of the last, two that merge.
STARTS = [0, 1, 2, 3, 1, 1, 3, 0, 1]
ENDS = [1, 2, 3, 4, 2, 2, 4, 2, 4]


def every_subnet(space: SubnetSpace) -> list[Subnet]:
    """All ways, by extending all that reach a place: the brute force."""
    ways: list[list[Subnet]] = [[()]] + [[] for _ in range(space.places)]
    for place in range(space.places):
        for link in np.flatnonzero(space.starts == place):
            ways[space.ends[link]] += [(*way, int(link)) for way in ways[place]]
    return ways[-1]


@st.composite
def spaces(draw: st.DrawFn, places: int = 5, variants: int = 5) -> SubnetSpace:
    """Draw blocks with variants of any lengths."""
    blocks = draw(st.integers(1, places))
    steps = list(combinations(range(blocks + 1), 2))
    added = draw(st.lists(st.sampled_from(steps), max_size=variants))
    starts = [*range(blocks), *(start for start, _ in added)]
    return SubnetSpace(starts, [*range(1, blocks + 1), *(end for _, end in added)])


@st.composite
def timed_spaces(draw: st.DrawFn, variants: int = 5) -> tuple[SubnetSpace, list[float]]:
    """Draw a space and a time for every link, in eighths of a ms: their sums are exact."""
    space = draw(spaces(variants=variants))
    eighths = draw(st.lists(st.integers(0, 80), min_size=len(space.starts), max_size=len(space.starts)))
    return space, [number / 8 for number in eighths]


def large_space() -> tuple[SubnetSpace, list[float]]:
    """Twenty-six blocks with three variants each, shorter by up to 70 %, and one for every two neighbours."""
    rng = np.random.default_rng(3)
    places = range(26)
    starts = [*places, *(place for place in places for _ in range(3)), *range(25)]
    ends = [place + 1 for place in starts[:104]] + [place + 2 for place in range(25)]
    block_ms = rng.uniform(0.5, 2.0, 26)
    shrunk_ms = np.repeat(block_ms, 3) * np.tile([0.75, 0.5, 0.3], 26)
    merged_ms = np.maximum(block_ms[:-1], block_ms[1:]) * 1.1
    return SubnetSpace(starts, ends), [float(ms) for ms in (*block_ms, *shrunk_ms, *merged_ms)]
