"""The subnets of a supernet: all ways from the input to the output (AdaptiveNet 4.1).

Places 0..n lie before, between and after the n blocks of the backbone. A link is a block, or a variant of one or more
blocks: a step from one place to a later one. A subnet is a way from place 0 to place n, as the numbers of its links.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.inputs import Floats, read_floats, read_integers

Subnet = tuple[int, ...]


class SubnetSpace:
    """All subnets of L links.

    `starts` and `ends` are the places of every link, [L]; `places` is the number of blocks, n; `count` the number of
    subnets, exactly; `original` the subnet of all blocks. `spans` gives start and end of every link, `links_from` the
    links that start at a place, [n].

    Args:
        starts: [L] place where every link begins; the first n links are the blocks in order.
        ends: [L] place where it ends.

    Raises:
        InvalidInputError: there are no blocks, they are no chain, or a variant lies beside it; `where` names the list.
    """

    def __init__(self, starts: Sequence[int], ends: Sequence[int]) -> None:
        self.starts = read_integers(starts, "starts")
        self.ends = read_integers(ends, "ends", count=len(self.starts))
        if not len(self.ends):
            raise InvalidInputError("there are no blocks", where="starts")
        self.places = int(self.ends.max())
        _check_links(self.starts, self.ends, self.places)
        self.spans: tuple[tuple[int, int], ...] = tuple(zip(self.starts.tolist(), self.ends.tolist(), strict=True))
        self.links_from = tuple(
            tuple(link for link, (start, _) in enumerate(self.spans) if start == place) for place in range(self.places)
        )
        self.original: Subnet = tuple(range(self.places))
        self._ways_to: dict[int, list[int]] = {}
        self.count = self.ways(0, self.places)

    def check(self, subnet: Sequence[int]) -> None:
        """Raise InvalidInputError, `where` is "subnet", if it is no way from the input to the output."""
        place = 0
        for link in subnet:
            if not isinstance(link, int | np.integer) or not 0 <= link < len(self.spans):
                raise InvalidInputError(f"{link!r} is no link, there are {len(self.spans)}", where="subnet")
            start, end = self.spans[link]
            if start != place:
                raise InvalidInputError(
                    f"link {link} begins at place {start}, the links before it end at {place}", where="subnet"
                )
            place = end
        if place != self.places:
            raise InvalidInputError(f"it ends at place {place} of {self.places}", where="subnet")

    def random(self, rng: np.random.Generator) -> Subnet:
        """Return one of all subnets, each with the same chance."""
        return self.random_way(0, self.places, rng)

    def latency_ms(self, subnet: Sequence[int], link_ms: Sequence[float] | Floats) -> float:
        """Return the sum of the times of its links (AdaptiveNet 5.1); neither argument is checked."""
        return float(sum(link_ms[link] for link in subnet))

    def read_ms(self, link_ms: npt.ArrayLike) -> list[float]:
        """Return the time of every link in ms, checked.

        Raises:
            InvalidInputError: not one finite number from 0 for every link; `where` is "link_ms".
        """
        return [float(ms) for ms in read_floats(link_ms, "link_ms", count=len(self.spans))]

    def ways(self, start: int, end: int) -> int:
        """Return how many ways there are from a place to the same or a later one."""
        return self._counts(end)[start]

    def random_way(self, start: int, end: int, rng: np.random.Generator) -> Subnet:
        """Return one of all ways from a place to the same or a later one, each with the same chance."""
        counts = self._counts(end)
        number = random_below(counts[start], rng)
        way: list[int] = []
        while start < end:
            for link in self.links_from[start]:
                after = counts[self.spans[link][1]]
                if number < after:
                    break
                number -= after
            way.append(link)
            start = self.spans[link][1]
        return tuple(way)

    def _counts(self, end: int) -> list[int]:
        """Ways from every place to `end`, [n + 1]; none from later ones."""
        if end not in self._ways_to:
            counts = [0] * (self.places + 1)
            counts[end] = 1
            for place in reversed(range(end)):
                counts[place] = sum(counts[self.spans[link][1]] for link in self.links_from[place])
            self._ways_to[end] = counts
        return self._ways_to[end]


def fastest(space: SubnetSpace, link_ms: npt.ArrayLike) -> Subnet:
    """Return the subnet of the lowest latency; of several the one with the first link numbers.

    Raises:
        InvalidInputError: `link_ms` cannot be used.
    """
    return _extreme(space, space.read_ms(link_ms), min)


def slowest(space: SubnetSpace, link_ms: npt.ArrayLike) -> Subnet:
    """Return the subnet of the highest latency; of several the one with the first link numbers.

    Raises:
        InvalidInputError: `link_ms` cannot be used.
    """
    return _extreme(space, space.read_ms(link_ms), max)


def random_below(bound: int, rng: np.random.Generator) -> int:
    """Return a whole number in 0..bound - 1, each with the same chance, however large the bound is."""
    bits = (bound - 1).bit_length()
    while True:
        number = int.from_bytes(rng.bytes((bits + 7) // 8), "little") & ((1 << bits) - 1)
        if number < bound:
            return number


def _extreme(space: SubnetSpace, link_ms: list[float], choose: Callable[..., int]) -> Subnet:
    rest_ms = [0.0] * (space.places + 1)
    chosen = [0] * space.places
    for place in reversed(range(space.places)):
        total_ms = {link: link_ms[link] + rest_ms[space.spans[link][1]] for link in space.links_from[place]}
        chosen[place] = choose(total_ms, key=total_ms.__getitem__)
        rest_ms[place] = total_ms[chosen[place]]
    way: list[int] = []
    place = 0
    while place < space.places:
        way.append(chosen[place])
        place = space.spans[way[-1]][1]
    return tuple(way)


def _check_links(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], places: int) -> None:
    blocks = np.arange(min(places, len(starts)))
    if places > len(starts) or not np.array_equal(starts[:places], blocks):
        raise InvalidInputError(f"the first {places} links are no chain of blocks", where="starts")
    if not np.array_equal(ends[:places], blocks + 1):
        raise InvalidInputError(f"the first {places} links are no chain of blocks", where="ends")
    if (starts >= ends).any():
        link = int(np.argmax(starts >= ends))
        raise InvalidInputError(f"link {link} leads from place {starts[link]} to {ends[link]}, not on", where="ends")
