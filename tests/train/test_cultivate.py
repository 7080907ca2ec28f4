"""Cultivation of one exit: what grouping, sharing, stopping and killing may change, and what not."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

import growing
import numpy as np
import pytest
import torch
from growing import CLASSES, SHAPE, ZOO, task, write_features
from safetensors.numpy import load_file
from torch import nn
from torch.nn import functional

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.nn.branches import branch_name, build_branch
from meedge_ray.train.cultivate import Cultivated, ExitTask, cultivated
from meedge_ray.train.features import Features
from meedge_ray.train.stopping import beaten_stems
from meedge_ray.train.zoo_memory import branch_cost
from meedge_ray.train.zoo_network import Group, Stem

SHARED = ZOO | {"sharedConvolutions": True}
EARLY = {"afterEpochs": 1, "marginPercent": 5}


class KilledError(Exception):
    pass


def silent(_epoch: int, _figures: object) -> None:
    pass


def killed_after(epochs: int):
    def on_epoch(epoch: int, _figures: object) -> None:
        if epoch == epochs:
            raise KilledError

    return on_epoch


def grown(exit_task: ExitTask) -> dict[str, Cultivated]:
    exit_task.run(silent)
    return {branch.name: branch for branch in cultivated(exit_task, SHAPE)}


def weights(exit_task: ExitTask) -> dict[str, np.ndarray]:
    return load_file(exit_task.output / "weights.safetensors")


def fresh(exit_task: ExitTask, stem: Stem) -> dict[str, nn.Module]:
    """Return a stem's branches as they begin."""
    group = Group([stem], SHAPE, CLASSES, seed=exit_task.settings.seed)
    parts = {key: part.of(part.whole).detach().clone() for key, part in group.parts()}
    choices = {branch_name(0, *choice): choice for choice in exit_task.choices}
    branches: dict[str, nn.Module] = {}
    for name, _ in stem.heads:
        branch = build_branch(*choices[name], SHAPE, CLASSES)
        own = (key for key in parts if key.split("/")[0] in (stem.name, name))
        branch.load_state_dict({key.split("/")[1]: parts[key] for key in own})
        first = next(iter(branches.values()), branch)
        branch.convolution = first.get_submodule("convolution")
        branches[name] = branch
    return branches


