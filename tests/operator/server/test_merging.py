import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.operator.server.errors import ApiError
from meedge_ray.operator.server.fieldsets import paths
from meedge_ray.operator.server.merging import difference_of, fields_of, merged, with_parents, without

KEYED = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["n"],
    "items": {"type": "object", "properties": {"n": {}, "v": {}, "in": {"type": "object", "properties": {"x": {}}}}},
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "named": {"type": "object", "properties": {"a": {}, "b": {"type": "object", "properties": {"c": {}}}}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": {}}},
        "whole": {"type": "object", "x-kubernetes-map-type": "atomic"},
        "list": {"type": "array", "items": {}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {}},
        "keyed": KEYED,
    },
}

SCALARS = st.integers(0, 2)
ITEMS = st.dictionaries(st.sampled_from("xyz"), st.fixed_dictionaries({}, optional={"v": SCALARS}), max_size=3).map(
    lambda items: [{"n": name, **item} for name, item in items.items()]
)
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "text": SCALARS,
        "named": st.fixed_dictionaries(
            {}, optional={"a": SCALARS, "b": st.fixed_dictionaries({}, optional={"c": SCALARS})}
        ),
        "map": st.dictionaries(
            st.sampled_from("pq"), st.dictionaries(st.sampled_from("rs"), SCALARS, max_size=2), max_size=2
        ),
        "whole": st.dictionaries(st.sampled_from("ab"), SCALARS, max_size=2),
        "list": st.lists(SCALARS, max_size=2),
        "set": st.lists(SCALARS, max_size=3, unique=True),
        "keyed": ITEMS,
    },
)


# A container is a member where it is empty alone: its fields stand for it otherwise.
CONTAINERS = {".set", ".keyed", ".map", ".named", ".named.b"}


def members(fields: dict[str, Any]) -> set[str]:
    return set(paths(fields))


def test_the_fields_of_a_configuration_are_its_leaves_its_keys_and_its_items() -> None:
    content = {
        "text": "t",
        "named": {"a": 1, "b": {}},
        "map": {"p": {"r": 1}},
        "whole": {"a": 1},
        "list": [1],
        "set": ["s"],
        "keyed": [{"n": "x", "v": 1}],
    }
    assert fields_of(content, SCHEMA) == {
        "f:text": {},
        "f:named": {"f:a": {}, "f:b": {}},
        "f:map": {"f:p": {".": {}, "f:r": {}}},
        "f:whole": {},
        "f:list": {},
        "f:set": {'v:"s"': {}},
        "f:keyed": {'k:{"n":"x"}': {".": {}, "f:n": {}, "f:v": {}}},
    }


def test_what_is_added_is_added_with_what_holds_it() -> None:
    changed, removed = difference_of({}, {"named": {"a": 1}, "set": ["s"]}, SCHEMA)
    assert changed == {"f:named": {".": {}, "f:a": {}}, "f:set": {".": {}, 'v:"s"': {}}}
    assert removed == {}


def test_only_what_differs_is_changed() -> None:
    before = {"text": "t", "named": {"a": 1, "b": {"c": 1}}, "keyed": [{"n": "x", "v": 1}, {"n": "y"}], "list": [1, 2]}
    after = {"text": "t", "named": {"a": 2}, "keyed": [{"n": "y"}, {"n": "x", "v": 2}], "list": [2, 1]}
    changed, removed = difference_of(before, after, SCHEMA)
    assert changed == {"f:named": {"f:a": {}}, "f:keyed": {'k:{"n":"x"}': {"f:v": {}}}, "f:list": {}}
    assert removed == {"f:named": {"f:b": {".": {}, "f:c": {}}}}


def test_another_type_in_its_place_takes_what_was_below() -> None:
    changed, removed = difference_of({"named": {"b": {"c": 1}}}, {"named": {"b": 5}}, SCHEMA)
    assert changed == {"f:named": {"f:b": {}}}
    assert removed == {"f:named": {"f:b": {"f:c": {}}}}


