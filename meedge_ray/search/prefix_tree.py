"""In which order to evaluate subnets, and which features to keep, so that common beginnings run once (AdaptiveNet 5.2).

Subnets that begin with the same links form a tree (Figure 6): a node is a prefix, a sequence of links; a leaf is a
subnet. The schedule goes depth-first; a feature is held while more than the step at hand needs it, and what is held at
once stays within the memory given. The published rule ranks prefixes by latency x sharers and deletes the less
important ones. Here the same tree is solved by dynamic programming.

At a node v just computed, with m bytes free for what lies below and R ms to compute v again from the nearest feature
held above, every child c costs either

    held(c)  = t(c) + cost(c, m - bytes(v), t(c)),    v stays until the child's subtree is done, or
    again(c) = R + t(c) + cost(c, m, R + t(c)),       v is released, and computed again for the next one,

and the first child of the second kind costs R less, as v is still there when the held ones are done. cost(v, m, R) is
the least sum. Where the bytes for holding all that is shared suffice, no search is needed: children are done in the
order that needs least, the one that needs most comes last, when v itself goes.

That is exact among depth-first schedules that hold a feature either through the whole of a child's subtree or not at
all, so more memory never costs time. Where not all fits and memory is more than 512 times the greatest common divisor
of the features' bytes, these are rounded up to a 512th of it: still never more than is allowed, and quick to solve, but
exact only for the rounded bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, inf
from typing import NamedTuple

import numpy.typing as npt

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search.inputs import read_integers
from meedge_ray.search.subnets import Subnet, SubnetSpace

OUTPUT = -1  # the target of a step that ends a subnet
_INPUT = 0  # the slot of the input
_GRAINS = 512


class Step(NamedTuple):
    """Runs a link on the feature in slot `source`, whose output goes to slot `target`; OUTPUT where a subnet ends.

    `last`: nothing later needs the feature in `source`; it can go as soon as the step is done.
    """

    link: int
    source: int
    target: int
    last: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """What to run, in order. Slot 0 holds the input.

    `outputs` maps the number of a step that ends a subnet to the numbers of the subnets it is: several where some are
    equal. `latency_ms` is the sum of the steps' times, `alone_ms` that of all different subnets, each alone;
    `cached_bytes` the most that is ever held at once for later steps, besides a step's own input and output.
    """

    steps: tuple[Step, ...]
    slots: int
    outputs: Mapping[int, tuple[int, ...]]
    latency_ms: float
    alone_ms: float
    cached_bytes: int


def schedule(
    space: SubnetSpace,
    subnets: Sequence[Subnet],
    link_ms: npt.ArrayLike,
    place_bytes: Sequence[int],
    memory_bytes: int,
) -> Schedule:
    """Return the quickest schedule of `subnets` that never holds more than `memory_bytes`.

    Args:
        space: what the subnets are of.
        subnets: in any order; of equal ones one is run.
        link_ms: [L] time of every link.
        place_bytes: [n + 1] bytes of the feature at every place.
        memory_bytes: 0 holds nothing: every subnet runs alone.

    Raises:
        InvalidInputError: one of them is no subnet of this space, a number is missing or negative.
    """
    times_ms = space.read_ms(link_ms)
    sizes = read_integers(place_bytes, "place_bytes", count=space.places + 1).tolist()
    if memory_bytes < 0:
        raise InvalidInputError(f"{memory_bytes} bytes cannot be held", where="memory_bytes", do="Give 0 or more")
    numbers: dict[Subnet, list[int]] = {}
    for number, subnet in enumerate(subnets):
        space.check(subnet)
        numbers.setdefault(tuple(subnet), []).append(number)
    link_bytes = [sizes[end] for end in space.ends.tolist()]
    planner = _Planner()
    root = _node((), 0, sorted(numbers), 0, link_bytes, times_ms)
    if root.sharing <= memory_bytes:
        planner.run_all(root, memory_bytes)
    else:
        grain = _grain(sizes[1:], memory_bytes)
        link_units = [-(-size_bytes // grain) for size_bytes in link_bytes]
        planner.run_all(_node((), 0, sorted(numbers), 0, link_units, times_ms), memory_bytes // grain)
    steps, cached_bytes = _released(planner.runs, link_bytes)
    return Schedule(
        steps=steps,
        slots=1 + max([_INPUT, *(step.target for step in steps)]),
        outputs={step: tuple(numbers[subnet]) for step, subnet in planner.outputs.items()},
        latency_ms=sum(times_ms[step.link] for step in steps),
        alone_ms=sum(space.latency_ms(subnet, times_ms) for subnet in numbers),
        cached_bytes=cached_bytes,
    )


@dataclass(slots=True, eq=False)
class _Node:
    """A prefix after which subnets part, or whose feature is smaller than that of the next such; or a whole subnet.

    `links` lead to it from its parent in `ms`. `size` is what its feature takes, in the unit of the call, `sharing`
    what has to be held for running all below it once, besides what is held above, and `work_ms` the time of that.
    `children` come in the order of what sharing needs.
    """

    links: Subnet
    ms: float
    size: int
    subnet: Subnet | None = None
    children: "list[_Node]" = field(default_factory=list)
    work_ms: float = 0.0
    sharing: int = 0


def _node(
    links: Subnet,
    depth: int,
    subnets: Sequence[Subnet],
    size: int,
    link_sizes: Sequence[int],
    link_ms: Sequence[float],
) -> _Node:
    # `subnets`, sorted, share their first `depth` links; the last of those are `links`.
    ms = sum(link_ms[link] for link in links)
    if depth and len(subnets) == 1:
        rest = subnets[0][depth:]
        return _Node(links + rest, ms + sum(link_ms[link] for link in rest), 0, subnets[0])
    node = _Node(links, ms, size)
    for group in _parted(subnets, depth):
        stop = _worth_holding(group, depth, link_sizes)
        child_size = link_sizes[group[0][stop - 1]]
        node.children.append(_node(group[0][depth:stop], stop, group, child_size, link_sizes, link_ms))
    node.children.sort(key=lambda child: child.sharing)
    node.work_ms = sum(child.ms + child.work_ms for child in node.children)
    # The feature itself is held for all children but the last.
    *others, last = [0, *(child.sharing for child in node.children)]
    node.sharing = max(last, size + others[-1]) if len(node.children) > 1 else last
    return node


def _parted(subnets: Sequence[Subnet], depth: int) -> list[list[Subnet]]:
    groups: dict[int, list[Subnet]] = {}
    for subnet in subnets:
        groups.setdefault(subnet[depth], []).append(subnet)
    return list(groups.values())


def _worth_holding(group: Sequence[Subnet], depth: int, link_sizes: Sequence[int]) -> int:
    # Up to where these part, a feature is worth holding only if all after it, which would save more, are larger. Of
    # sorted sequences the first and the last part first.
    first, last = group[0], group[-1]
    parting = depth + 1
    while len(group) > 1 and first[parting] == last[parting]:
        parting += 1
    return min(range(depth + 1, parting + 1), key=lambda length: (link_sizes[first[length - 1]], -length))


class _Path(NamedTuple):
    """How to compute a feature again: `links` from the one held in `slot`, in `ms`."""

    slot: int
    links: Subnet
    ms: float


class _Run(NamedTuple):
    link: int
    source: int
    target: int


class _Plan(NamedTuple):
    """What running all below a node takes; its feature is held for the first children, released with each other one."""

    ms: float
    held: Sequence[_Node]
    released: Sequence[_Node]


class _Planner:
    """The dynamic program over the tree, and the walk along what it chose."""

    def __init__(self) -> None:
        self.runs: list[_Run] = []
        self.outputs: dict[int, Subnet] = {}
        self._plans: dict[tuple[int, int, float], _Plan] = {}

    def run_all(self, root: _Node, free: int) -> None:
        for child in root.children:  # the input stays at hand, and nobody counts it
            self._run(child.links, _INPUT, _INPUT + 1, child.subnet)
            self._go(child, _INPUT + 1, free, _Path(_INPUT, child.links, child.ms))

    def _go(self, node: _Node, slot: int, free: int, again: _Path) -> None:
        """Run all below a node whose feature is in `slot`; the slots after it are free, and so much memory."""
        plan = self._plan(node, free, again.ms)
        for child in plan.held:
            self._run(child.links, slot, slot + 1, child.subnet)
            self._go(child, slot + 1, free - node.size, _Path(slot, child.links, child.ms))
        for index, child in enumerate(plan.released):
            if index:
                self._run(again.links, again.slot, slot, None)
            self._run(child.links, slot, slot, child.subnet)
            self._go(child, slot, free, _Path(again.slot, again.links + child.links, again.ms + child.ms))

    def _run(self, links: Subnet, source: int, target: int, subnet: Subnet | None) -> None:
        for link in links:
            self.runs.append(_Run(link, source, target))
            source = target
        if subnet is not None:
            self.outputs[len(self.runs) - 1] = subnet
            self.runs[-1] = self.runs[-1]._replace(target=OUTPUT)

    def _plan(self, node: _Node, free: int, again_ms: float) -> _Plan:
        if node.sharing <= free:
            return _Plan(node.work_ms, node.children[:-1], node.children[-1:])
        key = (id(node), free, again_ms)
        if key not in self._plans:
            self._plans[key] = self._solved(node, free, again_ms)
        return self._plans[key]

    def _solved(self, node: _Node, free: int, again_ms: float) -> _Plan:
        left = free - node.size
        held_ms, released_ms = [], []
        for child in node.children:
            again_too = again_ms + child.ms
            released_ms.append(again_too + self._plan(child, free, again_too).ms)
            held_ms.append(child.ms + self._plan(child, left, child.ms).ms if left >= 0 else inf)
        losses = [held - released for held, released in zip(held_ms, released_ms, strict=True)]
        released = {index for index, loss in enumerate(losses) if loss > 0}
        if not released:
            # The feature may go with one child at least: that one finds it still there.
            easiest = max(range(len(losses)), key=losses.__getitem__)
            released = {easiest} if losses[easiest] + again_ms >= 0 else set()
        return _Plan(
            sum(released_ms[index] if index in released else ms for index, ms in enumerate(held_ms))
            - (again_ms if released else 0.0),
            [child for index, child in enumerate(node.children) if index not in released],
            [child for index, child in enumerate(node.children) if index in released],
        )


def _grain(place_bytes: Sequence[int], memory_bytes: int) -> int:
    common = gcd(*place_bytes) or 1
    return common * max(1, -(-memory_bytes // (common * _GRAINS)))


def _released(runs: Sequence[_Run], link_bytes: Sequence[int]) -> tuple[tuple[Step, ...], int]:
    """Find the last use of every feature, and the most bytes held at once."""
    steps: list[Step] = []
    needed: set[int] = set()
    for link, source, target in reversed(runs):
        steps.append(Step(link, source, target, source == target or source not in needed))
        needed.discard(target)
        needed.add(source)
    steps.reverse()
    held: dict[int, int] = {}
    most = 0
    for step in steps:
        if step.last:
            held.pop(step.source, None)
        most = max(most, sum(held.values()))
        if step.target != OUTPUT:
            held[step.target] = link_bytes[step.link]
    return tuple(steps), most
