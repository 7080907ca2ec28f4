from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.search import native
from meedge_ray.search.predictor import ConfidencePredictor

needs_native = pytest.mark.skipif(native.kernels is None, reason="no compiled loops: not built, or turned off")


def tensors(slots: int, hidden: tuple[int, int], seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    widths = [slots, *hidden, slots]
    drawn: dict[str, Any] = {}
    for layer in range(3):
        inputs, outputs = widths[layer : layer + 2]
        drawn[f"weight{layer}"] = (random.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
        drawn[f"bias{layer}"] = (random.standard_normal(outputs) / 2).astype(np.float32)
    return drawn


def seen_by(slots: int, known: int, seed: int) -> Any:
    seen = np.random.default_rng(seed).random(slots, np.float32)
    seen[known:] = 0
    return seen


@needs_native
@settings(max_examples=150)
@given(
    slots=st.integers(1, 45),
    hidden=st.tuples(st.integers(1, 70), st.integers(1, 40)),
    part=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_kernel_and_its_twin_predict_alike(slots: int, hidden: tuple[int, int], part: float, seed: int) -> None:
    predictor = ConfidencePredictor.from_tensors(tensors(slots, hidden, seed))
    known = round(part * slots)
    seen = seen_by(slots, known, seed)
    compiled = predictor.predict(seen, known)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "kernels", None)
        plain = predictor.predict(seen, known)
    np.testing.assert_allclose(compiled, plain, rtol=0, atol=1e-5)
    assert compiled.dtype == plain.dtype == np.float64
    assert ((compiled >= 0) & (compiled <= 1)).all()


def test_predictions_are_what_torch_makes_of_the_layers(kernels: str) -> None:
    torch = pytest.importorskip("torch")
    weights = tensors(9, (33, 17))
    layers = [torch.nn.Linear(9, 33), torch.nn.ReLU(), torch.nn.Linear(33, 17), torch.nn.ReLU(), torch.nn.Linear(17, 9)]
    with torch.no_grad():
        for layer, linear in enumerate(layers[::2]):
            linear.weight.copy_(torch.from_numpy(weights[f"weight{layer}"].T))
            linear.bias.copy_(torch.from_numpy(weights[f"bias{layer}"]))
    predictor = ConfidencePredictor.from_tensors(weights)
    for known in range(10):
        seen = seen_by(9, known, known)
        with torch.no_grad():
            expected = torch.nn.Sequential(*layers)(torch.from_numpy(seen)).clamp(0, 1).numpy()
        np.testing.assert_allclose(predictor.predict(seen, known), expected, rtol=0, atol=1e-5)


def test_what_follows_the_passed_slots_is_not_read(kernels: str) -> None:
    predictor = ConfidencePredictor.from_tensors(tensors(6, (5, 4)))
    seen = seen_by(6, 3, 0)
    expected = predictor.predict(seen, 3)
    seen[3:] = np.nan
    assert (predictor.predict(seen, 3) == expected).all()


@pytest.mark.parametrize(
    ("seen", "known"),
    [
        (np.zeros(5, np.float32), 0),
        (np.zeros(6), 0),
        (np.zeros((1, 6), np.float32), 0),
        (np.zeros(6, np.float32), -1),
        (np.zeros(6, np.float32), 7),
    ],
)
def test_another_situation_than_of_these_slots_is_refused(seen: Any, known: int, kernels: str) -> None:
    with pytest.raises(ValueError, match=r"seen|known|out|parameters"):
        ConfidencePredictor.from_tensors(tensors(6, (5, 4))).predict(seen, known)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight0", None),
        ("weight3", np.zeros((2, 2), np.float32)),
        ("weight0", np.zeros(6, np.float32)),
        ("weight0", np.zeros((0, 5), np.float32)),
        ("weight1", np.zeros((4, 5), np.float32)),
        ("bias1", np.zeros((4, 1), np.float32)),
        ("weight2", np.zeros((4, 7), np.float32)),
        ("bias2", np.zeros(6)),
        ("bias0", np.full(5, np.inf, np.float32)),
        ("weight2", np.full((4, 6), np.nan, np.float32)),
    ],
)
def test_tensors_that_are_no_predictor_are_refused(name: str, value: Any) -> None:
    given_tensors = {**tensors(6, (5, 4)), name: value}
    if value is None:
        del given_tensors[name]
    with pytest.raises(InvalidInputError) as error:
        ConfidencePredictor.from_tensors(given_tensors)
    assert error.value.where == "predictor"


@needs_native
@pytest.mark.parametrize(
    ("place", "bad", "error"),
    [
        (0, np.zeros(5, np.float32), ValueError),
        (0, np.zeros(12, np.float32)[::2], ValueError),
        (0, [0.0] * 6, TypeError),
        (1, np.zeros(6, np.float32), ValueError),
        (1, np.frombuffer(bytes(48)), ValueError),
        (2, np.zeros(7, np.float32), ValueError),
        (3, 7, ValueError),
        (3, 2**64, OverflowError),
        (3, 1.5, TypeError),
        (4, 2**62, ValueError),
        (4, 0, ValueError),
        (5, -1, ValueError),
    ],
)
def test_the_kernel_refuses_arguments_of_another_kind(place: int, bad: Any, error: type[Exception]) -> None:
    assert native.kernels is not None
    parts = tensors(6, (5, 4))
    packed = np.concatenate([parts[f"{kind}{layer}"].ravel() for layer in range(3) for kind in ("weight", "bias")])
    arguments: list[Any] = [np.zeros(6, np.float32), np.zeros(6), packed, 2, 5, 4]
    native.kernels.predict_confidences(*arguments)
    arguments[place] = bad
    with pytest.raises((error, BufferError)):
        native.kernels.predict_confidences(*arguments)
    with pytest.raises(TypeError):
        native.kernels.predict_confidences(*arguments[:-1])
