"""Trains the network that foretells how likely exits are right from the confidences of those already run (EINet IV-C).

It works over slots: every exit point, whichever branch is resident there, then the final exit. So in training a branch
is drawn for every sample and slot, slots are skipped at random, and a random one is the last that was run.

EINet foretells the confidences ahead, and has the one at hand as it was seen. But a plan is worth the accuracy it leads
to, of which confidences say little, least of branches that were trained for a short while. So here the label is whether
an exit is right, of passed exits too, and confidences are calibrated before they go in. Which branch it was says
nothing of the sample, so calibrated confidences are moved to have the slot's mean, by the branch's offset, and labels
with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from meedge_ray.bundle.files import write_atomically
from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import FINAL, Bundle, Predictor
from meedge_ray.search.inputs import Integers
from meedge_ray.search.predictor import ConfidencePredictor
from meedge_ray.train.calibration import chances, fit_calibrations
from meedge_ray.train.confidences import (
    measure_confidences,
    read_confidences,
    write_confidences,
)
from meedge_ray.train.exit_policy import samplewise_gain
from meedge_ray.train.progress import Report, silent
from meedge_ray.train.samples import Samples

HIDDEN = (64, 32)
_STEPS = 2000
_BATCH = 256
_LEARNING_RATE = 3e-3
_CLIPPED_NORM = 1.0
_HELD_OUT = 5  # one sample in so many
_DRAWS = 16_384  # situations the error is measured in
_REPORTED = 100

_Parameters = list[tuple[Tensor, Tensor]]


class _Batch(NamedTuple):
    """Of every sample and slot: what was seen, what the prediction should be, where it counts, the branch's offset."""

    seen: Tensor
    label: Tensor
    mask: Tensor
    offset: Tensor


@dataclass(frozen=True, slots=True)
class TrainedPredictor:
    """Tensors as `Predictor` says; root mean squared errors on held-out samples.

    `trivial_error` is that of predicting every branch's mean. `held_out` are indices of those samples.
    """

    tensors: dict[str, NDArray[np.float32]]
    error: float
    trivial_error: float
    held_out: Integers


def with_predictor(
    bundle: Bundle, store: UnitStore, validation: Samples, work: Path, *, seed: int, report: Report
) -> Bundle:
    """Return the bundle with confidences and predictor, both put into the store.

    Args:
        bundle: all of whose branches the store holds.
        store: takes both units.
        validation: samples of which the confidences are taken.
        work: keeps the confidences, for a build that goes on.
        seed: of the training.
        report: told the progress.
    """
    path = work / "confidences.safetensors"
    if not path.exists():
        write_atomically(path, write_confidences(measure_confidences(bundle, store, validation, report)))
    confidences = read_confidences(path)
    slots = slots_of(bundle, confidences.names)
    calibrations = fit_calibrations(confidences, slots)
    offsets = np.array([calibrations[name].offset for name in confidences.names], np.float32)
    seen, right = chances(confidences, calibrations), confidences.right - offsets[:, None]
    trained = train_predictor(seen, right, offsets, slots, seed=seed, report=report)
    unit = store.put(save(trained.tensors))
    predictor = Predictor(unit=unit, hidden=HIDDEN, error=trained.error, calibrations=calibrations)
    whole = replace(bundle, confidences=store.put(path.read_bytes()), predictor=predictor)
    foretells = ConfidencePredictor.from_tensors(trained.tensors)
    gain, gain_error = samplewise_gain(whole, confidences, foretells, trained.held_out)
    return replace(whole, predictor=replace(predictor, gain=gain, gain_error=gain_error))


def slots_of(bundle: Bundle, names: Sequence[str]) -> list[Integers]:
    """Return the rows of every slot's branches, the final exit's slot last."""
    branches = chain(bundle.branches, *bundle.baselines.values())
    slot_of = {FINAL: bundle.exit_count, **{branch.name: branch.exit_index for branch in branches}}
    slots = np.array([slot_of[name] for name in names])
    return [np.flatnonzero(slots == slot) for slot in range(bundle.exit_count + 1)]


