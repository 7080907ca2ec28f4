from pathlib import Path

import pytest

from meedge_ray.domain.errors import MeedgeError
from meedge_ray.train.manifest import read_manifest


def refusal(path: Path) -> MeedgeError:
    with pytest.raises(MeedgeError) as raised:
        read_manifest(path)
    return raised.value


def test_relative_paths_start_from_the_manifest(tiny_manifest: Path) -> None:
    assert read_manifest(tiny_manifest).base_dir == tiny_manifest.parent


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path / "model.yaml")
    assert (error.what, error.exit_code) == ("no such file", 2)


def test_an_unknown_field_is_named_by_its_path(tiny_manifest: Path) -> None:
    tiny_manifest.write_text(tiny_manifest.read_text().replace("source: digits", "sauce: digits"))
    assert "spec.data.sauce: unknown field" in str(refusal(tiny_manifest))


@pytest.mark.parametrize("text", ["a: [", "just words", "- a\n- b", ""])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(text)
    assert str(path) in str(refusal(path))


def test_a_yaml_bomb_or_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("a: " + "x" * 2**20)
    assert "1 MiB" in str(refusal(path))
    bomb = ["a0: &a0 [lol, lol]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    path.write_text("\n".join(bomb))
    assert "unknown field" in str(refusal(path))
