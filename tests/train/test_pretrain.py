import signal
import subprocess
import sys
from pathlib import Path

import pretraining
import pytest
import torch
from torch import Tensor, nn

from meedge_ray.api.elastic_model import Data, Pretrain
from meedge_ray.train.data import load_data
from meedge_ray.train.pretrain import pretrain


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before() -> None:
    first = pretraining.trained(None)
    torch.manual_seed(99)
    assert same(first, pretraining.trained(None))
    assert not first.training


def test_training_learns() -> None:
    losses: list[float] = []
    pretraining.trained(None, report=lambda stage, done, total, detail="": losses.append(float(detail.split()[1])))
    assert len(losses) == 4
    assert losses[-1] < losses[0] / 2


def test_all_exits_learn_together() -> None:
    samples = load_data(Data.model_validate({"trainSamples": 300}), Path()).train
    untrained, trained = pretraining.multi_exit(), pretraining.trained(None, make=pretraining.multi_exit)
    x = torch.from_numpy(samples.x[:]).float() / 8 - 1
    for before, after in zip(untrained.eval()(x), trained(x), strict=True):
        accuracies = [(logits.argmax(1).numpy() == samples.y).mean() for logits in (before, after)]
        assert accuracies[0] < 0.3
        assert accuracies[1] > 0.9


@pytest.mark.parametrize("together", [False, True])
def test_killed_training_goes_on_to_the_same_bits(together: bool, tmp_path: Path) -> None:
    make = pretraining.multi_exit if together else pretraining.network
    checkpoint = tmp_path / "checkpoint.safetensors"
    command = [sys.executable, pretraining.__file__, str(checkpoint), *(["together"] if together else [])]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    told: list[float] = []
    resumed = pretraining.trained(checkpoint, make=make, report=lambda stage, done, total, detail="": told.append(done))
    assert told == [2, 3, 4]
    assert same(resumed, pretraining.trained(None, make=make))
    assert same(resumed, pretraining.trained(checkpoint, make=make, report=lambda *_: told.append(5)))
    assert told == [2, 3, 4]


def test_a_network_that_flattens_with_view_is_trained_as_well() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.linear = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.convolution(x).view(len(x), -1))

    model = Viewing()
    before = model.linear.weight.clone()
    pretrain(
        model,
        load_data(Data.model_validate({"trainSamples": 64}), Path()),
        Pretrain.model_validate({"epochs": 1}),
        seed=0,
    )
    assert not torch.equal(model.linear.weight, before)
    assert model.convolution.weight.is_contiguous()
