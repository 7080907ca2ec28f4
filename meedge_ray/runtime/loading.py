"""From stored units to an engine."""

from collections.abc import Callable, Sequence

from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import Block, InputSpec, Unit
from meedge_ray.runtime.engine import Engine


def load_engine(store: UnitStore, input_spec: InputSpec, blocks: Sequence[Block], final_accuracy: float) -> Engine:
    """Return an engine with a stored backbone and no branches.

    Raises:
        NotFoundError: a block's unit is not in the store.
        IntegrityError: a block's unit is damaged.
    """
    units = [store.read(block.unit.sha256) for block in blocks]
    return Engine(input_spec, units, final_accuracy=final_accuracy)


def unit_reader(store: UnitStore) -> Callable[[Unit], bytes]:
    """Return what gives a unit's verified bytes, as `Engine.place` wants it."""
    return lambda unit: store.read(unit.sha256)
