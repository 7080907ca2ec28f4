from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from meedge_ray.api.elastic_model import ElasticModel
from meedge_ray.api.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
KIND = {kind.name: kind for kind in KINDS}
SAMPLES = sorted(ROOT.glob("manifests/*.yaml"))
REFERENCE = sorted(ROOT.glob("manifests/reference/*.yaml"))
MODELS = sorted(ROOT.glob("examples/*/model.yaml"))


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


@pytest.mark.parametrize("path", [*SAMPLES, *REFERENCE, *MODELS], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_manifest_that_is_shipped_is_valid(path: Path) -> None:
    content = read(path)
    assert KIND[content["kind"]].problems(content) == []


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_what_is_built_by_hand_is_an_elastic_model(path: Path) -> None:
    ElasticModel.model_validate(read(path))


def test_the_samples_work_together() -> None:
    samples = {content["kind"]: content for content in map(read, SAMPLES)}
    model, service, fleet = (samples[kind] for kind in ("ElasticModel", "ElasticService", "DeviceFleet"))
    assert service["spec"]["modelRefs"] == [{"name": model["metadata"]["name"]}]
    assert fleet["spec"]["template"]["modelRef"] == {"name": model["metadata"]["name"]}
    assert fleet["spec"]["template"]["serviceRef"] == {"name": service["metadata"]["name"]}


def test_the_sample_model_needs_no_file() -> None:
    model = ElasticModel.model_validate(read(ROOT / "manifests" / "elasticmodel.yaml")).spec
    assert (model.data.source, model.model.weights) == ("digits", None)


def _undocumented(schema: dict[str, Any], value: Any, path: str) -> list[str]:
    if isinstance(value, list):
        # An item need not say all there is; together they do.
        value = {field: said for item in value if isinstance(item, dict) for field, said in item.items()}
        schema = schema["items"]
    if "properties" not in schema:
        return []
    missing = [f"{path}.{field}" for field in schema["properties"] if field not in value]
    return missing + list(
        chain.from_iterable(
            _undocumented(schema["properties"][field], said, f"{path}.{field}")
            for field, said in value.items()
            if isinstance(said, dict | list)
        )
    )


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.name)
def test_the_reference_documents_every_field(path: Path) -> None:
    content, text = read(path), path.read_text()
    absent = _undocumented(KIND[content["kind"]].schema()["properties"]["spec"], content["spec"], "spec")
    # What cannot be said beside the rest stands in a comment.
    assert [field for field in absent if f"{field.rpartition('.')[2]}:" not in text] == []


def test_every_kind_that_users_write_has_a_reference() -> None:
    assert {read(path)["kind"] for path in REFERENCE} == KIND.keys() - {"EdgeDevice"}
