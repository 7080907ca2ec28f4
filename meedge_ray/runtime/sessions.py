"""One ONNX Runtime session a unit, set up to hold as little memory as it can."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from meedge_ray.domain.errors import InvalidInputError

# The layout that ONNX Runtime can give to convolutions makes small ones up to twice as fast, and those of so many bytes
# by a third at most; but it takes twice the memory while a unit is loaded.
_LAID_OUT_BYTES = 2**20
_LOADING, _LOADING_LAID_OUT = 3.1, 6.1  # most bytes of memory for one of the file's, measured

Floats = NDArray[np.float32]


class UnitSession(NamedTuple):
    """A loaded unit: `run(output_names, {input_name: features}, None)[0]`; thread-safe."""

    run: Callable[..., Any]
    input_name: str
    output_names: list[str]
    size_bytes: int

    def __call__(self, features: Floats) -> Floats:
        """Return the unit's output; both with the batch dimension."""
        output: Floats = self.run(self.output_names, {self.input_name: features}, None)[0]
        return output


def loading_bytes(size_bytes: int) -> int:
    """Return the most memory that loading a unit of so many bytes takes; afterwards it holds little more than those."""
    return int(size_bytes * (_LOADING_LAID_OUT if size_bytes < _LAID_OUT_BYTES else _LOADING))


def load_unit(data: bytes, *, name: str, threads: int) -> UnitSession:
    """Return a session of the unit whose ONNX bytes are `data`.

    Raises:
        InvalidInputError: not a model with one float32 input and one output that ONNX Runtime can load.
    """
    try:
        # Without `enable_fallback` a failed load prints to stdout and is tried again.
        session = ort.InferenceSession(
            data, _options(threads, len(data)), providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's own errors share no base class
        raise _unusable(name, f"ONNX Runtime cannot load it ({error})") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(float)":
        raise _unusable(name, "it does not have one float32 input and one output")
    # The wrapper around the session keeps the file's bytes, a second copy of every weight, and adds a microsecond
    # to every call for checks that hold here by construction. What it wraps takes the same three arguments.
    run = getattr(session, "_sess", session).run
    return UnitSession(run, inputs[0].name, [outputs[0].name], len(data))


def checked_output(unit: UnitSession, features: Floats, *, name: str, shape: Sequence[int] | None) -> Floats:
    """Run a unit once, so that one that does not fit is refused at loading and not in the middle of an answer.

    Args:
        unit: the loaded unit.
        features: its input, with the batch dimension.
        name: what to call the unit in errors.
        shape: the output's expected shape, with the batch dimension; None accepts any.

    Raises:
        InvalidInputError: it cannot run on `features`, or returns another shape.
    """
    try:
        output = unit(features)
    except Exception as error:
        raise _unusable(name, f"it cannot run on an input of shape {features.shape} ({error})") from error
    if shape is not None and output.shape != tuple(shape):
        raise _unusable(name, f"it returns shape {output.shape}, expected is {tuple(shape)}")
    return output


def _options(threads: int, size_bytes: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    is_laid_out = size_bytes < _LAID_OUT_BYTES
    options.graph_optimization_level = level.ORT_ENABLE_ALL if is_laid_out else level.ORT_ENABLE_EXTENDED
    # Each of the three keeps memory that a device lacks; together they made a unit hold twice its file.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 4  # what goes wrong is raised; nothing else is worth a line on a device
    return options


def _unusable(name: str, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"the unit cannot be used: {why}", where=name, do="Build the bundle again with this version"
    )