def train_predictor(
    seen: NDArray[np.float32],
    foretold: NDArray[np.float32],
    offsets: NDArray[np.float32],
    slots: Sequence[Integers],
    *,
    hidden: tuple[int, int] = HIDDEN,
    seed: int = 0,
    report: Report = silent,
) -> TrainedPredictor:
    """Train on four fifths of the samples, measure the errors on the others.

    On one machine the same seed gives the same bits.

    Args:
        seen: of every exit and sample what its result tells, less the exit's offset [exits, samples].
        foretold: what is to be predicted of it, less the offset [exits, samples].
        offsets: [exits].
        slots: rows of every slot's branches; a slot may have none, the last has the final exit.
        hidden: widths of the hidden layers.
        seed: of the split, of the first weights and of what is drawn.
        report: told the progress.
    """
    # Widths and steps take no part in what the error is measured on.
    random, later = np.random.default_rng(seed).spawn(2)
    order = random.permutation(seen.shape[1])
    held_out = order[: max(1, len(order) // _HELD_OUT)]
    learnt = order[len(held_out) :] if len(order) > 1 else order
    situations = _Situations(seen, foretold, offsets, slots, learnt)
    parameters = _first_parameters((len(slots), *hidden, len(slots)), situations.means, random)
    flat = [part for layer in parameters for part in layer]
    optimizer = torch.optim.Adam(flat, _LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for step in range(_STEPS):
        batch = situations.draw(learnt[random.integers(len(learnt), size=_BATCH)], random)
        optimizer.zero_grad()
        loss = _squared_error(_predicted(parameters, batch.seen), batch.label, batch.mask)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(flat, _CLIPPED_NORM)
        optimizer.step()
        schedule.step()
        if (step + 1) % _REPORTED == 0:
            report("train predictor", step + 1, _STEPS)
    batch = situations.draw(np.resize(held_out, _DRAWS), later)
    with torch.no_grad():
        predicted = _predicted(parameters, batch.seen).clamp(0, 1)
    return TrainedPredictor(
        tensors={
            f"{kind}{layer}": part.detach().numpy()
            for layer, parts in enumerate(parameters)
            for kind, part in zip(("weight", "bias"), parts, strict=True)
        },
        error=_error(predicted, batch),
        held_out=held_out,
        trivial_error=_error(torch.from_numpy(situations.means), batch),
    )


class _Situations:
    """Draws what a predictor may be asked.

    `means` [slots] are those of the samples learnt from; a slot without branches has mean 0.
    """

    def __init__(
        self,
        told: NDArray[np.float32],
        foretold: NDArray[np.float32],
        offsets: NDArray[np.float32],
        slots: Sequence[Integers],
        learnt: Integers,
    ) -> None:
        self._count = np.array([len(rows) for rows in slots])
        self.means = np.zeros(len(slots), np.float32)
        for slot, rows in enumerate(slots):
            if len(rows):
                self.means[slot] = foretold[np.ix_(rows, learnt)].mean()
        self._told, self._foretold, self._offsets = told, foretold, offsets
        self._rows = np.stack([np.resize(rows if len(rows) else [0], self._count.max()) for rows in slots])
        # Asked before anything was run, and after every output.
        self._known = np.flatnonzero(np.concatenate([[True], self._count[:-1] > 0]))

    def draw(self, samples: Integers, random: np.random.Generator) -> _Batch:
        """Return a situation of every sample."""
        size, slots = len(samples), np.arange(len(self._count))
        drawn = (random.random((size, len(slots))) * self._count).astype(np.int64)
        branch = self._rows[slots, drawn]
        told = self._told[branch, samples[:, None]]
        known = random.choice(self._known, (size, 1))
        # Few skipped slots are as likely as many.
        run = random.random((size, len(slots))) < random.random((size, 1))
        run = (run | (slots == known - 1)) & (self._count > 0) & (slots < known)
        last = np.maximum.accumulate(np.where(run, slots, -1), axis=1)
        filled = np.take_along_axis(told, np.maximum(last, 0), axis=1)
        seen = np.where((last >= 0) & (slots < known), filled, np.float32(0))
        label = self._foretold[branch, samples[:, None]]
        mask = (run | (slots >= known) & (self._count > 0)).astype(np.float32)
        return _Batch(*(torch.from_numpy(part) for part in (seen, label, mask, self._offsets[branch])))


def _first_parameters(widths: Sequence[int], means: NDArray[np.float32], random: np.random.Generator) -> _Parameters:
    # The last bias begins at the answer that is right on average.
    parameters = []
    for inputs, outputs in pairwise(widths):
        bound = np.sqrt(1 / inputs)
        drawn = random.uniform(-bound, bound, (inputs + 1, outputs)).astype(np.float32)
        parameters.append((torch.from_numpy(drawn[:-1].copy()), torch.from_numpy(drawn[-1].copy())))
    parameters[-1][1].copy_(torch.from_numpy(means))
    for layer in parameters:
        for part in layer:
            part.requires_grad_()
    return parameters


def _predicted(parameters: _Parameters, seen: Tensor) -> Tensor:
    (weight, bias), *others = parameters
    values = torch.addmm(bias, seen, weight)
    for weight, bias in others:
        values = torch.addmm(bias, values.relu(), weight)
    return values


def _squared_error(predicted: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    # Of slots that were skipped, no result is at hand or ahead (EINet, equation 3, leaves out all that were passed).
    return (mask * (predicted - label) ** 2).sum() / mask.sum()


def _error(predicted: Tensor, batch: _Batch) -> float:
    # As predictions are used: of the very branch.
    confidence = (predicted + batch.offset).clamp(0, 1)
    return _squared_error(confidence, batch.label + batch.offset, batch.mask).sqrt().item()
