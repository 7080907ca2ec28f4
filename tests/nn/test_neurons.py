import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.nn.neurons import ascending_pairs, hessian, self_errors, twin_errors, twin_weights

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**16)


def brute_force_pairs(errors, twins):
    free_rows = set(range(len(errors)))
    free_columns = set(range(len(errors[0]))) if twins else free_rows
    found = []
    for error, row, column in sorted((errors[i][j], i, j) for i in range(len(errors)) for j in range(len(errors[0]))):
        if np.isfinite(error) and row in free_rows and column in free_columns:
            free_rows.remove(row)
            free_columns.remove(column)
            found.append((row, column))
    return found


@given(sizes, sizes, seeds, st.booleans())
def test_twins_pairs_are_what_greedy_search_finds(count, other, seed, coarse):
    errors = torch.rand(count, other, generator=torch.Generator().manual_seed(seed))
    errors = (errors * 3).round() if coarse else errors  # ties
    pairs = ascending_pairs(errors, twins=True)
    assert [tuple(pair) for pair in pairs.tolist()] == brute_force_pairs(errors.tolist(), twins=True)
    assert len(pairs) == min(count, other)


@given(sizes, sizes, seeds)
def test_a_layer_s_pairs_are_disjoint_ascending_and_what_greedy_search_finds(count, fan_in, seed):
    weights = torch.randn(count, fan_in + 1, generator=torch.Generator().manual_seed(seed))
    errors = self_errors(weights, None)
    pairs = ascending_pairs(errors)
    assert len(pairs) == count // 2
    assert len(set(pairs.flatten().tolist())) == 2 * len(pairs)
    found = errors[pairs[:, 0], pairs[:, 1]]
    assert (found.diff() >= 0).all()
    assert [tuple(pair) for pair in pairs.tolist()] == brute_force_pairs(errors.tolist(), twins=False)


def test_a_wide_layer_s_pairs_are_what_greedy_search_finds():
    errors = self_errors(torch.randn(150, 3), None)
    expected = brute_force_pairs(errors.tolist(), twins=False)
    assert [tuple(pair) for pair in ascending_pairs(errors).tolist()] == expected


def test_the_error_of_two_neurons_is_the_distance_of_their_weights_and_biases():
    weights = torch.randn(9, 5, dtype=torch.float64)
    errors = self_errors(weights, None)
    for i in range(9):
        for j in range(9):
            expected = torch.linalg.norm(weights[i] - weights[j]) if i < j else torch.tensor(torch.inf)
            assert errors[i, j] == pytest.approx(float(expected))


def positive(seed, size):
    x = torch.randn(40, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return hessian(x)


def least(first, second, hessians):
    """Return the shared weights that cost the two neurons least, and what they cost, by plain descent."""
    w = torch.zeros_like(first, requires_grad=True)
    descent = torch.optim.LBFGS(
        [w], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def cost():
        return sum((w - own) @ matrix @ (w - own) / 2 for own, matrix in zip((first, second), hessians, strict=True))

    def closure():
        descent.zero_grad()
        value = cost()
        value.backward()
        return value

    descent.step(closure)
    return w.detach(), cost().item()


@given(st.integers(1, 5), seeds)
def test_mtz_s_weights_and_error_are_those_that_cost_both_twins_least(size, seed):
    torch.manual_seed(seed)
    hessians = positive(seed, size), positive(seed + 1, size)
    first, second = torch.randn(2, size + 1, dtype=torch.float64), torch.randn(3, size + 1, dtype=torch.float64)
    errors = twin_errors(first, second, hessians)
    assert errors.shape == (2, 3)
    weights, error = least(first[1], second[2], hessians)
    torch.testing.assert_close(twin_weights(first[1:], second[2:], hessians)[0], weights, atol=1e-5, rtol=1e-5)
    assert float(errors[1, 2]) == pytest.approx(error, rel=1e-6, abs=1e-9)


@given(st.integers(1, 5), seeds)
def test_inside_one_layer_mtz_s_weights_are_the_average(size, seed):
    torch.manual_seed(seed)
    matrix = positive(seed, size)
    neurons = torch.randn(4, size + 1, dtype=torch.float64)
    weights, error = least(neurons[1], neurons[3], (matrix, matrix))
    torch.testing.assert_close(weights, (neurons[1] + neurons[3]) / 2, atol=1e-5, rtol=1e-5)
    assert float(self_errors(neurons, matrix)[1, 3]) == pytest.approx(error, rel=1e-6, abs=1e-9)


def test_features_that_are_always_zero_leave_the_hessian_invertible():
    x = torch.cat([torch.randn(30, 3), torch.zeros(30, 2)], 1)
    matrix = hessian(x)
    assert matrix.shape == (6, 6)
    assert float(torch.linalg.eigvalsh(matrix)[0]) > 0
