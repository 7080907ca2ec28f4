import contextlib
import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.operator.server.apply import applied, recorded
from meedge_ray.operator.server.errors import ApiError
from meedge_ray.operator.server.fieldsets import difference, intersection, paths

NOW = datetime(2026, 1, 10, 12, 0, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
VERSION = "meedge.dev/v1alpha1"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "properties": {
                "memory": {"type": "string"},
                "threads": {"type": "integer"},
                "list": {"type": "array", "items": {}},
                "deep": {"type": "object", "properties": {"a": {}, "b": {}}},
                "keyed": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["n"],
                    "items": {"type": "object", "properties": {"n": {}, "v": {}, "w": {}}},
                },
            },
        },
        "status": {"type": "object", "properties": {"branches": {}}},
    },
}


def config(metadata: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    head = {"apiVersion": VERSION, "kind": "EdgeDevice", "metadata": {"name": "pi-1", **(metadata or {})}}
    return {**head, "spec": spec} if spec else head


def apply(live: dict[str, Any] | None, manager: str, content: dict[str, Any], **options: Any) -> dict[str, Any]:
    before = copy.deepcopy((live, content))
    result = applied(live, content, **{"schema": SCHEMA, "manager": manager, "now": NOW, **options})
    assert (live, content) == before
    return result


def write(before: dict[str, Any] | None, after: dict[str, Any], manager: str, **options: Any) -> dict[str, Any]:
    unchanged = copy.deepcopy((before, after))
    result = recorded(before, after, **{"schema": SCHEMA, "manager": manager, "now": NOW, **options})
    assert (before, after) == unchanged
    return result


def entries(content: dict[str, Any]) -> list[dict[str, Any]]:
    return content["metadata"].get("managedFields", [])


def owned(content: dict[str, Any], manager: str, operation: str | None = None) -> set[str]:
    return {
        path
        for entry in entries(content)
        if entry["manager"] == manager and operation in (None, entry["operation"])
        for path in paths(entry["fieldsV1"])
    }


def edited(content: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {**content, "spec": {**content["spec"], **spec}}


def test_applying_creates_an_object_and_manages_what_it_says() -> None:
    result = apply(None, "kubectl", config({"labels": {"a": "b"}}, memory="1Mi", deep={"a": 1}))
    assert result["spec"] == {"memory": "1Mi", "deep": {"a": 1}}
    assert entries(result) == [
        {
            "manager": "kubectl",
            "operation": "Apply",
            "apiVersion": VERSION,
            "time": "2026-01-10T12:00:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {"f:a": {}}},
                "f:spec": {"f:memory": {}, "f:deep": {"f:a": {}}},
            },
        }
    ]


def test_creating_otherwise_manages_what_holds_the_fields_as_well() -> None:
    content = config({"finalizers": ["a/b"], "annotations": {"c": "d"}, "uid": "u"}, memory="1Mi")
    [entry] = entries(write(None, content, "kubectl-create"))
    assert (entry["manager"], entry["operation"]) == ("kubectl-create", "Update")
    assert entry["fieldsV1"] == {
        "f:metadata": {
            "f:annotations": {".": {}, "f:c": {}},
            "f:finalizers": {".": {}, 'v:"a/b"': {}},
        },
        "f:spec": {".": {}, "f:memory": {}},
    }


def test_applying_again_changes_nothing_not_even_the_time() -> None:
    content = config(memory="1Mi", keyed=[{"n": "x", "v": 1}])
    once = apply(None, "a", content)
    assert apply(once, "a", content, now=LATER) == once


def test_what_is_no_longer_applied_is_removed() -> None:
    live = apply(None, "a", config({"labels": {"x": "y"}}, memory="1Mi", deep={"a": 1}, keyed=[{"n": "x"}, {"n": "y"}]))
    result = apply(live, "a", config(memory="1Mi", keyed=[{"n": "y"}]), now=LATER)
    assert result["spec"] == {"memory": "1Mi", "keyed": [{"n": "y"}]}
    assert "labels" not in result["metadata"]
    assert entries(result)[0]["time"] == "2026-01-10T12:01:00Z"


def test_what_others_manage_as_well_stays() -> None:
    live = apply(None, "a", config(memory="1Mi", deep={"a": 1, "b": 2}))
    live = apply(live, "b", config(deep={"b": 2}))
    result = apply(live, "a", config(memory="1Mi"))
    assert result["spec"] == {"memory": "1Mi", "deep": {"b": 2}}
    assert owned(result, "a") == {".spec.memory"}
    assert owned(result, "b") == {".spec.deep.b"}


def test_what_was_never_applied_stays() -> None:
    live = write(None, config(memory="1Mi", threads=2), "kubectl-create")
    live = apply(live, "a", config(memory="1Mi"))
    assert apply(live, "a", config(deep={"a": 1}))["spec"] == {"memory": "1Mi", "threads": 2, "deep": {"a": 1}}


def test_the_same_value_is_managed_by_all_who_apply_it() -> None:
    live = apply(apply(None, "a", config(memory="1Mi")), "b", config(memory="1Mi"))
    assert owned(live, "a") == owned(live, "b") == {".spec.memory"}


def test_another_value_than_another_manager_applied_is_a_conflict() -> None:
    live = apply(None, "kubectl", config(memory="1Mi"))
    with pytest.raises(ApiError) as raised:
        apply(live, "other", config(memory="2Mi"))
    error = raised.value
    assert (error.code, error.reason) == (409, "Conflict")
    assert error.message == 'Apply failed with 1 conflict: conflict with "kubectl": .spec.memory'
    assert error.details["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "kubectl"', "field": ".spec.memory"}
    ]


def test_a_conflict_names_how_a_field_was_written() -> None:
    live = write(None, config(memory="1Mi"), "kubectl-create")
    live = write(live, edited(live, memory="2Mi"), "kubectl-edit")
    with pytest.raises(ApiError) as raised:
        apply(live, "a", config(memory="3Mi"))
    assert raised.value.message == (
        f'Apply failed with 1 conflict: conflict with "kubectl-edit" using {VERSION}: .spec.memory'
    )


def test_several_conflicts_are_listed_by_manager() -> None:
    live = apply(None, "b", config(memory="1Mi", keyed=[{"n": "x", "v": 1}]))
    live = write(live, {**live, "status": {"branches": 1}}, "a", subresource="status")
    live = apply(live, "c", config(threads=1))
    with pytest.raises(ApiError) as raised:
        apply(live, "d", config(memory="2Mi", threads=2, keyed=[{"n": "x", "v": 2}]))
    assert raised.value.message == (
        'Apply failed with 3 conflicts: conflicts with "b":\n'
        '- .spec.keyed[n="x"].v\n'
        "- .spec.memory\n"
        'conflicts with "c":\n'
        "- .spec.threads"
    )
    with pytest.raises(ApiError) as raised:
        apply(live, "d", {**config(), "status": {"branches": 2}}, subresource="status")
    assert f'conflict with "a" with subresource "status" using {VERSION}: .status.branches' in raised.value.message


def test_force_takes_the_field() -> None:
    live = apply(apply(None, "a", config(memory="1Mi", threads=1)), "b", config(memory="2Mi"), force=True)
    assert live["spec"] == {"memory": "2Mi", "threads": 1}
    assert owned(live, "a") == {".spec.threads"}
    assert owned(live, "b") == {".spec.memory"}


def test_a_manager_that_lost_all_it_managed_is_forgotten() -> None:
    live = apply(apply(None, "a", config(memory="1Mi")), "b", config(memory="2Mi"), force=True)
    assert [entry["manager"] for entry in entries(live)] == ["b"]
    assert entries(apply(live, "b", config())) == []


def test_items_of_lists_have_managers_of_their_own() -> None:
    live = apply(None, "a", config(keyed=[{"n": "x", "v": 1}]))
    live = apply(live, "b", config(keyed=[{"n": "y", "v": 2}, {"n": "x", "w": 3}]))
    assert live["spec"]["keyed"] == [{"n": "y", "v": 2}, {"n": "x", "v": 1, "w": 3}]
    result = apply(live, "b", config(keyed=[{"n": "x", "w": 3}]))
    assert result["spec"]["keyed"] == [{"n": "x", "v": 1, "w": 3}]
    assert apply(result, "a", config())["spec"]["keyed"] == [{"n": "x", "w": 3}]


def test_finalizers_are_added_beside_those_of_others() -> None:
    live = write(None, config({"finalizers": ["a/b"]}, memory="1Mi"), "kopf")
    live = apply(live, "a", config({"finalizers": ["c/d"]}))
    assert live["metadata"]["finalizers"] == ["a/b", "c/d"]
    assert apply(live, "a", config())["metadata"]["finalizers"] == ["a/b"]


def test_the_main_endpoint_applies_no_status_and_the_status_endpoint_nothing_else() -> None:
    content = {**config({"labels": {"a": "b"}}, memory="1Mi"), "status": {"branches": 1}}
    main = apply(None, "a", content)
    assert "status" not in main
    status = apply(main, "a", {**content, "spec": {"memory": "2Mi"}}, subresource="status")
    assert (status["spec"], status["status"]) == ({"memory": "1Mi"}, {"branches": 1})
    assert [(entry["manager"], entry.get("subresource")) for entry in entries(status)] == [("a", None), ("a", "status")]
    assert apply(status, "a", config(memory="1Mi"))["status"] == {"branches": 1}


def test_the_version_that_is_applied_to_is_handed_on() -> None:
    live = apply(None, "a", config(memory="1Mi"))
    assert apply(live, "a", config({"resourceVersion": "7"}, memory="1Mi"))["metadata"]["resourceVersion"] == "7"


def test_what_kubectl_applied_client_side_is_brought_up_to_date() -> None:
    noted = "kubectl.kubernetes.io/last-applied-configuration"
    live = write(None, config({"annotations": {noted: "old"}}, memory="1Mi"), "kubectl-client-side-apply")
    assert apply(live, "other", config(memory="1Mi"))["metadata"]["annotations"][noted] == "old"
    once = apply(live, "kubectl", config(memory="1Mi"))
    assert json.loads(once["metadata"]["annotations"][noted]) == config({"annotations": {}}, memory="1Mi")
    assert apply(once, "kubectl", config(memory="1Mi"), now=LATER) == once
    assert owned(once, "kubectl") == {".spec.memory"}
    assert "annotations" not in apply(None, "kubectl", config(memory="1Mi"))["metadata"]


@pytest.mark.parametrize(
    "metadata", [{"managedFields": [{"manager": "a"}]}, {"finalizers": ["a/b", "a/b"]}, {"ownerReferences": [{}]}]
)
def test_what_cannot_be_applied_is_a_bad_request(metadata: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as raised:
        apply(None, "a", config(metadata))
    assert raised.value.code == 400


def test_whoever_changes_a_field_manages_it_and_whoever_did_no_longer_does() -> None:
    live = apply(None, "a", config(memory="1Mi", threads=1))
    live = write(live, edited(live, memory="2Mi"), "kubectl-edit", now=LATER)
    assert owned(live, "a") == {".spec.threads"}
    assert owned(live, "kubectl-edit") == {".spec.memory"}
    assert [entry.get("time") for entry in entries(live)] == ["2026-01-10T12:00:00Z", "2026-01-10T12:01:00Z"]


def test_what_is_removed_has_no_manager() -> None:
    live = write(apply(None, "a", config(memory="1Mi", threads=1)), config(memory="1Mi"), "b")
    without_entries = {**live, "metadata": {**live["metadata"], "managedFields": entries(live)}}
    assert owned(without_entries, "a") == {".spec.memory"}
    assert owned(without_entries, "b") == set()


def test_a_write_without_a_change_changes_no_entry() -> None:
    live = write(None, config(memory="1Mi"), "a")
    assert write(live, live, "b", now=LATER) == live
    forgetful = {**live, "metadata": {"name": "pi-1"}}
    assert write(live, forgetful, "b", now=LATER)["metadata"] == live["metadata"]


def test_subresources_and_versions_are_managed_apart() -> None:
    live = write(None, config(memory="1Mi"), "a")
    live = write(live, {**live, "status": {"branches": 1}}, "a", subresource="status")
    live = write(live, {**edited(live, memory="2Mi"), "apiVersion": "meedge.dev/v2"}, "a")
    assert [(entry["apiVersion"], entry.get("subresource")) for entry in entries(live)] == [
        (VERSION, None),
        (VERSION, "status"),
        ("meedge.dev/v2", None),
    ]


def test_what_the_server_writes_has_no_manager() -> None:
    content = config({"uid": "u", "resourceVersion": "1", "generation": 1, "creationTimestamp": "x"})
    assert entries(write(None, content, "a")) == []


def test_clients_can_write_the_entries_themselves() -> None:
    live = write(None, config(memory="1Mi"), "kubectl-client-side-apply")
    moved = [{**entries(live)[0], "manager": "kubectl", "operation": "Apply"}]
    sent = {**live, "metadata": {**live["metadata"], "managedFields": moved}}
    assert entries(write(live, sent, "kubectl")) == moved
    assert entries(write(live, sent, "kubectl", subresource="status")) == entries(live)
    assert entries(write(None, sent, "kubectl")) != []


def test_an_empty_entry_forgets_who_managed_what() -> None:
    live = write(None, config(memory="1Mi"), "a")
    forgotten = write(live, {**live, "metadata": {**live["metadata"], "managedFields": [{}]}}, "b")
    assert "managedFields" not in forgotten["metadata"]
    with pytest.raises(ApiError, match="before-first-apply"):
        apply(forgotten, "c", config(memory="2Mi"))
    assert owned(apply(forgotten, "c", config(memory="1Mi")), "before-first-apply") == {".spec", ".spec.memory"}


@pytest.mark.parametrize(
    "broken",
    [
        "text",
        [5],
        [{"manager": "a"}],
        [{"manager": "a", "operation": "Own", "apiVersion": VERSION, "fieldsV1": {}}],
        [{"manager": "a" * 129, "operation": "Update", "apiVersion": VERSION, "fieldsV1": {}}],
        [{"manager": "a", "operation": "Update", "apiVersion": VERSION, "fieldsV1": {"x": {}}}],
        [{"manager": "a", "operation": "Update", "apiVersion": VERSION, "fieldsV1": {}, "time": 5}],
    ],
)
def test_entries_that_cannot_be_read_are_not_taken(broken: Any) -> None:
    live = write(None, config(memory="1Mi"), "a")
    sent = {**live, "metadata": {**live["metadata"], "managedFields": broken}}
    assert write(live, sent, "b") == live


def test_of_many_who_update_the_oldest_become_one() -> None:
    live = write(None, config({"labels": {"l0": "x"}}), "manager-0")
    for index in range(1, 15):
        labels = {**live["metadata"]["labels"], f"l{index}": "x"}
        after = {**live, "metadata": {**live["metadata"], "labels": labels}}
        live = write(live, after, f"manager-{index}", now=NOW + timedelta(seconds=index))
    managers = [entry["manager"] for entry in entries(live)]
    assert managers == ["ancient-changes", *(f"manager-{index}" for index in range(6, 15))]
    assert owned(live, "ancient-changes") == {".metadata.labels", *(f".metadata.labels.l{index}" for index in range(6))}


JSON = st.recursive(
    st.none() | st.integers(0, 1) | st.sampled_from(("a", "kubectl.kubernetes.io/last-applied-configuration")),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("an"), inner, max_size=2),
    max_leaves=4,
)
METADATA = st.dictionaries(
    st.sampled_from(("labels", "annotations", "finalizers", "ownerReferences", "managedFields")), JSON
)


@given(metadata=METADATA | JSON, spec=JSON, keyed=JSON)
def test_whatever_is_applied_it_is_merged_or_refused(metadata: Any, spec: Any, keyed: Any) -> None:
    annotated = {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x"}}
    live = write(None, config(annotated, memory="1Mi", keyed=[{"n": "x"}]), "creator")
    for content in ({**config(), "metadata": metadata, "spec": spec}, config(keyed=keyed)):
        for before in (None, live):
            with contextlib.suppress(ApiError):
                once = apply(before, "kubectl", content, force=True)
                assert apply(once, "kubectl", content, now=LATER) == once


VALUES = st.integers(0, 2)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "memory": VALUES,
        "list": st.lists(VALUES, max_size=2),
        "deep": st.fixed_dictionaries({}, optional={"a": VALUES, "b": VALUES}),
        "keyed": st.dictionaries(
            st.sampled_from("xy"), st.fixed_dictionaries({}, optional={"v": VALUES, "w": VALUES}), max_size=2
        ).map(lambda items: [{"n": name, **item} for name, item in items.items()]),
    },
).map(lambda spec: config(**spec))
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(("apply", "force", "write")), st.sampled_from("ab"), CONFIGS), max_size=5
)


