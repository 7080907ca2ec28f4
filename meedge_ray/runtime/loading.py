"""From stored units to an engine and what plans for it."""

from collections.abc import Callable, Sequence

from safetensors import SafetensorError
from safetensors.numpy import load

from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import Block, Bundle, InputSpec, Unit
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime.engine import Engine
from meedge_ray.search.predictor import ConfidencePredictor


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


def load_predictor(store: UnitStore, bundle: Bundle) -> ConfidencePredictor | None:
    """Return the bundle's predictor of confidences; None where it has none.

    Raises:
        NotFoundError: its unit is not in the store.
        IntegrityError: its unit is damaged.
        InvalidInputError: its unit is no predictor of this bundle's exits.
    """
    return None if bundle.predictor is None else read_predictor(store.read(bundle.predictor.unit.sha256), bundle)


def read_predictor(data: bytes, bundle: Bundle) -> ConfidencePredictor:
    """Return the predictor of a unit's verified bytes.

    Raises:
        InvalidInputError: they are no predictor of this bundle's exits.
    """
    try:
        predictor = ConfidencePredictor.from_tensors(load(data))
    except SafetensorError as error:
        raise _unusable(f"cannot be read ({error})") from error
    if predictor.slots != len(bundle.blocks):
        raise _unusable(f"foretells {predictor.slots} exits, the model has {len(bundle.blocks)}")
    return predictor


def _unusable(what: str) -> InvalidInputError:
    return InvalidInputError(what, where="predictor", do="Build the bundle again")
