import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.operator.server.fieldsets import (
    difference,
    field,
    intersection,
    is_member,
    item_that_is,
    item_with,
    paths,
    union,
    well_formed,
)

STEPS = st.sampled_from(("f:a", "f:b", 'k:{"n":"x"}', 'v:"y"'))
PATHS = st.lists(st.lists(STEPS, min_size=1, max_size=3).map(tuple), max_size=6).map(frozenset)


def tree(members: frozenset[tuple[str, ...]]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path in members:
        node = root
        for step in path:
            node = node.setdefault(step, {})
        node["."] = {}
    return shortened(root)


def shortened(node: dict[str, Any]) -> dict[str, Any]:
    return {} if node == {".": {}} else {step: shortened(child) for step, child in node.items()}


@given(left=PATHS, right=PATHS)
def test_the_algebra_of_trees_is_that_of_sets_of_paths(
    left: frozenset[tuple[str, ...]], right: frozenset[tuple[str, ...]]
) -> None:
    one, other = tree(left), tree(right)
    before = copy.deepcopy((one, other))
    assert union(one, other) == tree(left | right)
    assert difference(one, other) == tree(left - right)
    assert intersection(one, other) == tree(left & right)
    assert (one, other) == before


@given(members=PATHS)
def test_every_member_has_one_path(members: frozenset[tuple[str, ...]]) -> None:
    words = {"f:a": ".a", "f:b": ".b", 'k:{"n":"x"}': '[n="x"]', 'v:"y"': '[="y"]'}
    assert sorted(paths(tree(members))) == sorted("".join(words[step] for step in path) for path in members)
    assert well_formed(tree(members))


def test_steps_are_written_as_kubernetes_writes_them() -> None:
    assert field("spec") == "f:spec"
    assert item_with({"protocol": "TCP", "containerPort": 80}) == 'k:{"containerPort":80,"protocol":"TCP"}'
    assert item_that_is("a/b") == 'v:"a/b"'
    assert item_that_is(5) == "v:5"


def test_paths_are_written_as_kubernetes_writes_them() -> None:
    fields = {
        "f:metadata": {"f:labels": {".": {}, "f:app.io/a": {}}},
        "f:spec": {"f:ports": {'k:{"containerPort":80,"protocol":"TCP"}': {"f:name": {}}}},
    }
    assert list(paths(fields)) == [
        ".metadata.labels",
        ".metadata.labels.app.io/a",
        '.spec.ports[containerPort=80,protocol="TCP"].name',
    ]


def test_an_empty_node_is_a_member_as_is_one_that_says_so() -> None:
    assert is_member({})
    assert is_member({".": {}, "f:a": {}})
    assert not is_member({"f:a": {}})


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        "f:a",
        {"a": {}},
        {"f:a": 1},
        {"f:a": {".": {"f:b": {}}}},
        {"k:x": {}},
        {"k:5": {}},
        {"k:{}": {}},
        {"v:": {}},
    ],
)
def test_what_is_no_set_of_fields_is_not_well_formed(fields: Any) -> None:
    assert not well_formed(fields)
