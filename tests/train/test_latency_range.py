import hand_grown
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.nn.partition import partition
from meedge_ray.nn.supernet import Supernet
from meedge_ray.train.latency_range import latency_range_accuracy, subnet_accuracy

# stem, two blocks, tail; the merged one, then two shrunk ones a block
LINK_MS = [1.0, 4.0, 4.0, 1.0, 3.0, 1.0, 2.0, 1.0, 2.0]


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    return hand_grown.supernet()


def test_subnets_are_scored_as_each_alone_would_be(supernet: Supernet) -> None:
    data = hand_grown.digits()
    random = np.random.default_rng(0)
    subnets = [supernet.space.random(random) for _ in range(20)]  # some of them twice
    found = subnet_accuracy(supernet, data.validation, data.input, subnets, batch_size=100)
    mean, std = (torch.tensor(each).reshape(1, -1, 1, 1) for each in (data.input.mean, data.input.std))
    x = (torch.from_numpy(data.validation.x[:]).float() * data.input.scale - mean) / std
    for subnet, accuracy in zip(subnets, found, strict=True):
        with torch.no_grad():
            said = supernet(x, subnet).argmax(1).numpy()
        assert accuracy == pytest.approx((said == data.validation.y).mean(), abs=2 / len(x))
    (original,) = subnet_accuracy(supernet, data.validation, data.input, [supernet.space.original])
    assert original > 0.85


def test_the_score_may_be_any(supernet: Supernet) -> None:
    data = hand_grown.digits()
    few = data.validation[:70]

    def labels(outputs: Tensor, targets: Tensor) -> float:
        assert outputs.shape == (len(targets), 10)
        return float(targets.double().mean())

    found = subnet_accuracy(supernet, few, data.input, [(0, 4, 3)], batch_size=64, score=labels)
    assert found == [pytest.approx(few.y.mean())]


def test_a_first_block_that_overwrites_its_input_spoils_no_other_subnet() -> None:
    model = nn.Sequential(
        nn.ReLU(inplace=True), nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(32, 10)
    )
    chain = partition(model, hand_grown.SHAPE)
    supernet = Supernet(chain, [])
    data = hand_grown.digits()
    batches: list[Tensor] = []

    def keep(outputs: Tensor, targets: Tensor) -> float:
        batches.append(outputs)
        return 0.0

    subnet_accuracy(supernet, data.validation[:9], data.input, [supernet.space.original], score=keep)
    subnet_accuracy(supernet, data.validation[:9], data.input, [supernet.space.original], score=keep)
    assert torch.equal(batches[0], batches[1])


def test_what_is_no_subnet_is_refused(supernet: Supernet) -> None:
    data = hand_grown.digits()
    with pytest.raises(InvalidInputError, match="subnet"):
        subnet_accuracy(supernet, data.validation, data.input, [(0, 4, 2, 3)])


def test_ranges_go_from_the_fastest_subnet_to_the_original(supernet: Supernet) -> None:
    data = hand_grown.digits()
    bins = latency_range_accuracy(supernet, data.validation[:50], data.input, LINK_MS, subnets=12, bins=4, seed=3)
    assert [(each.low_ms, each.high_ms) for each in bins] == [(4.0, 5.5), (5.5, 7.0), (7.0, 8.5), (8.5, 10.0)]
    within = [
        sum(low <= ms <= high for ms in (4, 5, 5, 5, 6, 7, 7, 8, 8, 10))
        for low, high in [(4, 5.5), (5.5, 7), (7, 8.5), (8.5, 10)]
    ]
    assert [each.subnets for each in bins] == [min(3, count) for count in within]
    (original,) = subnet_accuracy(supernet, data.validation[:50], data.input, [supernet.space.original])
    assert bins[-1].accuracy == original  # the only one there
    again = latency_range_accuracy(supernet, data.validation[:50], data.input, LINK_MS, subnets=12, bins=4, seed=3)
    assert bins == again


def test_a_range_without_subnets_has_no_accuracy(supernet: Supernet) -> None:
    data = hand_grown.digits()
    slow = [1.0, 40.0, 40.0, *LINK_MS[3:]]
    bins = latency_range_accuracy(supernet, data.validation[:50], data.input, slow, bins=10)
    assert any(each.subnets == 0 and each.accuracy is None for each in bins)
    assert all((each.accuracy is None) == (each.subnets == 0) for each in bins)


def test_where_nothing_is_faster_than_the_original_it_is_scored(supernet: Supernet) -> None:
    data = hand_grown.digits()
    slow = [1.0] * 4 + [9.0] * 5
    bins = latency_range_accuracy(supernet, data.validation[:50], data.input, slow, bins=2)
    assert [(each.low_ms, each.high_ms, each.subnets) for each in bins] == [(4.0, 4.0, 1)] * 2
