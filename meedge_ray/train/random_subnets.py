"""Subnets to train on, drawn so that every added block gets its share."""

import numpy as np

from meedge_ray.nn.supernet import Supernet
from meedge_ray.search.subnets import Subnet, SubnetSpace


def draw(supernet: Supernet, random: np.random.Generator) -> Subnet:
    """Return a random subnet with an added block; at every place all links have the same chance.

    If instead every subnet had the same chance, long links would hardly ever learn: to merge three blocks is one way to
    pass them, and to replace each of them by one of four is 64.
    """
    while (subnet := _way(supernet.space, 0, supernet.space.places, random)) == supernet.space.original:
        pass
    return subnet


def draw_through(supernet: Supernet, growth: int, random: np.random.Generator) -> Subnet:
    """Return a random subnet with the added block of that number."""
    space, added = supernet.space, supernet.growths[growth]
    before, after = _way(space, 0, added.start, random), _way(space, added.end, space.places, random)
    return (*before, len(supernet.blocks) + growth, *after)


def _way(space: SubnetSpace, start: int, end: int, random: np.random.Generator) -> Subnet:
    way: list[int] = []
    while start < end:
        links = [link for link in space.links_from[start] if space.ends[link] <= end]
        way.append(links[random.integers(len(links))])
        start = int(space.ends[way[-1]])
    return tuple(way)
