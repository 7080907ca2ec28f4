"""The stages of a build: which of them a spec has, what each needs, and which of them a change of the spec touches."""

import hashlib
import json
from typing import Any

from meedge_ray.api.elastic_model import ElasticModelSpec

STAGES = ("pretrain", "cultivate", "share", "elasticize", "assemble")

# Raised when what a stage leaves for others is no longer read as before.
_FORMAT = 1

_FORERUNNERS = {
    "pretrain": (),
    "cultivate": ("pretrain",),
    "share": ("pretrain", "cultivate"),
    "elasticize": ("pretrain",),
    "assemble": ("pretrain", "cultivate", "share", "elasticize"),
}
# They say where and how fast it is trained, and move results by roundings at most.
_MEANS = {"resources", "memory", "disk"}


def stages_of(spec: ElasticModelSpec) -> tuple[str, ...]:
    """Return the stages this spec's build has, in an order they can run in."""
    declared = {
        "pretrain": spec.model.pretrain is not None,
        "cultivate": spec.zoo is not None,
        "share": spec.zoo is not None and spec.sharing is not None,
        "elasticize": spec.supernet is not None,
        "assemble": True,
    }
    return tuple(stage for stage in STAGES if declared[stage])


def forerunners(spec: ElasticModelSpec, stage: str) -> tuple[str, ...]:
    """Return the stages whose results this stage needs, in order.

    Raises:
        ValueError: the spec's build has no such stage.
    """
    stages = stages_of(spec)
    if stage not in stages:
        raise ValueError(f"the build has no stage {stage!r}, only {', '.join(stages)}")
    return tuple(each for each in stages if each in _FORERUNNERS[stage])


def stage_key(spec: ElasticModelSpec, stage: str) -> str:
    """Return a hash of all in the spec that the stage's result depends on, 64 hexadecimal digits.

    Equal keys mean equal results, given the same contents of the files that the spec names.

    Raises:
        ValueError: the spec's build has no such stage.
    """
    inputs: dict[str, Any] = {"format": _FORMAT, "model": spec.model.model_dump(), "data": spec.data.model_dump()}
    for each in (*forerunners(spec, stage), stage):
        inputs |= _own_inputs(spec, each)
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _own_inputs(spec: ElasticModelSpec, stage: str) -> dict[str, Any]:
    if stage == "cultivate":
        assert spec.zoo is not None
        return {"zoo": spec.zoo.model_dump(), "cultivation": spec.cultivation.model_dump(exclude=_MEANS)}
    if stage == "share":
        assert spec.sharing is not None
        return {"sharing": spec.sharing.model_dump()}
    if stage == "elasticize":
        assert spec.supernet is not None
        return {"supernet": spec.supernet.model_dump(exclude=_MEANS)}
    # One seed for all that is drawn but the supernet: the backbone's training, and the predictor's.
    return {"seed": spec.cultivation.seed}
