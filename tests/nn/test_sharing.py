import copy
from itertools import pairwise

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from meedge_ray.nn.export import export_unit
from meedge_ray.nn.neurons import ascending_pairs, self_errors
from meedge_ray.nn.sharing import merge_pairs, self_merge, smaller_head, split_head, twin_merge

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**16)


def head_of(*widths, pooling=(), seed=0):
    torch.manual_seed(seed)
    parts = [*pooling] or [nn.Flatten()]
    for inputs, neurons in pairwise(widths):
        parts += [nn.Linear(inputs, neurons), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def linears(head):
    return [part for part in head if isinstance(part, nn.Linear)]


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def accuracy_on(labels):
    return lambda logits: float((logits.argmax(1) == labels).double().mean())


def rows(weights):
    return torch.cat([weights.weight, weights.bias[:, None]], 1).detach()


@given(st.integers(2, 12), sizes, sizes, seeds, st.data())
def test_merged_layers_compute_what_averaged_ones_do_with_fewer_parameters(hidden, fan_in, fan_out, seed, data):
    torch.manual_seed(seed)
    weights = torch.randn(hidden, fan_in + 1, dtype=torch.float64)
    following = torch.randn(fan_out, hidden + 1, dtype=torch.float64)
    count = data.draw(st.integers(0, hidden // 2))
    pairs = ascending_pairs(self_errors(weights, None))[:count]
    averaged = weights.clone()
    for one, other in pairs:
        averaged[one] = averaged[other] = (weights[one] + weights[other]) / 2
    x = torch.randn(7, fan_in, dtype=torch.float64)

    def run(first, second):
        one = torch.ones(7, 1, dtype=x.dtype)
        return torch.cat([torch.relu(torch.cat([x, one], 1) @ first.T), one], 1) @ second.T

    smaller = merge_pairs(weights, following, pairs)
    torch.testing.assert_close(run(*smaller), run(averaged, following))
    saved = weights.numel() + following.numel() - sum(part.numel() for part in smaller)
    assert saved == count * (fan_in + 1) + count * fan_out


@pytest.mark.parametrize("error", ["l2", "hessian"])
def test_every_number_of_pairs_between_the_shares_is_tried_and_the_best_and_largest_kept(error):
    head, x = head_of(6, 24, 12, 3), torch.randn(50, 6)
    seen = []

    def score(logits):
        seen.append(logits)
        return [0.1, 0.9, 0.9, *[0.3] * 10][len(seen) - 1]

    merged = self_merge(head, x, score, error=error)
    # 12 pairs: 4, 5 or 6 of them; then 6 pairs: 2 or 3.
    assert len(seen) == 3 + 2
    assert merged.merged_neurons == (6, 3)
    assert [layer.out_features for layer in linears(merged.head)] == [18, 9, 3]
    assert parameters(head) == 6 * 24 + 24 + 24 * 12 + 12 + 12 * 3 + 3  # as it was
    with torch.no_grad():
        torch.testing.assert_close(merged.head(x), seen[-1])


def test_the_score_seen_for_each_number_of_pairs_is_that_of_the_merged_head():
    head, x = head_of(5, 16, 9, 4), torch.randn(40, 5)
    labels = torch.randint(4, (40,))
    weights = [rows(layer) for layer in linears(head)]
    pairs = ascending_pairs(self_errors(weights[0], None))
    seen = []
    self_merge(head, x, lambda logits: seen.append(logits) or accuracy_on(labels)(logits), shares=(0, 1))
    for count, logits in enumerate(seen[: len(pairs) + 1]):
        smaller = smaller_head(head, (count, 0))
        merged = [*merge_pairs(weights[0], weights[1], pairs[:count]), weights[2]]
        with torch.no_grad():
            for layer, matrix in zip(linears(smaller), merged, strict=True):
                layer.weight.copy_(matrix[:, :-1])
                layer.bias.copy_(matrix[:, -1])
            torch.testing.assert_close(logits, smaller(x))


def test_neurons_without_a_difference_are_merged_for_nothing():
    head, x = head_of(8, 6, 3), torch.randn(20, 8)
    hidden = linears(head)[0]
    with torch.no_grad():
        for parameter in (hidden.weight, hidden.bias):
            parameter[3:] = parameter[:3]
        merged = self_merge(head, x, lambda logits: 0.0, shares=(1, 1))
        torch.testing.assert_close(merged.head(x), head(x))
    assert merged.merged_neurons == (3,)


def test_a_head_of_one_layer_has_nothing_to_merge():
    head = head_of(8, 3)
    merged = self_merge(head, torch.randn(4, 8), lambda logits: 0.0)
    assert merged.merged_neurons == ()
    torch.testing.assert_close(linears(merged.head)[0].weight, linears(head)[0].weight)


def test_pooling_stays_as_it_is():
    head = head_of(8, 12, 3, pooling=(nn.AvgPool2d(2), nn.Flatten()))
    pooling, fc = split_head(head)
    assert [type(part) for part in pooling] == [nn.AvgPool2d, nn.Flatten]
    merged = self_merge(head, pooling(torch.randn(5, 2, 4, 4)), lambda logits: 0.0)
    assert [type(part) for part in merged.head] == [type(part) for part in head]
    assert merged.head(torch.randn(5, 2, 4, 4)).shape == (5, 3)
    assert len(fc) == 3


@pytest.mark.parametrize("error", ["l2", "hessian"])
def test_twins_agree_in_what_they_share_and_keep_the_rest(error):
    first, second = head_of(6, 10, 8, 3, seed=1), head_of(6, 14, 9, 3, seed=2)
    before = copy.deepcopy((first.state_dict(), second.state_dict()))
    inputs = torch.randn(60, 6), torch.randn(60, 6)
    twins = twin_merge(first, second, inputs, share=0.5, error=error)
    assert twins.shared_neurons == (5, 4)
    one, other = (linears(head) for head in twins.heads)
    assert [layer.weight.shape for layer in one] == [layer.weight.shape for layer in linears(first)]
    assert torch.equal(rows(one[0])[:5], rows(other[0])[:5])
    assert torch.equal(one[1].weight[:4, :5], other[1].weight[:4, :5])
    assert torch.equal(one[1].bias[:4], other[1].bias[:4])
    assert twins.saved_parameters == 5 * 7 + 4 * 6
    for head, states in zip((first, second), before, strict=True):
        assert all(torch.equal(states[key], value) for key, value in head.state_dict().items())


@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_twins_that_share_nothing_compute_what_they_did(seed, width, other):
    first, second = head_of(4, width, other, 3, seed=seed), head_of(4, other, width, 3, seed=seed + 1)
    x = torch.randn(5, 4)
    twins = twin_merge(first, second, (x, x), share=0)
    assert twins.saved_parameters == 0
    for before, after in zip((first, second), twins.heads, strict=True):
        torch.testing.assert_close(after(x), before(x))


def test_equal_twins_share_everything_for_nothing():
    first, x = head_of(5, 8, 6, 3), torch.randn(9, 5)
    twins = twin_merge(first, copy.deepcopy(first), (x, x), share=1)
    assert twins.saved_parameters == 8 * 6 + 6 * 9
    for head in twins.heads:
        torch.testing.assert_close(head(x), first(x))


@pytest.mark.parametrize("other", [(6, 10, 3), (7, 10, 8, 3)])
def test_twins_of_other_depth_or_features_are_refused(other):
    x = torch.randn(5, 6)
    with pytest.raises(ValueError, match="as many FC layers"):
        twin_merge(head_of(6, 10, 8, 3), head_of(*other), (x, x), share=0.5)


def test_a_merged_branch_s_unit_is_smaller_by_what_is_claimed():
    head = head_of(64, 128, 64, 10)
    x = torch.randn(50, 64)
    merged = self_merge(head, x, lambda logits: 0.0)
    before, after = export_unit(head, (4, 4, 4)), export_unit(merged.head, (4, 4, 4))
    claimed_bytes = 4 * (parameters(head) - parameters(merged.head))
    assert merged.merged_neurons == (32, 16)
    assert len(before) - len(after) == pytest.approx(claimed_bytes, abs=64)
    assert onnx.load_from_string(after).graph.output[0].name == "y"
