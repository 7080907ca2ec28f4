"""Foretells how likely exits are right from the confidences of exits already run (EINet IV-C)."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search import native
from meedge_ray.search.inputs import Floats

_LAYERS = 3


class ConfidencePredictor:
    """Two hidden layers over slots: every exit point in order, whichever branch runs there, then the final exit.

    A layer is x @ weight + bias, with ReLU between; see `meedge_ray.domain.elastic.Predictor`. `packed` has the
    parameters of all layers in order.
    """

    __slots__ = ("_layers", "hidden", "packed", "slots")

    def __init__(self, layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> None:
        """Take weights [inputs, outputs] and biases [outputs] that fit each other, layer by layer."""
        self.slots = len(layers[0][0])
        self.hidden = (len(layers[1][0]), len(layers[2][0]))
        self.packed = np.concatenate([part.ravel() for layer in layers for part in layer])
        self._layers = layers

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> Self:
        """Take `weight0` [slots, h0], `bias0` [h0], `weight1` [h0, h1], `bias1`, `weight2` [h1, slots], `bias2`.

        Raises:
            InvalidInputError: one is missing, of another shape or type than float32, or not finite; or there are more.
        """
        names = {f"{kind}{layer}" for kind in ("weight", "bias") for layer in range(_LAYERS)}
        if tensors.keys() != names:
            raise _refused(f"there are {sorted(tensors)}, expected are {sorted(names)}")
        first = tensors["weight0"]
        slots = inputs = len(first) if first.ndim == 2 else 0
        layers = []
        for layer in range(_LAYERS):
            weight, bias = tensors[f"weight{layer}"], tensors[f"bias{layer}"]
            outputs = slots if layer == _LAYERS - 1 else bias.size
            if weight.shape != (inputs, outputs) or bias.shape != (outputs,) or not weight.size:
                raise _refused(f"layer {layer} has shapes {weight.shape} and {bias.shape} after {inputs} inputs")
            if not all(part.dtype == np.float32 and np.isfinite(part).all() for part in (weight, bias)):
                raise _refused(f"layer {layer} is not made of finite float32 numbers")
            layers.append((weight, bias))
            inputs = outputs
        return cls(layers)

    def predict(self, seen: NDArray[np.float32], known: int) -> Floats:
        """Return the chance [slots] that a result of each slot is right, 0..1, of passed ones too.

        They are those of an average branch of the slot: add the offset of the branch that is meant.

        Args:
            seen: [slots], contiguous: the calibrated confidence of every passed slot that was run, less its branch's
                offset; the same of the nearest earlier one where it was skipped, 0 before the first. What follows the
                `known` first is not read.
            known: slots that are passed, 0 to all.

        Raises:
            ValueError: `seen` has another type or length, or there are not so many slots.
        """
        out = np.empty(self.slots)
        if native.kernels is None:
            self._predict(seen, known, out)
        else:
            native.kernels.predict_confidences(seen, out, self.packed, known, *self.hidden)
        return out

    def _predict(self, seen: NDArray[np.float32], known: int, out: Floats) -> None:
        if seen.shape != (self.slots,) or seen.dtype != np.float32:
            raise ValueError("seen: wrong type or length")
        if not 0 <= known <= self.slots:
            raise ValueError("known: not between 0 and the slots")
        (weight0, bias0), (weight1, bias1), (weight2, bias2) = self._layers
        values = np.maximum(seen[:known] @ weight0[:known] + bias0, 0)
        values = np.maximum(values @ weight1 + bias1, 0)
        out[:] = np.clip(values @ weight2 + bias2, 0, 1)


def _refused(what: str) -> InvalidInputError:
    return InvalidInputError(what, where="predictor", do="Build the bundle again")
