from typing import Any

import pytest

from meedge_ray.api.elastic_model import ElasticModelSpec
from meedge_ray.api.stages import STAGES, forerunners, stage_key, stages_of

WHOLE: dict[str, Any] = {
    "model": {"architecture": "resnet8", "pretrain": {"epochs": 3}},
    "zoo": {
        "convolutions": [{"kind": "none"}],
        "fullyConnected": [{"pooledSize": 2, "hidden": [24]}, {"pooledSize": 1, "hidden": [12]}],
    },
    "cultivation": {"epochs": 2},
    "sharing": {"epochs": 2},
    "supernet": {},
}
FROM_WEIGHTS = WHOLE | {"model": {"architecture": "resnet8", "weights": "own.safetensors"}}


def spec(content: dict[str, Any] = WHOLE, **changed: Any) -> ElasticModelSpec:
    return ElasticModelSpec.model_validate(content | changed)


def touched(content: dict[str, Any], changed: dict[str, Any]) -> set[str]:
    """Return the stages whose keys a change moves."""
    before, after = spec(content), spec(content, **changed)
    assert stages_of(before) == stages_of(after)
    return {stage for stage in stages_of(before) if stage_key(before, stage) != stage_key(after, stage)}


@pytest.mark.parametrize(
    ("content", "changed", "stages"),
    [
        (WHOLE, {}, STAGES),
        (FROM_WEIGHTS, {}, STAGES[1:]),
        (WHOLE, {"sharing": None}, ("pretrain", "cultivate", "elasticize", "assemble")),
        (WHOLE, {"zoo": None}, ("pretrain", "elasticize", "assemble")),
        (FROM_WEIGHTS, {"zoo": None, "supernet": None}, ("assemble",)),
    ],
)
def test_a_spec_has_the_stages_it_asks_for(
    content: dict[str, Any], changed: dict[str, Any], stages: tuple[str, ...]
) -> None:
    assert stages_of(spec(content, **changed)) == stages


def test_a_stage_comes_after_all_that_it_needs() -> None:
    for content in (WHOLE, FROM_WEIGHTS, WHOLE | {"sharing": None}, WHOLE | {"zoo": None, "supernet": None}):
        whole = spec(content)
        stages = stages_of(whole)
        for place, stage in enumerate(stages):
            assert set(forerunners(whole, stage)) <= set(stages[:place])
        assert forerunners(whole, "assemble") == stages[:-1]
    assert forerunners(spec(), "elasticize") == ("pretrain",)
    assert forerunners(spec(), "share") == ("pretrain", "cultivate")


@pytest.mark.parametrize(
    ("changed", "stages"),
    [
        ({"model": {"architecture": "resnet14", "pretrain": {"epochs": 3}}}, set(STAGES)),
        ({"model": {"architecture": "resnet8", "pretrain": {"epochs": 4}}}, set(STAGES)),
        ({"data": {"split": {"seed": 1}}}, set(STAGES)),
        ({"data": {"source": "npz", "path": "x.npz"}}, set(STAGES)),
        ({"cultivation": {"epochs": 2, "seed": 1}}, set(STAGES)),
        ({"zoo": {**WHOLE["zoo"], "sharedConvolutions": True}}, {"cultivate", "share", "assemble"}),
        ({"cultivation": {"epochs": 3}}, {"cultivate", "share", "assemble"}),
        ({"cultivation": {"epochs": 2, "earlyStopping": {}}}, {"cultivate", "share", "assemble"}),
        ({"sharing": {"epochs": 3}}, {"share", "assemble"}),
        ({"sharing": {"epochs": 2, "fullyConnected": ["pool1-fc12"]}}, {"share", "assemble"}),
        ({"supernet": {"shrunk": ["0.5"]}}, {"elasticize", "assemble"}),
        ({"supernet": {"seed": 1}}, {"elasticize", "assemble"}),
        ({"supernet": {"resources": {"cpus": 2}}}, set()),
        ({"cultivation": {"epochs": 2, "memory": "2Gi", "disk": "9Gi", "resources": {"cpus": 2}}}, set()),
        ({"suspend": True, "backoffLimit": 9, "activeDeadlineSeconds": 60}, set()),
        ({"data": {}}, set()),
    ],
)
def test_a_change_moves_the_keys_of_what_depends_on_it_and_no_others(changed: dict[str, Any], stages: set[str]) -> None:
    assert touched(WHOLE, changed) == stages


def test_the_seed_of_cultivation_is_that_of_a_backbone_only_where_one_is_trained() -> None:
    assert touched(FROM_WEIGHTS, {"cultivation": {"epochs": 2, "seed": 1}}) == {"cultivate", "share", "assemble"}


def test_stages_that_are_left_out_change_the_bundle_and_nothing_before_it() -> None:
    whole = spec()
    for section, gone in (("sharing", "share"), ("supernet", "elasticize")):
        less = spec(**{section: None})
        assert stage_key(less, "assemble") != stage_key(whole, "assemble")
        for stage in set(stages_of(less)) - {"assemble", gone}:
            assert stage_key(less, stage) == stage_key(whole, stage)


def test_what_a_left_out_stage_would_have_done_does_not_count() -> None:
    less = WHOLE | {"zoo": None}
    assert touched(less, {"sharing": {"epochs": 9}}) == set()
    assert touched(less, {"cultivation": {"epochs": 9}}) == set()


def test_every_stage_has_a_key_of_its_own() -> None:
    keys = {stage_key(spec(), stage) for stage in STAGES}
    assert len(keys) == len(STAGES)
    assert all(len(key) == 64 for key in keys)


def test_every_section_of_a_spec_is_accounted_for() -> None:
    running = {"suspend", "backoff_limit", "active_deadline_seconds"}
    built = {"model", "data", "zoo", "cultivation", "sharing", "supernet"}
    assert set(ElasticModelSpec.model_fields) == running | built, "a new section: which stages depend on it?"


def test_a_stage_the_spec_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="no stage 'share', only pretrain, cultivate"):
        stage_key(spec(sharing=None), "share")
