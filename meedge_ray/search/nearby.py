"""Subnets whose latency is near a budget: drawn at random, and changed a little (AdaptiveNet 5.1).

To draw them without listing all subnets, latencies are rounded to buckets, and the ways from every place to the output
are counted by bucket, exactly. Rounding moves a subnet by half a bucket a link at most: one is drawn from all whose
rounded latency may lie in the range, each with the same chance, and drawn anew where the true one does not.
"""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, product

import numpy as np
import numpy.typing as npt

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.subnets import Subnet, SubnetSpace, random_below, slowest

_BUCKETS = 4096
_LEAST_BUCKET_MS = 1e-12
_LISTED = 1024  # up to so many are listed: none is drawn twice, none is missed
_TRIES = 100  # draws for every subnet asked for


def nearby_init(
    space: SubnetSpace,
    link_ms: npt.ArrayLike,
    low_ms: float,
    high_ms: float,
    count: int,
    rng: np.random.Generator,
) -> list[Subnet]:
    """Return up to `count` different subnets with a latency in [low_ms, high_ms], each with the same chance.

    Fewer only where the range holds no more, or is so much narrower than a 4096th of `high_ms` that drawing does not
    hit it.

    Raises:
        InvalidInputError: `link_ms` cannot be used, or the ends of the range are no numbers in order.
    """
    times_ms = space.read_ms(link_ms)
    _check_range(low_ms, high_ms)
    top_ms = min(high_ms, space.latency_ms(slowest(space, times_ms), times_ms))
    if top_ms < 0:
        return []
    buckets = _Buckets(space, times_ms, max(low_ms, 0.0), top_ms)

    def in_range(subnet: Subnet) -> bool:
        return low_ms <= space.latency_ms(subnet, times_ms) <= high_ms

    if buckets.count <= _LISTED + 4 * count:
        listed = [subnet for subnet in map(buckets.subnet, range(buckets.count)) if in_range(subnet)]
        return [listed[index] for index in rng.permutation(len(listed))[:count]]
    drawn: dict[Subnet, None] = {}
    for _ in range(_LISTED + _TRIES * count):
        if len(drawn) == count:
            break
        subnet = buckets.subnet(random_below(buckets.count, rng))
        if in_range(subnet):
            drawn[subnet] = None
    return list(drawn)


def mutate(space: SubnetSpace, subnet: Subnet, rng: np.random.Generator) -> Subnet:
    """Return the subnet with a random link in it that was not.

    What the link jumps over goes; where a removed link reached further, any way fills the gap. So every subnet can
    become every other. The only subnet of its space stays.
    """
    others = _others(space, subnet)
    return _put(space, subnet, others[rng.integers(len(others))], rng) if others else subnet


def nearby_mutate(
    space: SubnetSpace,
    subnet: Subnet,
    link_ms: npt.ArrayLike,
    low_ms: float,
    high_ms: float,
    rng: np.random.Generator,
) -> Subnet:
    """Return the subnet with a random link in it that was not, and if need be one more, for the latency.

    If the first leaves [low_ms, high_ms], all other links that do not touch it are tried, with all ways to fill the
    gaps. Taken is one of those nearest to the range, mostly in it; of these one behind the first, so that all before it
    stays shared with the subnet and is evaluated once; of these one that changes the fewest links, at random. None
    where none comes nearer.

    Raises:
        InvalidInputError: `link_ms` cannot be used, or the ends of the range are no numbers in order.
    """
    times_ms = space.read_ms(link_ms)
    _check_range(low_ms, high_ms)

    def outside_ms(candidate: Subnet) -> float:
        latency_ms = space.latency_ms(candidate, times_ms)
        return max(low_ms - latency_ms, latency_ms - high_ms, 0.0)

    others = _others(space, subnet)
    if not others:
        return subnet
    new = others[rng.integers(len(others))]
    changed = _put(space, subnet, new, rng)
    least, best = (outside_ms(changed), False, 0), [changed]
    if least[0] == 0:
        return changed
    start, end = space.spans[new]
    before = set(changed)
    for link in _others(space, changed):
        if space.spans[link][0] < end and space.spans[link][1] > start:
            continue
        for candidate in _replacements(space, changed, link, rng):
            # The fewer links change, the less of what made the subnet good is lost.
            changes = len(before.symmetric_difference(candidate))
            rank = outside_ms(candidate), space.spans[link][0] < end, changes
            if rank < least:
                least, best = rank, []
            if rank == least:
                best.append(candidate)
    return best[rng.integers(len(best))]


