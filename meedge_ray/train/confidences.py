"""What every exit makes of every sample: the confidence-score profile (EINet IV-B).

The exported units are run, so that confidences are those a device will see.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import FINAL, Branch, Bundle, bytes_of
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.loading import load_engine, unit_reader
from meedge_ray.train.progress import Report
from meedge_ray.train.samples import Samples

_SAMPLES = 2000
_GROUP_BYTES = 64 * 2**20  # of branches in memory together


@dataclass(frozen=True, slots=True)
class Confidences:
    """Of every exit by name, its confidence [exits, samples] and whether it is right [exits, samples].

    An exit's confidence is the highest of its softmax.
    """

    names: tuple[str, ...]
    confidence: NDArray[np.float16]
    right: NDArray[np.bool_]


def measure_confidences(bundle: Bundle, store: UnitStore, validation: Samples, report: Report) -> Confidences:
    """Run every branch of the bundle and of its baselines, and the final exit, on validation samples.

    Args:
        bundle: what is run.
        store: holds its units.
        validation: at most 2,000 samples of it are run, spread evenly.
        report: told the progress.
    """
    spread = np.linspace(0, len(validation) - 1, min(len(validation), _SAMPLES)).round().astype(np.int64)
    samples = validation[spread]
    branches = list({branch.name: branch for branch in chain(bundle.branches, *bundle.baselines.values())}.values())
    engine = load_engine(store, bundle.input, bundle.blocks, bundle.final_accuracy)
    row_of = {name: row for row, name in enumerate([*(branch.name for branch in branches), FINAL])}
    confidence = np.zeros((len(row_of), len(samples)), np.float16)
    right = np.zeros((len(row_of), len(samples)), np.bool_)
    done = 0
    for group in _groups(branches):
        engine.place(group, unit_reader(store))
        for chosen, logits in _outputs(engine, samples):
            for name, rows in logits.items():
                confidence[row_of[name], chosen] = _confidence(rows)
                right[row_of[name], chosen] = rows.argmax(axis=1) == samples.y[chosen]
        done += len(group)
        report("confidences", done, len(branches))
    return Confidences(tuple(row_of), confidence, right)


def write_confidences(confidences: Confidences) -> bytes:
    """Return the bytes of the bundle's unit, see `Bundle`."""
    tensors = {"confidence": confidences.confidence, "right": confidences.right.astype(np.uint8)}
    data: bytes = save(tensors, {"names": json.dumps(confidences.names)})
    return data


def read_confidences(path: Path) -> Confidences:
    """Return what `write_confidences` made, from a file."""
    with safe_open(path, framework="numpy") as file:
        names = tuple(json.loads(file.metadata()["names"]))
        return Confidences(names, file.get_tensor("confidence"), file.get_tensor("right").astype(np.bool_))


def _outputs(engine: Engine, samples: Samples) -> Iterator[tuple[slice, dict[str, NDArray[np.float32]]]]:
    done = 0
    for raw in samples.chunks():
        logits = engine.infer_batch(raw)
        yield slice(done, done + len(raw)), {FINAL if name is None else name: rows for name, rows in logits.items()}
        done += len(raw)


def _groups(branches: Sequence[Branch]) -> Iterator[list[Branch]]:
    """Yield at least one group: the final exit is run in each."""
    group: list[Branch] = []
    for branch in branches:
        if group and bytes_of([*group, branch]) > _GROUP_BYTES:
            yield group
            group = []
        group.append(branch)
    yield group


def _confidence(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    # A branch whose training went astray may say NaN: it is sure of nothing.
    confidence: NDArray[np.float32] = np.nan_to_num(1 / exponentials.sum(axis=1))
    return confidence