def run(operations: list[tuple[str, str, dict[str, Any]]]) -> dict[str, Any]:
    live = write(None, config(threads=1), "creator")
    for how, manager, content in operations:
        if how == "write":
            live = write(live, {**content, "metadata": live["metadata"]}, manager)
        elif how == "force" or not conflicts(live, manager, content):
            live = apply(live, manager, content, force=how == "force")
    return live


def conflicts(live: dict[str, Any], manager: str, content: dict[str, Any]) -> set[str]:
    try:
        apply(live, manager, content)
    except ApiError as error:
        return {cause["field"] for cause in error.details["causes"]}
    return set()


def leaves(content: dict[str, Any]) -> set[str]:
    fresh = apply(None, "all", {**content, "metadata": {"name": "pi-1"}})
    return owned(fresh, "all")


CONTAINERS = {".spec", ".spec.deep", ".spec.keyed"}


@given(operations=OPERATIONS, content=CONFIGS)
def test_applying_twice_is_applying_once(operations: list[Any], content: dict[str, Any]) -> None:
    once = apply(run(operations), "a", content, force=True)
    assert apply(once, "a", content, now=LATER) == once
    assert apply(once, "a", content, now=LATER, force=True) == once


@given(operations=OPERATIONS, content=CONFIGS)
def test_what_is_applied_by_force_is_there_and_managed(operations: list[Any], content: dict[str, Any]) -> None:
    result = apply(run(operations), "a", content, force=True)
    assert not conflicts(result, "somebody", content)
    assert owned(result, "a", "Apply") == leaves(content)


