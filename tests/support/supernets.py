"""A small supernet of real ONNX units without torch."""

from dataclasses import dataclass, replace

import numpy as np
from worlds import CHANNELS, SHAPE, World, block_bytes, make_world

from meedge_ray.bundle.store import sha256_of
from meedge_ray.domain.elastic import Bundle, Unit, Variant
from meedge_ray.runtime.engine import Body, Engine
from meedge_ray.runtime.subnets import subnet_blocks

PLACES = ((0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3))  # of the variants


@dataclass(frozen=True)
class Supernet:
    """Three convolutions and a head, with variants; links 0 to 3 are blocks, 4 to 9 the variants."""

    world: World
    bundle: Bundle
    units: dict[str, bytes]

    def read(self, unit):
        return self.units[unit.sha256]

    def body(self, *subnet, accuracy=0.5):
        return Body(subnet_blocks(self.bundle, subnet), accuracy)

    def engine(self, *subnet):
        """Return a new engine of nothing but this subnet."""
        files = [self.read(block.unit) for block in self.body(*subnet).blocks]
        return Engine(self.bundle.input, files, final_accuracy=0.5)

    def size_bytes(self, *links):
        return sum(self.bundle.links[link].unit.size_bytes for link in set(links))


def make_supernet(seed=0, **options):
    """Build it; a variant has weights of its own."""
    world = make_world(seed, **options)
    random = np.random.default_rng([seed, 1])
    units = dict(world.units)
    variants = []
    for start, end in PLACES:
        shape = (CHANNELS, SHAPE[0] if start == 0 else CHANNELS)
        data = block_bytes((random.standard_normal(shape) * 0.5).astype(np.float32))
        units[sha256_of(data)] = data
        variants.append(
            Variant(
                name=f"{'shrunk50' if end == start + 1 else f'merged-{end}'}-{start}",
                kind="shrunk" if end == start + 1 else "merged",
                start=start,
                end=end,
                unit=Unit(sha256=sha256_of(data), size_bytes=len(data)),
                parameters=CHANNELS,
                flops=1,
                accuracy_loss=0.1,
            )
        )
    [profile] = world.bundle.profiles.values()
    names = [variant.name for variant in variants]
    profile = replace(
        profile,
        variant_ms={name: 0.5 + index / 10 for index, name in enumerate(names)},
        variant_std_ms={name: index / 100 for index, name in enumerate(names)},
    )
    bundle = replace(world.bundle, variants=tuple(variants), profiles={profile.device_type: profile})
    return Supernet(world, bundle, units)
