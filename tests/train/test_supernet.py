from dataclasses import replace
from pathlib import Path
from typing import Any

import hand_grown
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from meedge_ray.api.elastic_model import SupernetTraining
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.nn.partition import Chain, Piece
from meedge_ray.nn.supernet import Supernet
from meedge_ray.train.latency_range import Bin, subnet_accuracy
from meedge_ray.train.samples import Samples
from meedge_ray.train.supernet import distill, tune

MERGED = (0, 4, 3)
NARROWEST = (0, 5, 7, 3)


def settings(epochs: int, learning_rate: str = "0.005") -> SupernetTraining:
    return SupernetTraining(epochs=epochs, learningRate=learning_rate)


def train(phase: Any, supernet: Supernet, epochs: int, *, samples: Samples | None = None, **more: Any) -> None:
    data = hand_grown.digits()
    phase(
        supernet,
        data.train if samples is None else samples,
        data.input,
        settings(epochs),
        **{"batch_size": 50, "seed": 7} | more,
    )


def weights(supernet: Supernet) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in supernet.added.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[key]) for key, value in first.items())


def accuracies(supernet: Supernet) -> list[float]:
    data = hand_grown.digits()
    return subnet_accuracy(supernet, data.validation, data.input, [MERGED, NARROWEST])


def test_added_blocks_learn_to_imitate_and_then_to_answer() -> None:
    supernet = hand_grown.supernet()
    untrained = accuracies(supernet)
    losses: dict[str, list[float]] = {"distill": [], "tune": []}

    def report(stage: str, done: float, total: float, detail: str = "") -> None:
        losses[stage].append(float(detail.split()[1]))

    train(distill, supernet, 10, report=report)
    distilled = accuracies(supernet)
    train(tune, supernet, 5, report=report)
    assert losses["distill"][-1] < 0.7 * losses["distill"][0]
    assert losses["tune"][-1] < losses["tune"][0]
    tuned = accuracies(supernet)
    assert untrained[0] < 0.4
    assert distilled[0] > 0.7
    assert tuned[0] > 0.8
    assert untrained[1] < 0.3
    assert tuned[1] > distilled[1] + 0.1
    assert not any(module.training for module in supernet.modules())


@pytest.mark.parametrize("phase", [distill, tune])
def test_no_bit_of_the_original_changes(phase: Any) -> None:
    supernet = hand_grown.supernet()
    x = torch.randn(5, *hand_grown.SHAPE)
    before, state = supernet(x).detach().clone(), {k: v.clone() for k, v in supernet.blocks.state_dict().items()}
    train(phase, supernet, 1)
    assert torch.equal(supernet(x), before)
    assert equal(state, supernet.blocks.state_dict())
    assert all(parameter.grad is None for parameter in supernet.blocks.parameters())


@pytest.mark.parametrize("phase", [distill, tune])
def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before(phase: Any) -> None:
    found = []
    for seed, noise in ((7, 1), (7, 2), (8, 1)):
        supernet = hand_grown.supernet(dropout=0.3)
        torch.manual_seed(noise)
        train(phase, supernet, 1, seed=seed)
        found.append(weights(supernet))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


class Killed(Exception):
    pass


