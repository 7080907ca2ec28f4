"""From stored units to an engine."""

from collections.abc import Iterable, Sequence
from functools import partial

from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import Block, Branch, InputSpec
from meedge_ray.runtime.engine import Candidate, Engine


def load_engine(store: UnitStore, input_spec: InputSpec, blocks: Sequence[Block], final_accuracy: float) -> Engine:
    """Return an engine with a stored backbone and no branches.

    Raises:
        NotFoundError: a block's unit is not in the store.
        IntegrityError: a block's unit is damaged.
    """
    units = [store.read(block.unit.sha256) for block in blocks]
    return Engine(input_spec, units, final_accuracy=final_accuracy)


def stored_candidates(store: UnitStore, branches: Iterable[Branch]) -> list[Candidate]:
    """Return the branches with the way to get their verified bytes, as `Engine.place` wants them."""
    return [(branch, partial(store.read, branch.unit.sha256)) for branch in branches]
