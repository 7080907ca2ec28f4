import signal
import subprocess
import sys
from pathlib import Path

import pretraining
import torch
from torch import nn


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


def test_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    command = [sys.executable, pretraining.__file__, str(checkpoint)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    told: list[float] = []
    resumed = pretraining.trained(checkpoint, report=lambda stage, done, total, detail="": told.append(done))
    assert told == [2, 3, 4]
    assert same(resumed, pretraining.trained(None))
    assert same(resumed, pretraining.trained(checkpoint, report=lambda *_: told.append(5)))
    assert told == [2, 3, 4]
