from pathlib import Path

import pytest
import yaml

from meedge_ray.api.crds import COMMAND, custom_resource_definition, main, rendered
from meedge_ray.api.kinds import KINDS

SHIPPED = Path(__file__).resolve().parents[2] / "manifests" / "crds"


def test_what_is_shipped_is_what_the_kinds_say() -> None:
    shipped = {path.name: path.read_text() for path in SHIPPED.iterdir()}
    assert shipped == rendered(), f"run: {COMMAND}"


def test_the_command_writes_a_file_a_kind(tmp_path: Path) -> None:
    main(["--output", str(tmp_path / "new" / "crds")])
    assert {path.name: path.read_text() for path in (tmp_path / "new" / "crds").iterdir()} == rendered()


def test_a_folder_that_cannot_be_made_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path / "file")])
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_definition_is_named_by_its_plural_and_group() -> None:
    for kind in KINDS:
        definition = custom_resource_definition(kind)
        assert definition["metadata"]["name"] == f"{kind.plural}.meedge.dev"
        assert definition["spec"]["versions"][0]["subresources"] == {"status": {}}


def test_a_definition_can_be_changed_without_changing_the_kind() -> None:
    definition = custom_resource_definition(KINDS[0])
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"].clear()
    assert custom_resource_definition(KINDS[0]) != definition


def test_the_files_use_no_aliases() -> None:
    for text in rendered().values():
        assert not any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))


def test_what_is_immutable_says_so() -> None:
    rule = [{"rule": "self == oldSelf", "message": "cannot be changed: make a new object instead"}]
    schemas = {kind.name: kind.schema()["properties"]["spec"]["properties"] for kind in KINDS}
    assert schemas["DeviceFleet"]["selector"]["x-kubernetes-validations"] == rule
    assert schemas["EdgeDevice"]["device"]["x-kubernetes-validations"] == rule
