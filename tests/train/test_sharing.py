import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from meedge_ray.api.elastic_model import Convolution, Cultivation, Data, FullyConnected, Pretrain, Sharing
from meedge_ray.nn.backbones import build_backbone
from meedge_ray.nn.export import export_unit
from meedge_ray.nn.partition import partition
from meedge_ray.train.cultivate import Cultivated, ExitTask, cultivated
from meedge_ray.train.data import load_data
from meedge_ray.train.features import Features, cache_features
from meedge_ray.train.pretrain import pretrain
from meedge_ray.train.progress import silent
from meedge_ray.train.sharing import Figures, Merged, SharingTask, fc_inputs, few_lessons, shared
from meedge_ray.train.tasks import run_in_turn

CPU = torch.device("cpu")
EXIT = 2
NARROW = FullyConnected.model_validate({"pooledSize": 2, "hidden": [48]})
DEEP = FullyConnected.model_validate({"pooledSize": 2, "hidden": [64, 32]})
FLAT = FullyConnected.model_validate({"pooledSize": 1})
CHOICES = tuple(
    (Convolution.model_validate({"kind": kind}), fc) for kind in ("none", "depthwise") for fc in (FLAT, NARROW, DEEP)
)
TO_SHARE = tuple(choice for choice in CHOICES if choice[1].hidden)


@pytest.fixture(scope="module")
def cultivation(tmp_path_factory: pytest.TempPathFactory) -> ExitTask:
    """Real branches of a real backbone on real digits."""
    folder = tmp_path_factory.mktemp("sharing")
    dataset = load_data(Data(), folder)
    torch.manual_seed(0)
    backbone = build_backbone("resnet8", input_shape=(1, 8, 8), classes=10, arguments={})
    schedule = {"epochs": 6, "batchSize": 64, "learningRate": "0.01"}
    pretrain(backbone, dataset, Pretrain.model_validate(schedule), seed=0)
    cache_features(partition(backbone, (1, 8, 8)), dataset, folder / "features", silent)
    task = ExitTask(
        exit_index=EXIT,
        choices=CHOICES,
        classes=10,
        features=folder / "features",
        output=folder / "exit",
        settings=Cultivation.model_validate({"epochs": 8, "batchSize": 64, "learningRate": "0.005"}),
        shared_convolutions=True,
    )
    run_in_turn([task], silent)
    return task


def sharing(cultivation: ExitTask, output: Path, **changed: object) -> SharingTask:
    settings = Sharing.model_validate({"learningRate": "0.003", **changed})
    return SharingTask(cultivation=cultivation, choices=TO_SHARE, output=output, settings=settings)


@pytest.fixture(scope="module")
def finished(cultivation: ExitTask, tmp_path_factory: pytest.TempPathFactory) -> SharingTask:
    task = sharing(cultivation, tmp_path_factory.mktemp("merged") / "exit")
    run_in_turn([task], silent)
    return task


def feature_shape(task: SharingTask) -> tuple[int, int, int]:
    channels, height, width = Features(task.cultivation.features).features(EXIT, "train").shape[1:]
    return channels, height, width


def originals(task: SharingTask) -> list[Cultivated]:
    return [one for one in cultivated(task.cultivation, feature_shape(task)) if one.choice in TO_SHARE]


def merged(task: SharingTask) -> list[Merged]:
    return shared(task, feature_shape(task))


def figures(task: SharingTask) -> list[Figures]:
    return [Figures(**said) for said in json.loads((task.output / "merged.json").read_text())]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_merged_branches_have_a_quarter_of_their_hidden_neurons_less_or_somewhat_more(finished: SharingTask) -> None:
    by_choice = {one.choice: one for one in originals(finished)}
    assert [one.choice for one in merged(finished)] == list(TO_SHARE)
    for one in merged(finished):
        hidden = one.choice[1].hidden
        assert all(
            width // 2 // 3 <= neurons <= width // 4 for width, neurons in zip(hidden, one.merged_neurons, strict=True)
        )
        original = by_choice[one.choice]
        assert one.name == f"{original.name}.merged"
        assert one.exit_index == EXIT
        assert not one.module.training
        assert parameters(one.module) < parameters(original.module)


def test_merging_costs_hardly_any_accuracy_after_retraining(finished: SharingTask) -> None:
    before = {f"{one.name}.merged": one.accuracy for one in originals(finished)}
    assert min(before.values()) > 0.85
    for one in merged(finished):
        assert one.accuracy > before[one.name] - 0.03


def test_a_merged_branch_is_as_accurate_as_is_said(finished: SharingTask) -> None:
    cache = Features(finished.cultivation.features)
    x, y = torch.from_numpy(cache.features(EXIT, "validation").astype("float32")), cache.labels("validation")
    for one in merged(finished):
        with torch.no_grad():
            assert float((one.module(x).argmax(1).numpy() == y).mean()) == pytest.approx(one.accuracy, abs=0.005)