def train_plainly(exit_task: ExitTask, branches: Mapping[str, nn.Module]) -> dict[str, float]:
    """Train branches as anyone would; those over one convolution by the sum of their losses."""
    settings, features = exit_task.settings, Features(exit_task.features)
    parameters = list(dict.fromkeys(chain.from_iterable(branch.parameters() for branch in branches.values())))
    labels = torch.from_numpy(features.labels("train"))
    steps = -(-len(labels) // settings.batch_size)
    optimizer = torch.optim.Adam(parameters, lr=float(settings.learning_rate))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * steps)
    for epoch in range(settings.epochs):
        maps = torch.from_numpy(np.array(features.features(0, "train", epoch % features.views))).float()
        order = np.random.default_rng((settings.seed, epoch)).permutation(len(labels))
        for chosen in np.array_split(order, steps):
            convolved = next(iter(branches.values())).get_submodule("convolution")(maps[chosen])
            heads = [branch.get_submodule("head") for branch in branches.values()]
            loss = sum(functional.cross_entropy(head(convolved), labels[chosen]) for head in heads)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    maps = torch.from_numpy(np.array(features.features(0, "validation"))).float()
    truth = torch.from_numpy(features.labels("validation"))
    with torch.inference_mode():
        said = {name: branch.eval()(maps).argmax(1) for name, branch in branches.items()}
    return {name: float((answers == truth).float().mean()) for name, answers in said.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_features(tmp_path / "features")
    return tmp_path


@pytest.mark.parametrize("zoo", [ZOO, SHARED], ids=["own convolutions", "shared convolutions"])
def test_every_branch_becomes_what_it_would_become_alone(tmp_path: Path, zoo: dict) -> None:
    write_features(tmp_path / "features", views=2)
    exit_task = task(tmp_path, zoo=zoo, epochs=3, learningRate="0.003")
    together = grown(exit_task)
    assert len(together) == 15
    for stem in exit_task.stems:
        branches = fresh(exit_task, stem)
        accuracies = train_plainly(exit_task, branches)
        for name, branch in branches.items():
            assert together[name].accuracy == pytest.approx(accuracies[name], abs=0.025), name
            mine = together[name].module.state_dict()
            for key, value in branch.state_dict().items():
                assert torch.allclose(mine[key], value, atol=2e-3), (name, key)


@pytest.mark.parametrize("zoo", [ZOO, SHARED], ids=["own convolutions", "shared convolutions"])
def test_the_memory_declared_changes_groups_but_not_results(folder: Path, zoo: dict) -> None:
    large, small = task(folder, zoo=zoo, output="large"), task(folder, zoo=zoo, output="small", memory="421.3Mi")
    assert len(large.plan(SHAPE, large.stems)) < len(small.plan(SHAPE, small.stems))
    others = grown(small)
    for name, branch in grown(large).items():
        other = others[name]
        assert branch.accuracy == pytest.approx(other.accuracy, abs=0.025)
        for key, value in branch.module.state_dict().items():
            assert torch.allclose(value, other.module.state_dict()[key], atol=2e-3), (name, key)


def test_too_little_memory_is_refused_before_any_work(folder: Path) -> None:
    exit_task = task(folder, memory="64Mi")
    for refused in (lambda: exit_task.check(SHAPE), lambda: exit_task.run(silent)):
        with pytest.raises(InvalidInputError, match="15 branches on maps of 4x8x8") as caught:
            refused()
        assert caught.value.where == "spec.cultivation.memory"
    assert [path.name for path in folder.iterdir()] == ["features"]


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_weights(folder: Path) -> None:
    one, two, other = task(folder, output="one"), task(folder, output="two"), task(folder, output="other", seed=1)
    for exit_task in (one, two, other):
        exit_task.run(silent)
    assert (one.output / "weights.safetensors").read_bytes() == (two.output / "weights.safetensors").read_bytes()
    assert (one.output / "accuracy.json").read_bytes() == (two.output / "accuracy.json").read_bytes()
    assert any((weights(one)[key] != weights(other)[key]).any() for key in weights(one))


def test_its_output_appears_whole_and_nothing_else_stays(folder: Path) -> None:
    exit_task = task(folder)
    assert not exit_task.finished
    exit_task.run(silent)
    assert exit_task.finished
    assert sorted(path.name for path in folder.iterdir()) == ["exit-00", "features"]
    assert sorted(path.name for path in exit_task.output.iterdir()) == ["accuracy.json", "weights.safetensors"]


def test_branches_learn(folder: Path) -> None:
    branches = grown(task(folder, epochs=10))
    assert max(branch.accuracy for branch in branches.values()) > 0.7
    assert {branch.stopped_epoch for branch in branches.values()} == {None}


def test_shared_convolutions_are_one_module_and_all_others_are_not(folder: Path) -> None:
    shared, apart = grown(task(folder, zoo=SHARED, output="shared")), grown(task(folder, output="apart"))
    for branches, distinct in ((shared, 5), (apart, 15)):
        convolutions = {id(branch.module.get_submodule("convolution")) for branch in branches.values()}
        assert len(convolutions) == distinct
        assert len({id(branch.module.get_submodule("head")) for branch in branches.values()}) == 15
    modules = {id(b.module.get_submodule("convolution")) for b in shared.values() if b.choice[0].name == "dilated3"}
    assert len(modules) == 1


@pytest.mark.parametrize("early", [None, EARLY], ids=["all to the end", "some stopped early"])
@pytest.mark.parametrize("zoo", [ZOO, SHARED], ids=["own convolutions", "shared convolutions"])
def test_a_run_interrupted_after_every_epoch_ends_with_the_same_bits(folder: Path, zoo: dict, early: dict) -> None:
    unbroken = task(folder, zoo=zoo, output="unbroken", epochs=4, earlyStopping=early)
    broken = replace(unbroken, output=folder / "broken")
    unbroken.run(silent)
    for epoch in range(1, 5):
        with pytest.raises(KilledError):
            broken.run(killed_after(epoch))
        assert not broken.finished
    told = []
    broken.run(lambda epoch, _: told.append(epoch))
    assert not told, "an epoch was trained again"
    for name in ("weights.safetensors", "accuracy.json"):
        assert (broken.output / name).read_bytes() == (unbroken.output / name).read_bytes()


def test_a_process_killed_in_the_middle_of_an_exit_is_gone_on_from(folder: Path) -> None:
    arguments = {"epochs": 6, "output": "killed", "earlyStopping": EARLY}
    declared = folder / "task.json"
    declared.write_text(json.dumps(arguments))
    command = [sys.executable, growing.__file__, str(declared), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["1\n", "2\n"]
        process.send_signal(signal.SIGKILL)
    resumed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert resumed.stdout.split()[0] in ("3", "4", "5", "6")
    assert resumed.stdout.split()[-1] == "6"
    unbroken = task(folder, **arguments | {"output": "unbroken"})
    unbroken.run(silent)
    for name in ("weights.safetensors", "accuracy.json"):
        assert (folder / "killed" / name).read_bytes() == (unbroken.output / name).read_bytes()


def test_a_stopped_branch_keeps_its_weights_and_accuracy_of_then_and_is_trained_no_more(folder: Path) -> None:
    early, full = task(folder, epochs=4, earlyStopping=EARLY, output="early"), task(folder, epochs=4, output="full")
    branches = grown(early)
    stopped = {name: branch for name, branch in branches.items() if branch.stopped_epoch == 1}
    assert 0 < len(stopped) < len(branches)
    with pytest.raises(KilledError):
        full.run(killed_after(1))
    then = load_file(folder / "full.training" / "epoch-000001" / "weights.safetensors")
    accuracies = json.loads((folder / "full.training" / "epoch-000001" / "progress.json").read_text())["accuracies"]
    for name, branch in stopped.items():
        assert branch.accuracy == accuracies[name]
        for key, value in branch.module.state_dict().items():
            assert np.array_equal(value.numpy(), then[f"{name}/{key}"])
    with pytest.raises(KilledError):
        replace(early, output=folder / "again").run(killed_after(2))
    after = load_file(folder / "again.training" / "epoch-000002" / "weights.safetensors")
    assert {key.split("/")[0] for key in after} == set(branches) - set(stopped)


def test_a_spared_branch_is_never_stopped(folder: Path) -> None:
    early = task(folder, epochs=4, earlyStopping=EARLY, output="early")
    spared = replace(early, spared=early.choices, output=folder / "spared")
    assert any(branch.stopped_epoch for branch in grown(early).values())
    assert not any(branch.stopped_epoch for branch in grown(spared).values())


def stem(*names: str) -> Stem:
    return Stem(names[0], task(Path()).choices[0][0], tuple((name, task(Path()).choices[0][1]) for name in names))


@pytest.mark.parametrize(
    ("accuracies", "costs", "expected"),
    [
        ({"a": 0.80, "b": 0.70}, {"a": (5, 5), "b": (5, 5)}, ["b"]),
        ({"a": 0.80, "b": 0.76}, {"a": (5, 5), "b": (5, 5)}, []),  # within the margin
        ({"a": 0.80, "b": 0.70}, {"a": (6, 5), "b": (5, 5)}, []),  # by more weights
        ({"a": 0.80, "b": 0.70}, {"a": (5, 6), "b": (5, 5)}, []),  # by more computation
        ({"a": 0.80, "b": 0.70, "gone": 0.9}, {"a": (5, 5), "b": (5, 5), "gone": (1, 1)}, ["a", "b"]),
    ],
)
def test_a_branch_is_beaten_by_one_that_is_clearly_better_at_no_more_cost(accuracies, costs, expected) -> None:
    beaten = beaten_stems([stem("a"), stem("b")], accuracies, costs, margin=0.05, spared=frozenset())
    assert [one.name for one in beaten] == expected


def test_a_shared_convolution_goes_on_while_one_of_its_branches_is_not_beaten() -> None:
    accuracies, costs = {"a": 0.9, "b": 0.5, "c": 0.5, "d": 0.89}, dict.fromkeys("abcd", (1, 1))
    live = [stem("a"), stem("b", "c"), stem("c", "d")]
    beaten = beaten_stems(live, accuracies, costs, margin=0.05, spared=frozenset())
    assert [one.name for one in beaten] == ["b"]
    assert not beaten_stems(live, accuracies, costs, margin=0.05, spared=frozenset("c"))


def test_a_branch_s_cost_counts_its_weights_and_multiply_adds() -> None:
    choices = {branch_name(0, *choice): choice for choice in task(Path()).choices}
    assert branch_cost(choices["e00.none.pool1"], SHAPE, CLASSES) == (4 * 3 + 3, 2 * 4 * 3)
    parameters, flops = branch_cost(choices["e00.depthwise5.pool2-fc6"], SHAPE, CLASSES)
    assert parameters == 4 * 25 + 2 * 4 + (16 * 6 + 6) + (6 * 3 + 3)
    assert flops == 2 * (4 * 25 * 64 + 16 * 6 + 6 * 3)
