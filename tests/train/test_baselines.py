import pytest

from meedge_ray.nn.backbones import build_backbone
from meedge_ray.nn.partition import Chain, partition
from meedge_ray.train.baselines import SPINN_EXITS, baseline_choices, equal_flops_exits

IMAGE = (3, 32, 32)


def chain_of(architecture: str, shape: tuple[int, int, int] = IMAGE) -> Chain:
    return partition(build_backbone(architecture, input_shape=shape, classes=10, arguments={}), shape)


def branchynet(architecture: str, shape: tuple[int, int, int] = IMAGE) -> dict[str, str]:
    """Where the branches are and what their convolution is, by the names of blocks."""
    chain = chain_of(architecture, shape)
    choices = baseline_choices(chain, architecture).get("branchynet", {})
    return {chain.pieces[exit_index].name: convolution.name for exit_index, (convolution, _) in choices.items()}


def test_every_exit_has_one_fc_layer_in_the_multi_exit_network() -> None:
    chain = chain_of("resnet20")
    multi_exit = baseline_choices(chain, "resnet20")["multi_exit_fc"]
    assert list(multi_exit) == list(range(chain.exit_count))
    assert {(convolution.name, fc.name) for convolution, fc in multi_exit.values()} == {("none", "pool4")}


def test_einet_has_one_convolution_and_two_fc_layers_at_every_exit() -> None:
    chain = chain_of("vgg16")
    einet = baseline_choices(chain, "vgg16")["einet"]
    assert list(einet) == list(range(chain.exit_count))
    assert {convolution.name for convolution, _ in einet.values()} == {"standard3"}
    assert {fc.hidden for _, fc in einet.values()} == {(64,)}


def test_spinn_has_six_exits_at_equal_flops() -> None:
    chain = chain_of("resnet20")
    exits = equal_flops_exits(chain)
    assert len(exits) == SPINN_EXITS
    assert sorted(set(exits)) == list(exits)
    spinn = baseline_choices(chain, "resnet20")["spinn"]
    assert tuple(spinn) == exits
    assert {convolution.name for convolution, _ in spinn.values()} == {"standard3"}


def test_branchynet_has_its_published_branches() -> None:
    assert branchynet("lenet") == {"stem": "standard3"}
    assert branchynet("alexnet") == {"stem": "standard3-x2", "features.3": "standard3"}
    # The 2nd of 109 convolutions is inside the first residual block, the 37th ends the first stage.
    assert branchynet("resnet110") == {"layer1.0": "standard3-x3", "layer1.17": "standard3-x2"}


@pytest.mark.parametrize(
    ("architecture", "blocks"), [("resnet8", 1), ("resnet20", 3), ("resnet56", 9)], ids=lambda value: str(value)
)
def test_branchynets_later_branch_ends_the_first_stage_of_any_resnet(architecture: str, blocks: int) -> None:
    assert list(branchynet(architecture).values()) == ["standard3-x3", "standard3-x2"]
    assert list(branchynet(architecture))[1] == f"layer1.{blocks - 1}"


@pytest.mark.parametrize("architecture", ["vgg16", "torchvision/resnet18"])
def test_where_nobody_designed_branches_there_is_no_branchynet(architecture: str) -> None:
    assert set(baseline_choices(chain_of(architecture), architecture)) == {"multi_exit_fc", "einet", "spinn"}


@pytest.mark.parametrize("shape", [(22, 20, 20), (1, 28, 28)])
def test_baselines_fit_the_maps_of_other_inputs(shape: tuple[int, int, int]) -> None:
    for architecture in ("lenet", "alexnet", "resnet20"):
        chain = chain_of(architecture, shape)
        for method in baseline_choices(chain, architecture).values():
            for exit_index, (_, fc) in method.items():
                assert fc.pooled_size <= min(chain.map_shape(exit_index)[1:])