def test_the_figures_say_what_was_saved_and_the_better_weights_are_kept(finished: SharingTask) -> None:
    by_choice = {one.choice: one for one in originals(finished)}
    for one, said in zip(merged(finished), figures(finished), strict=True):
        original = by_choice[one.choice]
        assert said.name == original.name
        assert said.accuracy_original == original.accuracy
        assert one.accuracy == max(said.accuracy_merged, said.accuracy_retrained)
        assert said.parameters_original == parameters(original.module)
        assert said.parameters == parameters(one.module)
        assert said.saved_bytes == 4 * (said.parameters_original - said.parameters)
        assert tuple(said.widths) == tuple(
            width - neurons for width, neurons in zip(one.choice[1].hidden, one.merged_neurons, strict=True)
        )


def test_a_merged_branch_s_unit_is_smaller_by_about_what_is_said(finished: SharingTask) -> None:
    by_choice = {one.choice: one for one in originals(finished)}
    shape = feature_shape(finished)
    for one, said in zip(merged(finished), figures(finished), strict=True):
        saved = len(export_unit(by_choice[one.choice].module, shape)) - len(export_unit(one.module, shape))
        assert saved == pytest.approx(said.saved_bytes, abs=256)


def test_branches_over_one_convolution_are_merged_over_one(finished: SharingTask) -> None:
    convolutions = {one.name: one.module.get_submodule("convolution") for one in merged(finished)}
    of = {one.name: one.module.get_submodule("convolution").state_dict() for one in originals(finished)}
    for name, convolution in convolutions.items():
        for key, value in convolution.state_dict().items():
            assert torch.equal(value, of[name.removesuffix(".merged")][key])
    for kind in ("none", "depthwise3"):
        assert len({module for name, module in convolutions.items() if f".{kind}." in name}) == 1


def test_progress_is_told_a_branch_at_a_time(cultivation: ExitTask, tmp_path: Path) -> None:
    task = replace(sharing(cultivation, tmp_path / "merged", epochs=0), choices=TO_SHARE[:2])
    seen: list[int] = []

    def on_epoch(epoch: int, told: object) -> None:
        seen.append(epoch)
        assert not task.finished

    assert (task.stage, task.exit_index, task.epochs) == ("share", EXIT, 2)
    assert task.resources == cultivation.settings.resources
    task.run(on_epoch)
    assert seen == [1, 2]
    assert task.finished


def test_a_killed_task_leaves_nothing_and_starts_again(cultivation: ExitTask, tmp_path: Path) -> None:
    task = pickle.loads(pickle.dumps(sharing(cultivation, tmp_path / "merged", epochs=0)))

    def killed(epoch: int, told: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task.run(killed)
    assert not task.finished
    assert list(tmp_path.iterdir()) == []
    run_in_turn([task], silent)
    assert len(merged(task)) == len(TO_SHARE)


def test_the_same_seed_gives_the_same_heads(cultivation: ExitTask, tmp_path: Path) -> None:
    tasks = [
        replace(sharing(cultivation, tmp_path / name, epochs=1), choices=TO_SHARE[:1]) for name in ("one", "again")
    ]
    run_in_turn(tasks, silent)
    one, again = ((task.output / "weights.safetensors").read_bytes() for task in tasks)
    assert one == again


def test_a_fifth_of_the_training_samples_is_retrained_on(cultivation: ExitTask, finished: SharingTask) -> None:
    features = Features(cultivation.features)
    branch = originals(finished)[0].module
    lessons = few_lessons(branch, EXIT, features, 20, 0, CPU)
    assert len(lessons.labels) == len(features.labels("train")) // 5
    assert lessons.inputs.shape == (len(lessons.labels), 4 * feature_shape(finished)[0])
    again = few_lessons(branch, EXIT, features, 20, 0, CPU)
    assert torch.equal(lessons.inputs, again.inputs)
    assert not torch.equal(lessons.labels, few_lessons(branch, EXIT, features, 20, 1, CPU).labels)
    # A sample's features, label and teacher belong together.
    assert float((lessons.teacher.argmax(1) == lessons.labels).double().mean()) > 0.9


def test_what_reaches_the_fc_layers_gives_the_branch_s_logits(cultivation: ExitTask, finished: SharingTask) -> None:
    maps = Features(cultivation.features).features(EXIT, "validation")
    chosen = torch.arange(0, 40, 3).numpy()
    for one in originals(finished):
        head = one.module.get_submodule("head")
        first = next(index for index, part in enumerate(head) if isinstance(part, nn.Linear))
        with torch.no_grad():
            logits = head[first:](fc_inputs(one.module, maps, chosen, CPU))
            expected = one.module(torch.from_numpy(maps[chosen].astype("float32")))
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
