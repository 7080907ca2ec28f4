"""How accurate subnets are on the device's own data, each common beginning run once (AdaptiveNet 5.2)."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from meedge_ray.domain.elastic import InputSpec, Link, Unit
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.domain.quantity import format_bytes
from meedge_ray.runtime.memory import release_to_os
from meedge_ray.runtime.resident import ResidentUnits
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.runtime.sessions import Floats
from meedge_ray.search.prefix_tree import OUTPUT, Schedule, schedule
from meedge_ray.search.subnets import Subnet, SubnetSpace

BATCH = 128

Labels = npt.NDArray[np.int64]


class SubnetEvaluator:
    """Runs groups of subnets over the same samples: all of them over a batch, then over the next one.

    In memory are the units of the last group, and the features that others of the group still need, within the memory
    given. `evaluated` counts the subnets run over the samples so far, `seconds` what that took with loading.
    """

    def __init__(
        self,
        links: Sequence[Link],
        read: Callable[[Unit], bytes],
        input_spec: InputSpec,
        samples: Any,  # noqa: ANN401 - whatever a user hands over
        labels: Any,  # noqa: ANN401
        link_ms: npt.ArrayLike,
        *,
        cache_bytes: int,
        batch: int = BATCH,
    ) -> None:
        """Check the samples, and run the blocks one by one for the shapes of the features.

        Args:
            links: of the supernet, the blocks first.
            read: returns a unit's verified bytes; asked again whenever a unit is loaded again.
            input_spec: what raw samples are like.
            samples: raw ones, [n, *input_spec.shape].
            labels: [n] class numbers; None takes what the original network says for right: its oracle, where data has
                no labels (8). That runs it once over all samples.
            link_ms: [L] time of every link on this device: what sharing a feature saves.
            cache_bytes: the most that features kept for other subnets may take; 0 keeps none.
            batch: samples run at once. Features of one batch are in memory.

        Raises:
            InvalidInputError: samples or labels cannot be used (`where` is "data"), there is not so much memory
                ("cache_bytes"), or a block does not fit the one before.
            MeedgeError: whatever getting a unit's bytes raised.
        """
        if batch < 1:
            raise InvalidInputError(f"{batch} samples are no batch", where="batch", do="Give 1 or more")
        _check_memory(cache_bytes)
        self.evaluated = 0
        self.seconds = 0.0
        self._links = tuple(links)
        self._read = read
        self._space = SubnetSpace([link.start for link in links], [link.end for link in links])
        self._link_ms = self._space.read_ms(link_ms)
        self._cache_bytes = cache_bytes
        self._batch = batch
        self._normalizer = Normalizer(input_spec)
        self._samples = self._read_samples(samples)
        self._units = ResidentUnits(threads=1)
        self._held: set[Unit] = set()
        self._shapes = self._feature_shapes(input_spec)
        self.labels = (
            self.predicted(self._space.original)
            if labels is None
            else _read_labels(labels, len(self._samples), classes=self._shapes[-1][1])
        )

    def __call__(self, subnets: Sequence[Subnet]) -> list[float]:
        """Return the share, 0..1, of the samples that each subnet gets right.

        Raises:
            InvalidInputError: one is no subnet, or a unit cannot be used where its link is.
            MeedgeError: whatever getting a unit's bytes raised.
        """
        right = np.zeros(len(subnets), np.int64)
        for which, number, classes in self._run(subnets):
            right[number] += np.count_nonzero(classes == self.labels[which])
        shares: list[float] = (right / len(self._samples)).tolist()
        return shares

    def predicted(self, subnet: Subnet) -> Labels:
        """Return the class that a subnet finds in every sample, [n].

        Raises:
            InvalidInputError: it is no subnet, or a unit cannot be used where its link is.
            MeedgeError: whatever getting a unit's bytes raised.
        """
        labels = np.zeros(len(self._samples), np.int64)
        for which, _, classes in self._run([subnet]):
            labels[which] = classes
        return labels

    def _run(self, subnets: Sequence[Subnet]) -> Iterator[tuple[slice, int, Labels]]:
        """Yield the classes found in some samples by the subnet of a number; in the end every one's in every sample."""
        if not subnets:
            return
        start = perf_counter()
        made = schedule(self._space, subnets, self._link_ms, self._place_bytes(), self._cache_bytes)
        self._load(subnets)
        for first in range(0, len(self._samples), self._batch):
            which = slice(first, first + self._batch)
            for number, logits in self._outputs(made, self._normalizer.batch(self._samples[which])):
                yield which, number, logits.argmax(axis=1)
        self.evaluated += len(subnets)
        self.seconds += perf_counter() - start

    def _outputs(self, made: Schedule, inputs: Floats) -> Iterator[tuple[int, Floats]]:
        slots: list[Floats | None] = [None] * made.slots
        slots[0] = inputs
        for index, step in enumerate(made.steps):
            features = slots[step.source]
            assert features is not None  # the schedule reads only what it wrote
            value = self._units[self._links[step.link].unit](features)
            if step.last:
                slots[step.source] = None
            if step.target == OUTPUT:
                for number in made.outputs[index]:
                    yield number, value
            else:
                slots[step.target] = value

    def _load(self, subnets: Sequence[Subnet]) -> None:
        """Have the units of these subnets in memory and no others: those held before go before others come."""
        links = [self._links[link] for link in sorted({link for subnet in subnets for link in subnet})]
        wanted = {link.unit for link in links}
        self._units = self._units.only(self._held & wanted)
        if self._held - wanted:
            release_to_os()
        self._held &= wanted
        for link in links:
            name = f"link {link.name}"
            self._units.load([link.unit], self._read, name=name)
            self._held.add(link.unit)
            start, end = self._shapes[link.start], self._shapes[link.end]
            self._units.output_shape(link.unit, start, name=name, expected=end)

    def _place_bytes(self) -> list[int]:
        samples = min(self._batch, len(self._samples))
        return [prod(shape) * np.dtype(np.float32).itemsize * samples for shape in self._shapes]

    def _feature_shapes(self, input_spec: InputSpec) -> list[tuple[int, ...]]:
        """Of every place, with a batch of 1; one block at a time is in memory."""
        shapes: list[tuple[int, ...]] = [(1, *input_spec.shape)]
        for block in self._links[: self._space.places]:
            name = f"link {block.name}"
            units = ResidentUnits(threads=1)
            units.load([block.unit], self._read, name=name)
            shapes.append(units.output_shape(block.unit, shapes[-1], name=name))
        if len(shapes[-1]) != 2:
            raise InvalidInputError(
                f"the last block returns shape {shapes[-1]}, expected are logits (1, classes)", where=name
            )
        return shapes

    def _read_samples(self, samples: Any) -> npt.NDArray[Any]:  # noqa: ANN401
        shape = ", ".join(map(str, self._normalizer.shape))
        do = f"Pass raw samples as the data set stores them, an array (n, {shape})"
        try:
            array = np.asarray(samples)
        except (ValueError, TypeError) as error:
            raise InvalidInputError(f"the samples are no array ({error})", where="data", do=do) from error
        if not array.size or not array.ndim:
            raise InvalidInputError("there are no samples", where="data", do=do)
        try:
            for first in range(0, len(array), self._batch):
                self._normalizer.batch(array[first : first + self._batch])
        except InvalidInputError as error:
            raise InvalidInputError(error.what, where="data", do=do) from error
        return array


def _read_labels(labels: Any, count: int, *, classes: int) -> Labels:  # noqa: ANN401
    try:
        array = np.asarray(labels)
    except (ValueError, TypeError) as error:
        raise _bad_labels(f"the labels are no array ({error})") from error
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise _bad_labels(f"the labels are {array.dtype} of shape {array.shape}, expected are {count} whole numbers")
    unknown = np.flatnonzero((array < 0) | (array >= classes))
    if len(unknown):
        raise _bad_labels(
            f"sample {unknown[0]} has label {array[unknown[0]]}, the model knows classes 0 to {classes - 1}"
        )
    return array.astype(np.int64)


def _bad_labels(what: str) -> InvalidInputError:
    return InvalidInputError(
        what, where="data", do="Number the classes as the model does, or leave the labels out: then the original judges"
    )


def _check_memory(cache_bytes: int) -> None:
    available = int(psutil.virtual_memory().available)
    if not 0 <= cache_bytes <= available:
        raise InvalidInputError(
            f"{cache_bytes} bytes cannot be had for features, {available} ({format_bytes(available)}) are available",
            where="cache_bytes",
            do="Give fewer; 0 keeps no features and runs every subnet alone",
        )