class _Buckets:
    """All subnets whose rounded latency may lie in a range, numbered: `count` of them.

    Subnets are told apart by their rounded latency first, then link by link.
    """

    def __init__(self, space: SubnetSpace, times_ms: list[float], low_ms: float, high_ms: float) -> None:
        width_ms = max(high_ms / _BUCKETS, _LEAST_BUCKET_MS)
        slack = space.places / 2 + 1
        first = max(0, int(min(low_ms / width_ms, _BUCKETS + 2 * slack) - slack))
        size = int(high_ms / width_ms + slack) + 1
        self._space = space
        # Nothing above the range is needed, and a link that alone exceeds it is in no subnet.
        self._bucket = [round(min(ms / width_ms, size)) for ms in times_ms]
        self._ways = self._count(size)
        self._first = first
        self._until = list(accumulate(self._ways[0][first:]))
        self.count: int = self._until[-1] if self._until else 0

    def subnet(self, number: int) -> Subnet:
        """Return the subnet of a number in 0..count - 1."""
        index = bisect_right(self._until, number)
        number -= self._until[index - 1] if index else 0
        bucket = self._first + index
        place = 0
        way: list[int] = []
        while place < self._space.places:
            for link in self._space.links_from[place]:
                left = bucket - self._bucket[link]
                after = self._ways[self._space.spans[link][1]][left] if left >= 0 else 0
                if number < after:
                    break
                number -= after
            way.append(link)
            place, bucket = self._space.spans[link][1], left
        return tuple(way)

    def _count(self, size: int) -> list[list[int]]:
        """Ways from every place to the output by rounded latency, [n + 1][size]; Python's integers do not overflow."""
        ways = np.zeros((self._space.places + 1, size), dtype=object)
        ways[-1, 0] = 1
        for place in reversed(range(self._space.places)):
            for link in self._space.links_from[place]:
                bucket = self._bucket[link]
                ways[place, bucket:] += ways[self._space.spans[link][1], : max(0, size - bucket)]
        counted: list[list[int]] = ways.tolist()
        return counted


def _check_range(low_ms: float, high_ms: float) -> None:
    if not low_ms <= high_ms:
        raise InvalidInputError(f"{low_ms} to {high_ms} ms is no range", where="high_ms")


def _others(space: SubnetSpace, subnet: Subnet) -> list[int]:
    within = set(subnet)
    return [link for link in range(len(space.starts)) if link not in within]


def _around(space: SubnetSpace, subnet: Subnet, link: int) -> tuple[Subnet, int, int, Subnet]:
    """The links that stay before `link`, the places where they end and where those begin that stay after, and those."""
    start, end = space.spans[link]
    head = tuple(step for step in subnet if space.spans[step][1] <= start)
    tail = tuple(step for step in subnet if space.spans[step][0] >= end)
    left = space.spans[head[-1]][1] if head else 0
    right = space.spans[tail[0]][0] if tail else space.places
    return head, left, right, tail


def _put(space: SubnetSpace, subnet: Subnet, link: int, rng: np.random.Generator) -> Subnet:
    head, left, right, tail = _around(space, subnet, link)
    start, end = space.spans[link]
    return (*head, *space.random_way(left, start, rng), link, *space.random_way(end, right, rng), *tail)


def _replacements(space: SubnetSpace, subnet: Subnet, link: int, rng: np.random.Generator) -> Iterator[Subnet]:
    """All subnets with the link put in, by all ways to fill the gaps; of very many a random part."""
    head, left, right, tail = _around(space, subnet, link)
    start, end = space.spans[link]
    if space.ways(left, start) * space.ways(end, right) > _LISTED:
        for _ in range(_LISTED):
            yield _put(space, subnet, link, rng)
        return
    for before, after in product(_ways(space, left, start), _ways(space, end, right)):
        yield (*head, *before, link, *after, *tail)


def _ways(space: SubnetSpace, start: int, end: int) -> list[Subnet]:
    if start == end:
        return [()]
    return [
        (link, *rest)
        for link in space.links_from[start]
        if space.spans[link][1] <= end
        for rest in _ways(space, space.spans[link][1], end)
    ]
