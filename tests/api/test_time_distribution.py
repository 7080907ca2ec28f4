import json
from typing import Any

import pytest
from pydantic import ValidationError

from meedge_ray.api.time_distribution import UNIFORM, TimeDistribution


def test_nothing_said_is_uniform() -> None:
    assert TimeDistribution.model_validate({}) == UNIFORM
    assert UNIFORM.is_uniform
    assert not TimeDistribution.model_validate({"normal": {"mean_ms": 3, "standard_deviation_ms": 1}}).is_uniform


def test_numbers_and_quoted_decimals_are_the_same() -> None:
    written = TimeDistribution.model_validate({"histogram": {"edges_ms": [0, 2.5, 4], "probabilities": [0.25, 0.75]}})
    quoted = TimeDistribution.model_validate(
        {"histogram": {"edges_ms": ["0", "2.5", 4], "probabilities": ["0.25", "0.75"]}}
    )
    assert written == quoted
    assert hash(written) == hash(quoted)
    assert TimeDistribution.model_validate_json(written.model_dump_json()) == written


@pytest.mark.parametrize(
    ("document", "field", "said"),
    [
        ({"histogram": {"edges_ms": [0, 1, 2], "probabilities": [0.5, 0.4]}}, "histogram.probabilities", "sum to one"),
        ({"histogram": {"edges_ms": [0, 1, 2], "probabilities": [1.0]}}, "histogram.probabilities", "2 probabilities"),
        ({"histogram": {"edges_ms": [0, 1, 2], "probabilities": [1.5, -0.5]}}, "histogram.probabilities.1", "0"),
        ({"histogram": {"edges_ms": [0, 2, 2], "probabilities": [0.5, 0.5]}}, "histogram.edges_ms", "edge 2 is 2"),
        ({"histogram": {"edges_ms": [1, 2], "probabilities": [1]}}, "histogram.edges_ms", "the first of them 0"),
        ({"histogram": {"edges_ms": [0], "probabilities": [1]}}, "histogram.edges_ms", "at least two edges"),
        ({"histogram": {"edges_ms": [0, "soon"], "probabilities": [1]}}, "histogram.edges_ms.1", "number"),
        ({"histogram": {"edges_ms": [0, float("inf")], "probabilities": [1]}}, "histogram.edges_ms.1", "finite"),
        ({"histogram": {"edges_ms": [0, 1]}}, "histogram.probabilities", "required"),
        ({"normal": {"mean_ms": 3, "standard_deviation_ms": 0}}, "normal.standard_deviation_ms", "greater than 0"),
        ({"normal": {"mean_ms": 3, "standard_deviation_ms": 1, "unit": "s"}}, "normal.unit", "not permitted"),
        ({"poisson": {"mean_ms": 3}}, "poisson", "not permitted"),
        (
            {
                "normal": {"mean_ms": 3, "standard_deviation_ms": 1},
                "histogram": {"edges_ms": [0, 1], "probabilities": [1]},
            },
            "",
            "say one of histogram and normal",
        ),
    ],
)
def test_a_mistake_is_refused_with_the_fields_path(document: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        TimeDistribution.model_validate(document)
    [problem] = raised.value.errors()
    assert ".".join(map(str, problem["loc"])) == field
    assert said in problem["msg"]


def test_the_schema_allows_what_is_accepted() -> None:
    schema = json.dumps(TimeDistribution.model_json_schema())
    assert '"type": "number"' in schema
    assert '"type": "string"' in schema