@pytest.mark.parametrize("phase", [distill, tune])
def test_killed_training_goes_on_to_the_same_bits(phase: Any, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    few = hand_grown.digits().train[:220]  # 110 steps an epoch: one more checkpoint inside it
    told: list[float] = []

    def killed(stage: str, done: float, total: float, detail: str = "") -> None:
        told.append(done)
        raise Killed

    def tell(stage: str, done: float, total: float, detail: str = "") -> None:
        told.append(done)

    for _ in range(3):
        with pytest.raises(Killed):
            train(
                phase,
                hand_grown.supernet(dropout=0.3),
                2,
                samples=few,
                batch_size=2,
                checkpoint=checkpoint,
                report=killed,
            )
    assert told == [100 / 110, 1, 210 / 110]
    resumed, whole = hand_grown.supernet(dropout=0.3), hand_grown.supernet(dropout=0.3)
    train(phase, resumed, 2, samples=few, batch_size=2, checkpoint=checkpoint, report=tell)
    assert told[3:] == [2]
    train(phase, whole, 2, samples=few, batch_size=2)
    assert equal(weights(resumed), weights(whole))
    finished = hand_grown.supernet(dropout=0.3)
    train(phase, finished, 2, samples=few, batch_size=2, checkpoint=checkpoint, report=tell)
    assert told[4:] == []
    assert equal(weights(finished), weights(whole))


def test_only_the_blocks_of_a_steps_subnet_move() -> None:
    supernet = hand_grown.supernet()
    ran: list[set[int]] = []
    states: list[list[list[Tensor]]] = []
    numbers = {block: number for number, block in enumerate(supernet.added)}
    for block in supernet.added:
        block.register_forward_hook(lambda block, *_: ran[-1].add(numbers[block]) if block.training else None)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        states.append([[each.detach().clone() for each in block.parameters()] for block in supernet.added])
        ran.append(set())  # what follows, until the next loss, is the next step
        return functional.cross_entropy(outputs, targets)

    ran.append(set())
    train(tune, supernet, 2, loss=loss)
    assert set.union(*ran[:-1]) == set(range(5))
    for before, after, blocks in zip(states, states[1:], ran, strict=False):
        moved = {i for i in range(5) if not all(map(torch.equal, before[i], after[i]))}
        assert moved == blocks


def test_statistics_of_batch_norms_are_those_of_the_weights_at_the_end() -> None:
    supernet = hand_grown.supernet()
    norms = [module for module in supernet.added.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.fill_(1e6)
    data = hand_grown.digits()
    phase_settings = SupernetTraining(epochs=1, learningRate="0")
    tune(supernet, data.train, data.input, phase_settings, batch_size=50, seed=0)
    assert all(norm.momentum == 0.1 and norm.num_batches_tracked >= 4 for norm in norms)
    x = torch.from_numpy(data.train.x[:]).float()
    first = supernet.added[0][0]
    spec = data.input
    features = supernet.features((x * spec.scale - torch.tensor(spec.mean)) / torch.tensor(spec.std))[0]
    expected = first(features).mean((0, 2, 3))
    assert torch.allclose(norms[0].running_mean, expected, rtol=0.1, atol=0.05)


def test_a_backbone_learns_from_one_data_set_and_with_its_head_from_another() -> None:
    """Two-stage models (AdaptiveNet 6)."""
    chain, growths = hand_grown.chain(), hand_grown.growths()
    backbone = Supernet(Chain(chain.pieces[:-1]), growths)
    train(distill, backbone, 4)
    torch.manual_seed(1)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2))
    piece = Piece(name="head", module=head, input_shape=(8, 8, 8), output_shape=(2,), parameters=66, flops=128)
    whole = Supernet(Chain((*chain.pieces[:-1], piece)), growths)
    data = hand_grown.digits()
    places = np.stack([data.train.y / 10, data.train.y % 2], axis=1).astype(np.float32)
    other = Samples(data.train.x, places)

    def near(outputs: Tensor, targets: Tensor) -> float:
        return -float(functional.mse_loss(outputs, targets))

    before = subnet_accuracy(whole, other, data.input, [MERGED], score=near)
    train(tune, whole, 6, samples=other, loss=functional.mse_loss)
    after = subnet_accuracy(whole, other, data.input, [MERGED], score=near)
    assert after[0] > before[0] / 2


class Viewing(nn.Module):
    """Flattens by a call that refuses maps whose channels come last in memory."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.view(len(x), -1))


@pytest.mark.parametrize("phase", [distill, tune])
def test_a_network_that_flattens_by_view_is_trained_as_well(phase: Any) -> None:
    chain = hand_grown.chain()
    tail = replace(chain.pieces[-1], module=Viewing(nn.Linear(512, 10)))
    supernet = Supernet(Chain((*chain.pieces[:-1], tail)), hand_grown.growths())
    before = weights(supernet)
    train(phase, supernet, 1)
    assert not equal(weights(supernet), before)


def test_latency_range_accuracy_is_reported_after_every_epoch() -> None:
    told: list[tuple[str, float, float, str]] = []
    watched: list[bool] = []
    supernet = hand_grown.supernet()

    def watch() -> list[Bin]:
        watched.append(supernet.training)
        return [Bin(1.0, 2.0, 3, 0.5), Bin(2.0, 3.0, 0, None), Bin(3.0, 4.0, 3, 0.75)]

    train(distill, supernet, 2, watch=watch, report=lambda *each: told.append(each))
    assert watched == [False, False]
    assert [each[:3] for each in told] == [("distill", 1, 2), ("distill", 2, 2)]
    assert told[0][3].endswith(", accuracy 50.0%, 75.0% from fast to slow")


@pytest.mark.parametrize("phase", [distill, tune])
def test_what_cannot_be_trained_is_refused(phase: Any) -> None:
    samples = hand_grown.digits().train
    with pytest.raises(InvalidInputError, match=r"spec\.supernet: .* no added block"):
        train(phase, Supernet(hand_grown.chain(), []), 1)
    with pytest.raises(InvalidInputError, match=r"spec\.supernet\.batchSize: "):
        train(phase, hand_grown.supernet(), 1, batch_size=1)
    with pytest.raises(InvalidInputError, match=r"spec\.data: "):
        train(phase, hand_grown.supernet(), 1, samples=samples[:1])
