"""Which neurons of FC layers are similar, by MEEdge's L2 distance (3.5.1) or by MTZ's Hessian (He, Zhou, Thiele 2018).

A layer is one matrix [neurons, features + 1], its biases in the last column: a bias is the weight of an input that is
always one.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pairs = NDArray[np.int64]

_DAMPING = 1e-4  # of the mean diagonal: features that are always zero leave a Hessian singular


def self_errors(weights: Tensor, layer_hessian: Tensor | None) -> Tensor:
    """Return the error [H, H] of merging each two neurons of a layer [H, F + 1]; infinite but above the diagonal.

    Without a Hessian the L2 distance, with it MTZ's 1/4 d^T H d for the difference d of their weights.
    """
    errors = _distances(weights, weights, layer_hessian)
    errors = errors.sqrt() if layer_hessian is None else errors / 4
    return errors.masked_fill(torch.ones_like(errors, dtype=torch.bool).tril(), torch.inf)


def twin_errors(first: Tensor, second: Tensor, hessians: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return the error [A, B] of merging each neuron of [A, F + 1] with each of [B, F + 1].

    Without Hessians the L2 distance, with them MTZ's 1/2 d^T (H_a^-1 + H_b^-1)^-1 d.
    """
    if hessians is None:
        return _distances(first, second, None).sqrt()
    a, b = hessians
    # The same matrix, without inverting either: H_a (H_a + H_b)^-1 H_b.
    return _distances(first, second, a @ torch.linalg.solve(a + b, b)) / 2


def twin_weights(first: Tensor, second: Tensor, hessians: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return the shared weights of pairs, [P, F + 1] each: the average, or MTZ's (H_a + H_b)^-1 (H_a w_a + H_b w_b)."""
    if hessians is None:
        return (first + second) / 2
    a, b = hessians
    solved: Tensor = torch.linalg.solve(a + b, a @ first.T + b @ second.T)
    return solved.T


def hessian(inputs: Tensor) -> Tensor:
    """Return a layer's Hessian E[x x^T] [F + 1, F + 1] over inputs [samples, F], a one for the bias added to each.

    It is what weights of F features cost in memory when they are compared as in MTZ (He, Zhou, Thiele 2018, 3.2): 4 F^2
    bytes, 340 MB for the 9,216 features of AlexNet's first FC layer, where the L2 distance needs nothing of the kind.
    """
    x = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
    matrix: Tensor = x.T @ x / len(x)
    matrix.diagonal().add_(_DAMPING * matrix.diagonal().mean())
    return matrix


def ascending_pairs(errors: Tensor, *, twins: bool = False) -> Pairs:
    """Return disjoint pairs [P, 2], smallest error first: each is the best that those before it leave over.

    Args:
        errors: [A, B]; infinite where there is no such pair.
        twins: rows and columns are neurons of two layers, not of one.
    """
    table = errors.cpu().numpy()
    free_rows = np.ones(table.shape[0], np.bool_)
    free_columns = np.ones(table.shape[1], np.bool_) if twins else free_rows
    wanted = min(table.shape) if twins else len(table) // 2
    order = np.argsort(table, axis=None, kind="stable")[: int(np.isfinite(table).sum())]
    found: list[tuple[int, int]] = []
    # Most of the list falls away unseen: a part is looked at pair by pair only where both were free at its start.
    for part in np.array_split(order, max(1, len(order) // (4 * len(table)))):
        rows, columns = np.divmod(part, table.shape[1])
        open_ = free_rows[rows] & free_columns[columns]
        for row, column in zip(rows[open_].tolist(), columns[open_].tolist(), strict=True):
            if free_rows[row] and free_columns[column]:
                free_rows[row] = free_columns[column] = False
                found.append((row, column))
        if len(found) == wanted:
            break
    return np.array(found, np.int64).reshape(-1, 2)


def _distances(first: Tensor, second: Tensor, metric: Tensor | None) -> Tensor:
    """Return (a - b)^T M (a - b) for every row a of [A, F] and b of [B, F]."""
    projected = first if metric is None else first @ metric
    projected_second = second if metric is None else second @ metric
    squares = (projected * first).sum(1)[:, None] + (projected_second * second).sum(1)
    return (squares - 2 * projected @ second.T).clamp_min(0)
