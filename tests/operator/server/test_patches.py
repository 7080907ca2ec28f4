import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.operator.server.errors import ApiError
from meedge_ray.operator.server.patches import (
    JSON_PATCH,
    MERGE,
    STRATEGIC,
    json_patch,
    merge_patch,
    patched,
    strategic_merge_patch,
)

FIELDS = st.sampled_from("abc")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | FIELDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=8,
)


def by_the_letter(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2, line by line."""
    if not isinstance(patch, dict):
        return patch
    if not isinstance(target, dict):
        target = {}
    for name, value in patch.items():
        if value is None:
            if name in target:
                del target[name]
        else:
            target[name] = by_the_letter(target.get(name), value)
    return target


@given(document=JSON, patch=JSON)
def test_a_merge_patch_does_what_the_rfc_says_and_leaves_its_arguments_alone(document: Any, patch: Any) -> None:
    before = copy.deepcopy((document, patch))
    assert merge_patch(document, patch) == by_the_letter(copy.deepcopy(document), copy.deepcopy(patch))
    assert (document, patch) == before


@pytest.mark.parametrize(
    ("document", "patch", "result"),
    [  # RFC 7386, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_examples_of_the_rfc(document: Any, patch: Any, result: Any) -> None:
    assert merge_patch(document, patch) == result


@pytest.mark.parametrize(
    ("document", "operations", "result"),
    [  # RFC 6902, appendix A
        ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
        ({"foo": ["bar"]}, [{"op": "add", "path": "/foo/0", "value": "qux"}], {"foo": ["qux", "bar"]}),
        ({"foo": ["bar"]}, [{"op": "add", "path": "/foo/-", "value": 1}], {"foo": ["bar", 1]}),
        ({"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
        ({"foo": [1, 2, 3]}, [{"op": "remove", "path": "/foo/1"}], {"foo": [1, 3]}),
        ({"baz": "qux"}, [{"op": "replace", "path": "/baz", "value": "boo"}], {"baz": "boo"}),
        ({"foo": {"a": 1}, "b": {}}, [{"op": "move", "from": "/foo/a", "path": "/b/c"}], {"foo": {}, "b": {"c": 1}}),
        ({"a": {"b": 1}}, [{"op": "copy", "from": "/a", "path": "/c"}], {"a": {"b": 1}, "c": {"b": 1}}),
        ({"a/b": 1, "m~n": 2}, [{"op": "test", "path": "/a~1b", "value": 1}], {"a/b": 1, "m~n": 2}),
    ],
)
def test_json_patch_examples_of_the_rfc(document: Any, operations: Any, result: Any) -> None:
    before = copy.deepcopy(document)
    assert json_patch(document, operations) == result
    assert document == before


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/metadata/resourceVersion", "value": "1"},
        {"op": "test", "path": "/nothing", "value": 1},
        {"op": "remove", "path": "/nothing"},
        {"op": "replace", "path": "/nothing/below", "value": 1},
        {"op": "add", "path": "/list/9", "value": 1},
        {"op": "add", "path": "/list/x", "value": 1},
        {"op": "add", "path": "/list/" + "9" * 5000, "value": 1},
        {"op": "add", "path": "no pointer", "value": 1},
        {"op": "add", "path": 5, "value": 1},
        {"op": "add", "path": "/a"},
        {"op": "copy", "path": "/a"},
        {"op": "copy", "path": "/a", "from": 5},
        {"op": "copy", "path": "/a", "from": {}},
        {"op": "copy", "path": "/a", "from": "/list/-"},
        {"op": "move", "path": "/metadata/a", "from": "/metadata"},
        {"op": "remove", "path": "/list/-"},
        {"op": "remove", "path": ""},
        {"op": "mend", "path": "/a"},
        {"op": None, "path": "/a"},
        {"path": "/a"},
        {},
        {"op": "replace", "path": "", "value": []},
    ],
)
def test_an_operation_that_fails_is_unprocessable_and_names_itself(operation: Any) -> None:
    document = {"metadata": {"resourceVersion": "2"}, "list": [1]}
    with pytest.raises(ApiError) as raised:
        patched(document, [operation], JSON_PATCH)
    assert (raised.value.code, raised.value.reason) == (422, "Invalid")
    assert "the server rejected our request due to an error in our request" in raised.value.message


POINTERS = st.lists(st.sampled_from(("a", "b", "0", "1", "-", "~1", "~", "")), max_size=3).map(
    lambda parts: "".join(f"/{part}" for part in parts)
)
OPERATIONS = st.lists(
    st.fixed_dictionaries(
        {"op": st.sampled_from(("add", "remove", "replace", "move", "copy", "test"))},
        optional={"path": POINTERS | JSON, "from": POINTERS | JSON, "value": JSON},
    ),
    max_size=5,
)


@given(document=st.dictionaries(FIELDS, JSON, max_size=3), operations=OPERATIONS)
def test_whatever_the_operations_a_patch_is_applied_or_refused(document: dict[str, Any], operations: Any) -> None:
    before = copy.deepcopy((document, operations))
    with contextlib.suppress(ApiError):
        json.dumps(patched(document, operations, JSON_PATCH))
    assert (document, operations) == before


def test_what_one_operation_adds_another_can_change_without_changing_the_patch() -> None:
    value = {"b": 1}
    operations = [{"op": "add", "path": "/a", "value": value}, {"op": "add", "path": "/a/b", "value": 2}]
    assert json_patch({}, operations) == {"a": {"b": 2}}
    assert value == {"b": 1}


@pytest.mark.parametrize("target", ["/x/-", "/{}"])
def test_doubling_by_copies_ends_before_memory_does(target: str) -> None:
    bomb = [{"op": "add", "path": "/x", "value": ["a" * 1000]}]
    bomb += [{"op": "copy", "from": "/x" if "x" in target else "", "path": target.format(i)} for i in range(60)]
    with pytest.raises(ApiError) as raised:
        json_patch({}, bomb)
    assert raised.value.code in (413, 422)


def test_nesting_by_moves_ends() -> None:
    deeper = [{"op": "move", "from": "/a", "path": "/b"}, {"op": "add", "path": "/a", "value": {}}]
    deeper += [{"op": "move", "from": "/b", "path": "/a/b"}]
    with pytest.raises(ApiError, match="nested deeper") as raised:
        json_patch({"a": {}}, deeper * 100)
    assert raised.value.code == 422


def test_more_than_ten_thousand_operations_are_too_many() -> None:
    operations = [{"op": "add", "path": "/a", "value": 1}] * 10_001
    with pytest.raises(ApiError, match="10000, got 10001") as raised:
        json_patch({}, operations)
    assert raised.value.code == 413


@pytest.mark.parametrize("media_type", [MERGE, STRATEGIC])
def test_an_object_does_not_grow_beyond_the_largest_body(media_type: str) -> None:
    content = {"a": "x" * (2 * 2**20)}
    with pytest.raises(ApiError) as raised:
        patched(content, {"b": "y" * (2 * 2**20)}, media_type)
    assert raised.value.code == 413


@pytest.mark.parametrize(
    ("patch", "media_type", "code"),
    [
        ([], MERGE, 400),
        ("text", STRATEGIC, 400),
        (None, MERGE, 400),
        ({}, JSON_PATCH, 400),
        ([5], JSON_PATCH, 400),
        ({}, "application/json", 415),
        ({}, "text/plain", 415),
    ],
)
def test_what_is_no_patch_is_a_bad_request(patch: Any, media_type: str, code: int) -> None:
    with pytest.raises(ApiError) as raised:
        patched({}, patch, media_type)
    assert raised.value.code == code


@pytest.mark.parametrize(
    ("document", "patch", "result"),
    [
        ({"finalizers": ["a"]}, {"finalizers": ["b", "a"]}, {"finalizers": ["a", "b"]}),
        ({"finalizers": ["a", "b"]}, {"$deleteFromPrimitiveList/finalizers": ["a"]}, {"finalizers": ["b"]}),
        ({"m": {"a": 1, "b": 2}}, {"m": {"$patch": "replace", "c": 3}}, {"m": {"c": 3}}),
        ({"m": {"a": 1}, "b": 2}, {"m": {"$patch": "delete"}}, {"b": 2}),
        ({"m": {"a": 1, "b": 2}}, {"m": {"$retainKeys": ["a"], "a": None}}, {"m": {"b": 2}}),
        (
            {"conditions": [{"type": "A", "status": "x"}, {"type": "B"}]},
            {
                "$setElementOrder/conditions": [{"type": "A"}],
                "conditions": [{"type": "A", "reason": "y"}, {"type": "B", "$patch": "delete"}, {"type": "C"}],
            },
            {"conditions": [{"type": "A", "status": "x", "reason": "y"}, {"type": "C"}]},
        ),
        ({"list": [1]}, {"list": [2]}, {"list": [2]}),
        ({}, {"metadata": {"labels": {"a": "b", "c": None}}}, {"metadata": {"labels": {"a": "b"}}}),
    ],
)
def test_a_strategic_merge_patch_merges_the_lists_of_core_objects(document: Any, patch: Any, result: Any) -> None:
    before = copy.deepcopy(document)
    assert strategic_merge_patch(document, patch) == result
    assert document == before


def test_only_core_objects_take_a_strategic_merge_patch() -> None:
    patch = {"a": 1}
    assert patched({"apiVersion": "v1"}, patch, STRATEGIC) == {"apiVersion": "v1", "a": 1}
    with pytest.raises(ApiError, match=r"accepted media types include: .*merge-patch\+json, ") as raised:
        patched({"apiVersion": "meedge.dev/v1alpha1"}, patch, STRATEGIC)
    assert raised.value.code == 415
    assert STRATEGIC not in raised.value.message


def test_an_item_to_be_merged_needs_its_key() -> None:
    with pytest.raises(ApiError, match="needs its uid"):
        patched({}, {"ownerReferences": [{"name": "a"}]}, STRATEGIC)
