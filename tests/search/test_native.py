import os
import subprocess
import sys
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from meedge_ray.search import native
from meedge_ray.search.cover import uncovered
from meedge_ray.search.inputs import UNBOUNDED
from meedge_ray.search.placement import placement_frontier

needs_native = pytest.mark.skipif(native.kernels is None, reason="no compiled loops: not built, or turned off")


def twin(*arrays: Any, **numbers: float) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "kernels", None)
        return uncovered(*arrays, **numbers)


@needs_native
@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 120),
    levels=st.sampled_from([3, 20, 10**6]),
    bits=st.sampled_from([0, 2, 64]),
    steepness=st.sampled_from([0.1, 1.0, UNBOUNDED]),
    allowed=st.sampled_from([0.0, 0.01, 0.5]),
)
def test_the_kernel_and_its_twin_keep_the_same_labels(
    seed: int, count: int, levels: int, bits: int, steepness: float, allowed: float
) -> None:
    rng = np.random.default_rng(seed)
    spent, value, accuracy, low, gap = rng.integers(0, levels, (5, count)) / levels
    used = rng.integers(0, 4 if bits else 1, count).astype(np.uint64) << np.uint64(max(bits - 2, 0))
    mine, its = np.zeros(count), np.zeros(count)
    arrays = (rng.permutation(count), spent, value, accuracy, low, low + gap, used)
    numbers = {"top": 0.8, "steepness": steepness, "allowed": allowed}
    kept = uncovered(*arrays, mine, **numbers)
    assert np.array_equal(kept, twin(*arrays, its, **numbers))
    assert np.array_equal(mine, its)
    assert (mine <= allowed).all()


@needs_native
@pytest.mark.parametrize("timing", ["cumulative", "independent"])
@pytest.mark.parametrize("one_per_exit", [False, True])
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_the_frontier_is_the_same_without_the_kernel(
    timing: str, one_per_exit: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    count = 60
    problem = {
        "exit_index": rng.integers(0, 5, count),
        "duration_ms": rng.uniform(0.1, 2.0, count),
        "accuracy": rng.uniform(0.3, 0.9, count),
        "size_bytes": rng.integers(100, 10_000, count),
        "backbone_ms": np.arange(1.0, 6.0),
        "final_ms": 6.5,
        "final_accuracy": 0.92,
        "horizon_ms": 8.0,
    }
    options: dict[str, Any] = {"timing": timing, "one_per_exit": one_per_exit, "tolerance": tolerance}
    compiled = placement_frontier(**problem, **options)
    monkeypatch.setattr(native, "kernels", None)
    plain = placement_frontier(**problem, **options)
    assert np.array_equal(compiled.size_bytes, plain.size_bytes)
    assert np.array_equal(compiled.expectation, plain.expectation)
    assert [compiled.members(i) for i in range(len(plain.size_bytes))] == [
        plain.members(i) for i in range(len(plain.size_bytes))
    ]


def labels(count: int) -> list[Any]:
    columns = [*np.zeros((5, count)), np.zeros(count, np.uint64), np.zeros(count), np.zeros(count, np.bool_)]
    return [np.arange(count), *columns, 1.0, 0.1, 0.0]


@needs_native
@pytest.mark.parametrize(
    ("place", "bad", "error"),
    [
        (0, np.array([0, 1, 2, 4]), ValueError),
        (0, np.array([0, 1, -1, 3]), ValueError),
        (0, np.array([0, 1, 1, 3]), ValueError),
        (0, np.zeros(4), ValueError),
        (2, np.zeros(3), ValueError),
        (3, np.zeros(4, np.float32), ValueError),
        (4, np.zeros((2, 2)), ValueError),
        (5, np.zeros(8)[::2], ValueError),
        (6, np.zeros(4), ValueError),
        (7, np.frombuffer(bytes(32)), ValueError),
        (8, np.zeros(4), ValueError),
        (1, [0.0, 0.0, 0.0, 0.0], TypeError),
        (9, "none", TypeError),
        (11, None, TypeError),
    ],
)
def test_the_kernel_refuses_arrays_of_another_kind(place: int, bad: Any, error: type[Exception]) -> None:
    assert native.kernels is not None
    arguments = labels(4)
    native.kernels.uncovered(*arguments)
    arguments[place] = bad
    with pytest.raises((error, BufferError)):
        native.kernels.uncovered(*arguments)


def tree(count: int) -> list[Any]:
    """A tree of branches that all gain: the last output is the final exit."""
    integers = [np.arange(count), np.ones(count, np.int64), np.zeros(count, np.int64)]
    accuracy = np.linspace(0.1, 0.9, count + 1)
    base = np.linspace(0.1, 0.5, count + 1)
    arrays = [*integers, base, np.zeros(count + 1), accuracy, np.zeros(count + 1, np.int64)]
    return [*arrays, count, 4, 0, 9, 1e9, 0.0]


@needs_native
@pytest.mark.parametrize(
    ("place", "bad", "error"),
    [
        (0, np.array([0, 1, 2, 5]), ValueError),
        (0, np.array([0, 1, -1, 3]), ValueError),
        (0, np.zeros(4), ValueError),
        (1, np.zeros(3, np.int64), ValueError),
        (3, np.zeros(4), ValueError),
        (4, np.zeros(5, np.float32), ValueError),
        (6, np.zeros(4, np.int64), ValueError),
        (6, np.frombuffer(bytes(40), np.int64), ValueError),
        (2, [0, 0, 0, 0], TypeError),
        (7, 5, ValueError),
        (7, -1, ValueError),
        (8, "none", TypeError),
        (9, 2**64, OverflowError),
        (11, None, TypeError),
    ],
)
def test_the_tree_kernel_refuses_arrays_of_another_kind(place: int, bad: Any, error: type[Exception]) -> None:
    assert native.kernels is not None
    arguments = tree(4)
    assert native.kernels.search_tree(*arguments)[0] == 5
    arguments[place] = bad
    with pytest.raises((error, BufferError)):
        native.kernels.search_tree(*arguments)


@needs_native
def test_the_kernels_count_their_arguments() -> None:
    assert native.kernels is not None
    with pytest.raises(TypeError):
        native.kernels.uncovered(*labels(4)[:-1])
    with pytest.raises(TypeError):
        native.kernels.search_tree(*tree(4)[:-1])


@needs_native
def test_an_endless_search_can_be_interrupted_and_lets_other_threads_run() -> None:
    code = """
import _thread, signal, threading
import numpy as np
from meedge_ray.search.hpf import hpf_placement
rng = np.random.default_rng(0)
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
threading.Timer(0.1, _thread.interrupt_main).start()
try:
    hpf_placement(
        np.zeros(200, int), rng.uniform(0, 4, 200), rng.uniform(0, 1, 200), np.ones(200, int), backbone_ms=[1.0],
        final_ms=5.0, final_accuracy=0.9, horizon_ms=6.0, budget_bytes=100, search_ms=float("inf"),
    )
except KeyboardInterrupt:
    print("interrupted")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == "interrupted"


def test_the_environment_turns_the_kernels_off() -> None:
    code = "from meedge_ray.search import native; print(native.kernels)"
    environment = {**os.environ, "MEEDGE_NO_NATIVE": "1"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "None"
