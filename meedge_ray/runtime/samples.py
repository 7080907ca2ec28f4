"""Raw samples to the backbone's input, the same way in training and on a device."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from meedge_ray.domain.elastic import InputSpec
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.runtime.sessions import Floats


class Normalizer:
    """Turns raw samples into the backbone's input, and refuses what is none."""

    def __init__(self, spec: InputSpec) -> None:
        """Prepare for samples of `spec.shape`, channels first.

        Raises:
            InvalidInputError: mean or std fit neither the channels nor all of them, or a std is not above 0.
        """
        self.shape = spec.shape
        for field in (spec.mean, spec.std):
            if len(field) not in (1, spec.shape[0]):
                raise InvalidInputError(
                    f"{len(field)} numbers for {spec.shape[0]} channels",
                    where="input.mean or input.std",
                    do="Give one number a channel, or one for all",
                )
        if not all(value > 0 for value in spec.std):
            raise InvalidInputError("a standard deviation is not above 0", where="input.std")
        channels = (-1, *(1 for _ in spec.shape[1:]))
        mean, std = (np.asarray(field, np.float64).reshape(channels) for field in (spec.mean, spec.std))
        # One multiplication and one addition instead of three operations on every sample.
        self._factor = (spec.scale / std).astype(np.float32)
        self._offset = (-mean / std).astype(np.float32)

    def one(self, sample: Any) -> Floats:  # noqa: ANN401 - whatever a user hands over
        """Return a raw sample of shape `spec.shape` as input of batch 1.

        Raises:
            InvalidInputError: another shape, not numbers, or a number that is not finite.
        """
        return self._normalized(sample, batch=False)[None]

    def batch(self, samples: Any) -> Floats:  # noqa: ANN401
        """Return raw samples of shape `(n, *spec.shape)` as input.

        Raises:
            InvalidInputError: another shape, not numbers, or a number that is not finite.
        """
        return self._normalized(samples, batch=True)

    def raw(self, features: Floats) -> Floats:
        """Return the raw sample whose normalized values are `features`, of shape `spec.shape`."""
        return (features - self._offset) / self._factor

    def _normalized(self, raw: Any, *, batch: bool) -> Floats:  # noqa: ANN401
        array = _numbers(raw)
        if (array.shape[1:] if batch else array.shape) != self.shape:
            expected = f"(n, {', '.join(map(str, self.shape))})" if batch else str(self.shape)
            raise _refused(f"the sample has shape {array.shape}, expected is {expected}")
        if array.dtype.kind != "f":  # whole numbers are finite: the common case of bytes pays for no check
            return self._scaled(array)
        with np.errstate(over="ignore", invalid="ignore"):
            values = self._scaled(array)
        if not np.isfinite(values).all():
            raise _refused("the sample has values that are not finite numbers")
        return values

    def _scaled(self, array: NDArray[Any]) -> Floats:
        values = array.astype(np.float32)
        values *= self._factor
        values += self._offset
        return values


def _numbers(raw: Any) -> NDArray[Any]:  # noqa: ANN401
    try:
        array = np.asarray(raw)
    except (ValueError, TypeError) as error:
        raise _refused(f"the sample is not an array ({error})") from error
    if array.dtype.kind not in "fiub":
        raise _refused(f"the sample holds {array.dtype}, expected are numbers")
    return array


def _refused(what: str) -> InvalidInputError:
    return InvalidInputError(what, where="sample", do="Pass the raw sample as the data set stores it, channels first")
