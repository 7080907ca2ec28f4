from pathlib import Path

import pytest
from api_process import device

from meedge_ray.cli.documents import read_documents

_GOOD = "apiVersion: meedge.dev/v1alpha1\nkind: EdgeDevice\nmetadata: {name: pi-1}\nspec: {device: pi-1, memory: 1Mi, "
_GOOD += "serviceRef: {name: s}, modelRef: {name: m}}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is no YAML"),
        ("a: 1\na: 2", "field 'a' is given twice"),
        ("- 1", "is no object"),
        ("kind: EdgeDevice", "apiVersion: null has no EdgeDevice. Write meedge.dev/v1alpha1"),
        ("apiVersion: v1\nkind: EdgeDevice", 'apiVersion: "v1" has no EdgeDevice'),
        ("apiVersion: v1\nkind: Pod", 'kind: there is no kind "Pod"'),
        ("apiVersion: v1", "kind: Required value"),
        ("apiVersion: v1\nkind: Namespace", "metadata.name: Required value"),
        (_GOOD.replace("1Mi", "0.5"), "spec.memory"),
        (_GOOD.replace("{name: pi-1}", "{name: Pi}"), "metadata.name"),
        (_GOOD.replace("kind:", "kint: 1\nkind:"), "kint: Forbidden: unknown field"),
        (_GOOD.replace("name: pi-1", "name: pi-1, annotations: &a {x: *a}"), "recursive"),
        (_GOOD.replace("1Mi", ".nan"), "cannot be written as JSON"),
        ("? [1]\n: 2", "name must be text"),
        ("", "no manifest is there"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    documents, errors = read_documents([str(tmp_path / "a.yaml")])
    assert documents == []
    assert said in " ".join(map(str, errors))
    assert all(str(tmp_path / "a.yaml") in error.where for error in errors)


def test_documents_are_counted_and_the_good_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"---\n{_GOOD}---\nkind: List\nitems: [{{kind: Pod}}]\n---\n---\n{_GOOD}")
    documents, errors = read_documents([str(file)])
    assert [document.where for document in documents] == [f"{file}, document 1", f"{file}, document 3"]
    assert [error.where for error in errors] == [f"{file}, document 2, items[0], kind"]


def test_a_date_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(_GOOD.replace("name: pi-1", "name: pi-1, annotations: {on: 2026-01-01}"))
    [document], errors = read_documents([str(tmp_path)])
    assert not errors
    assert document.content["metadata"]["annotations"] == {"on": "2026-01-01"}


def test_anchors_and_merges_are_kubectls(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        _GOOD.replace("{name: s}", "&ref {name: s}").replace("modelRef: {name: m}", "modelRef: {<<: *ref}")
    )
    [document], errors = read_documents([str(tmp_path)])
    assert not errors
    assert document.content["spec"]["modelRef"] == device("pi-1")["spec"]["modelRef"] | {"name": "s"}
