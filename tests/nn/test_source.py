import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from meedge_ray.api.elastic_model import Model
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.nn.source import load_model, save_weights

SHAPE = (1, 28, 28)


def load(folder, *, architecture="lenet", classes=10, shape=SHAPE, weights="model.safetensors"):
    model = Model.model_validate({"architecture": architecture, "weights": weights})
    return load_model(model, input_shape=shape, classes=classes, base_dir=folder)


@pytest.fixture
def saved(tmp_path):
    model = Model.model_validate({"architecture": "lenet", "pretrain": {"epochs": 1}})
    fresh = load_model(model, input_shape=SHAPE, classes=10, base_dir=tmp_path)
    save_weights(fresh, tmp_path / "model.safetensors")
    return fresh


def test_saved_weights_are_loaded_and_the_model_is_in_eval_mode(tmp_path, saved):
    loaded = load(tmp_path)
    assert not loaded.training
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_tied_weights_are_saved_under_each_of_their_names(tmp_path):
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    save_weights(tied, tmp_path / "tied.safetensors")
    assert set(load_file(tmp_path / "tied.safetensors")) == set(tied.state_dict())


def test_saving_replaces_the_file_and_leaves_nothing_beside_it(tmp_path, saved):
    save_weights(saved, tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_without_batch_counters_is_whole(tmp_path):
    model = Model.model_validate({"architecture": "resnet8", "pretrain": {"epochs": 1}})
    fresh = load_model(model, input_shape=(3, 32, 32), classes=10, base_dir=tmp_path)
    weights = {key: value for key, value in fresh.state_dict().items() if not key.endswith("batches_tracked")}
    save_file(weights, tmp_path / "model.safetensors")
    load(tmp_path, architecture="resnet8", shape=(3, 32, 32))


def test_weights_of_another_class_count_are_refused_with_both_shapes(tmp_path, saved, says):
    with pytest.raises(InvalidInputError) as caught:
        load(tmp_path, classes=3)
    says(
        caught.value,
        what="does not hold the weights of lenet: of another shape fc3.bias (10 in the file, 3 in the model), "
        "fc3.weight (10x84 in the file, 3x84 in the model)",
        where="spec.model.weights",
        do="Check spec.model.architecture and its arguments",
    )


def test_weights_of_another_architecture_are_refused_with_the_first_keys(tmp_path, saved, says):
    with pytest.raises(InvalidInputError) as caught:
        load(tmp_path, architecture="resnet8", shape=(3, 32, 32))
    says(
        caught.value,
        what="does not hold the weights of resnet8: missing bn1.bias, bn1.running_mean, bn1.running_var and ",
        where="spec.model.weights",
        do="or give the file saved from this very model",
    )
    assert "; unexpected conv1.bias, conv2.bias, conv2.weight and 6 more; " in caught.value.what
    assert "of another shape conv1.weight (6x1x5x5 in the file, 16x3x3x3 in the model)" in caught.value.what


@pytest.mark.parametrize(
    ("name", "what"),
    [("missing.safetensors", "cannot read"), (".", "cannot read")],
    ids=["missing", "folder"],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, what, says):
    with pytest.raises(InvalidInputError) as caught:
        load(tmp_path, weights=name)
    says(caught.value, what=what, where="spec.model.weights", do="relative to the manifest")
    assert str(tmp_path) in caught.value.what


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickled", b"x" * 100], ids=["empty", "pickle", "text"])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, content, says):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidInputError) as caught:
        load(tmp_path)
    says(
        caught.value,
        what="model.safetensors is not a whole safetensors file",
        where="spec.model.weights",
        do="safetensors.torch.save_file",
    )


def test_a_truncated_file_is_refused(tmp_path, saved):
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InvalidInputError, match="not a whole safetensors file"):
        load(tmp_path)