@pytest.mark.parametrize(
    ("live", "applied", "result"),
    [
        (["a", "b", "c"], ["c", "a"], ["b", "c", "a"]),
        (["a", "b"], ["c"], ["a", "b", "c"]),
        (["a"], ["b", "a"], ["b", "a"]),
        (["a", "b", "c"], ["a", "d", "c"], ["a", "b", "d", "c"]),
        (["a", "b", "c", "d"], ["d", "e", "b"], ["a", "c", "d", "e", "b"]),
        ([], ["a"], ["a"]),
        (["a"], [], ["a"]),
    ],
)
def test_lists_that_are_merged_keep_the_order_that_is_applied(
    live: list[str], applied: list[str], result: list[str]
) -> None:
    assert merged({"set": live}, {"set": applied}, SCHEMA) == {"set": result}
    keyed = [[{"n": name} for name in names] for names in (live, applied, result)]
    assert merged({"keyed": keyed[0]}, {"keyed": keyed[1]}, SCHEMA) == {"keyed": keyed[2]}


@given(live=OBJECTS, config=OBJECTS)
def test_a_merge_holds_all_that_is_applied_and_all_else_that_was_there(
    live: dict[str, Any], config: dict[str, Any]
) -> None:
    before = copy.deepcopy((live, config))
    result = merged(live, config, SCHEMA)
    assert (live, config) == before
    wanted = fields_of(config, SCHEMA)
    assert members(wanted) - CONTAINERS <= members(fields_of(result, SCHEMA))
    changed, _ = difference_of(result, merged(result, config, SCHEMA), SCHEMA)
    assert changed == {}
    for name in ("text", "whole", "list"):
        assert result.get(name) == config.get(name, live.get(name))
    for name in ("map", "named"):
        assert set(result.get(name, {})) == {*live.get(name, {}), *config.get(name, {})}
    assert set(result.get("set", [])) == {*live.get("set", []), *config.get("set", [])}
    theirs, ours = ({item["n"]: item for item in each.get("keyed", [])} for each in (live, config))
    expected = {name: {**theirs.get(name, {}), **ours.get(name, {})} for name in {**theirs, **ours}}
    assert {item["n"]: item for item in result.get("keyed", [])} == expected


@given(before=OBJECTS, after=OBJECTS)
def test_without_a_difference_two_objects_have_the_same_fields_and_it_is_none(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    assert difference_of(before, copy.deepcopy(before), SCHEMA) == ({}, {})
    changed, removed = difference_of(before, after, SCHEMA)
    back, gone = difference_of(after, before, SCHEMA)
    old, new = members(fields_of(before, SCHEMA)), members(fields_of(after, SCHEMA))
    assert new - old - CONTAINERS <= members(changed)
    assert old - new - CONTAINERS <= members(removed)
    assert members(removed) - CONTAINERS <= old
    assert members(changed) & members(removed) == set()
    assert members(gone) - CONTAINERS <= members(changed)
    assert members(removed) - CONTAINERS <= members(back)


@given(content=OBJECTS, others=OBJECTS)
def test_without_its_fields_nothing_of_a_configuration_is_left(content: dict[str, Any], others: dict[str, Any]) -> None:
    together = merged(content, others, SCHEMA)
    left = without(together, fields_of(content, SCHEMA), SCHEMA)
    kept = members(fields_of(left, SCHEMA)) if left else set()
    assert not (members(fields_of(content, SCHEMA)) - CONTAINERS) & kept


def test_named_fields_are_members_with_what_is_below_them_and_keys_are_not() -> None:
    fields = {"f:named": {"f:b": {"f:c": {}}}, "f:map": {"f:p": {"f:r": {}}}, "f:keyed": {'k:{"n":"x"}': {"f:v": {}}}}
    assert with_parents(fields, SCHEMA) == {
        "f:named": {".": {}, "f:b": {".": {}, "f:c": {}}},
        "f:map": {".": {}, "f:p": {"f:r": {}}},
        "f:keyed": {".": {}, 'k:{"n":"x"}': {"f:v": {}}},
    }


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"keyed": [{"v": 1}]}, "every item of this list needs its keys: n"),
        ({"keyed": ["x"]}, "every item of this list needs its keys: n"),
        ({"keyed": [{"n": "x"}, {"n": "x"}]}, 'duplicate entries for key {"n":"x"}'),
        ({"set": ["s", "s"]}, 'duplicate entries for key "s"'),
    ],
)
def test_items_that_cannot_be_told_apart_are_a_bad_request(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ApiError) as raised:
        fields_of(config, SCHEMA)
    assert raised.value.code == 400
    assert said in raised.value.message