@given(operations=OPERATIONS, content=CONFIGS)
def test_a_conflict_is_exactly_what_force_takes(operations: list[Any], content: dict[str, Any]) -> None:
    live = run(operations)
    forced = apply(live, "a", content, force=True)
    mine = next((entry["fieldsV1"] for entry in entries(forced) if entry["manager"] == "a" and is_apply(entry)), {})
    lost = set()
    for entry in entries(live):
        if entry["manager"] != "a" or not is_apply(entry):
            kept = next((each["fieldsV1"] for each in entries(forced) if same(each, entry)), {})
            lost |= set(paths(intersection(difference(entry["fieldsV1"], kept), mine)))
    assert conflicts(live, "a", content) == lost
    if not lost:
        assert apply(live, "a", content) == forced


def is_apply(entry: dict[str, Any]) -> bool:
    return bool(entry["operation"] == "Apply")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(name) == other.get(name) for name in ("manager", "operation", "subresource"))


@given(operations=OPERATIONS)
def test_every_field_that_is_there_has_a_manager_and_no_other_has(operations: list[Any]) -> None:
    live = run(operations)
    everyone = {path for entry in entries(live) for path in paths(entry["fieldsV1"])}
    assert leaves(live) - CONTAINERS <= everyone
    there = owned(write(None, {**live, "metadata": {"name": "pi-1"}}, "all"), "all")
    assert everyone - CONTAINERS <= there
