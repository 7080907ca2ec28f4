from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from meedge_ray.api.elastic_model import Sharing
from meedge_ray.nn.sharing import self_merge
from meedge_ray.train.retrain import Lessons, retrain

TRAIN, FEW = 1200, 240  # samples: the rest is validation; 20 % to retrain on


def settings(**changed):
    return Sharing.model_validate({"epochs": 20, "learningRate": "0.003", **changed})


def linears(fc):
    return [part for part in fc if isinstance(part, nn.Linear)]


def accuracy(fc, x, y):
    with torch.no_grad():
        return float((fc(x).argmax(1) == y).double().mean())


def trained(x, y, *widths, epochs):
    torch.manual_seed(0)
    parts = [part for inputs, neurons in pairwise(widths) for part in (nn.Linear(inputs, neurons), nn.ReLU())][:-1]
    fc = nn.Sequential(*parts)
    optimizer = torch.optim.Adam(fc.parameters(), lr=0.003)
    for _ in range(epochs):
        for chosen in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(fc(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return fc


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(bunch.data).float()[order] / 16, torch.from_numpy(bunch.target)[order]


@pytest.fixture(scope="module")
def case(digits):
    x, y = digits
    fc = trained(x[:TRAIN], y[:TRAIN], 64, 32, 24, 10, epochs=12)
    teacher = trained(x[:TRAIN], y[:TRAIN], 64, 128, 10, epochs=20)
    with torch.no_grad():
        lessons = Lessons(x[:FEW], y[:FEW], teacher(x[:FEW]))
    merged = self_merge(fc, x[TRAIN:], lambda logits: 0.0, shares=(0.8, 0.8))
    return fc, merged, lessons, (x[TRAIN:], y[TRAIN:])


def test_retraining_recovers_what_merging_cost(case):
    fc, merged, lessons, validation = case
    before, after = accuracy(fc, *validation), accuracy(merged.head, *validation)
    assert before > 0.9
    assert after < before - 0.02
    recovered = retrain(merged.head, merged.merged_neurons, lessons, settings(), seed=0)
    assert accuracy(recovered, *validation) > max(before - 0.02, after + 0.01)


@pytest.mark.parametrize("beta", ["1", "4"])
def test_shared_weights_stay_exactly_where_the_merge_put_them_and_the_others_move(case, beta):
    _, merged, lessons, _ = case
    assert merged.merged_neurons == (12, 9)
    again = retrain(merged.head, merged.merged_neurons, lessons, settings(beta=beta), seed=0)
    for layer, was, count in zip(linears(again), linears(merged.head), (12, 9, 0), strict=True):
        assert torch.equal(layer.weight[:count], was.weight[:count])
        assert torch.equal(layer.bias[:count], was.bias[:count])
        assert not torch.equal(layer.weight[count:], was.weight[count:])


def test_without_beta_shared_weights_are_as_free_as_others(case):
    _, merged, lessons, _ = case
    again = retrain(merged.head, merged.merged_neurons, lessons, settings(beta="0"), seed=0)
    for layer, was, count in zip(linears(again), linears(merged.head), (12, 9, 0), strict=True):
        assert not torch.equal(layer.weight[:count], was.weight[:count]) or not count


def test_the_same_seed_gives_the_same_weights_and_the_merged_ones_stay(case):
    _, merged, lessons, _ = case
    was = {key: value.clone() for key, value in merged.head.state_dict().items()}
    one, two, other = (
        retrain(merged.head, merged.merged_neurons, lessons, settings(epochs=2), seed=seed) for seed in (1, 1, 2)
    )
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())
    assert any(not torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
    assert all(torch.equal(value, was[key]) for key, value in merged.head.state_dict().items())


def test_no_epochs_change_nothing(case):
    _, merged, lessons, _ = case
    again = retrain(merged.head, merged.merged_neurons, lessons, settings(epochs=0), seed=0)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in merged.head.state_dict().items())


def test_alpha_weighs_labels_against_the_teacher(case):
    _, merged, lessons, _ = case
    # A teacher that is always wrong in one way: who follows it says so, who follows the labels does not.
    wrong = Lessons(lessons.inputs, lessons.labels, 20 * torch.eye(10)[(lessons.labels + 1) % 10])
    eager = {"beta": "0", "epochs": 40, "learningRate": "0.01"}
    follows = {
        alpha: retrain(merged.head, merged.merged_neurons, wrong, settings(alpha=alpha, **eager), seed=0)
        for alpha in ("0", "1")
    }
    assert accuracy(follows["0"], wrong.inputs, (wrong.labels + 1) % 10) > 0.7
    assert accuracy(follows["1"], wrong.inputs, wrong.labels) > 0.7
