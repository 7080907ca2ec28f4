import contextlib
import copy
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.operator.server.errors import ApiError, Key
from meedge_ray.operator.server.metadata import created, deleted, finished, rfc3339, updated

NOW = datetime(2026, 1, 10, 12, 0, 0, 999_999, tzinfo=UTC)
KEY = Key("edgedevices.meedge.dev", "default", "pi-1")
OWNER = {"apiVersion": "meedge.dev/v1alpha1", "kind": "DeviceFleet", "name": "f", "uid": "u1"}


def device(**metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "EdgeDevice",
        "metadata": {"name": "pi-1", **metadata},
        "spec": {"memory": "1Mi"},
    }


def new(content: dict[str, Any], *, namespace: str = "default", custom: bool = True) -> dict[str, Any]:
    before = copy.deepcopy(content)
    result = created(content, namespace=namespace, now=NOW, custom=custom)
    assert content == before
    return result


def stored(**metadata: Any) -> dict[str, Any]:
    result = new(device())
    result["metadata"] |= {"resourceVersion": "7", **metadata}
    return {**result, "status": {"branches": 1}}


def change(before: dict[str, Any], content: dict[str, Any], **options: Any) -> dict[str, Any]:
    unchanged = copy.deepcopy((before, content))
    result = updated(KEY, before, content, **options)
    assert (before, content) == unchanged
    return result


def with_metadata(content: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {**content, "metadata": {**content["metadata"], **metadata}}


def refused(code: int, reason: str, call: Any, *args: Any, **options: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        call(*args, **options)
    assert (raised.value.code, raised.value.reason) == (code, reason)
    return raised.value


def test_times_are_in_utc_and_whole_seconds() -> None:
    assert rfc3339(NOW.astimezone(timezone(timedelta(hours=5)))) == "2026-01-10T12:00:00Z"


def test_the_server_names_the_time_the_identity_and_the_first_generation_of_a_new_object() -> None:
    one, other = new(device(uid="mine", generation=9, creationTimestamp=None)), new(device())
    assert one["metadata"]["creationTimestamp"] == "2026-01-10T12:00:00Z"
    assert one["metadata"]["generation"] == 1
    assert one["metadata"]["namespace"] == "default"
    assert len({one["metadata"]["uid"], other["metadata"]["uid"], "mine"}) == 3


def test_a_new_object_has_no_status_and_is_not_being_deleted() -> None:
    content = device(deletionTimestamp="2026-01-01T00:00:00Z", deletionGracePeriodSeconds=0, selfLink="/x")
    result = new({**content, "status": {"branches": 1}})
    assert "status" not in result
    assert set(result["metadata"]) == {"name", "namespace", "uid", "creationTimestamp", "generation"}


def test_core_objects_count_no_generations() -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}
    assert set(new(namespace, namespace="", custom=False)["metadata"]) == {"name", "uid", "creationTimestamp"}


def test_a_name_is_generated_from_its_begin() -> None:
    names = {new(device(name=None, generateName="pi-"))["metadata"]["name"] for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("pi-") and len(name) == 8 for name in names)
    long = new(device(name="", generateName="a" * 80))["metadata"]["name"]
    assert len(long) == 63
    assert new(device(generateName="b-"))["metadata"]["name"] == "pi-1"


def test_a_new_object_brings_no_version() -> None:
    error = refused(400, "BadRequest", new, device(resourceVersion="1"))
    assert error.message == "resourceVersion should not be set on objects to be created"


@pytest.mark.parametrize("namespace", ["other", "", "default"])
def test_the_namespace_is_that_of_the_request(namespace: str) -> None:
    if namespace == "other":
        refused(400, "BadRequest", new, device(namespace=namespace))
    else:
        assert new(device(namespace=namespace))["metadata"]["namespace"] == "default"


@pytest.mark.parametrize(
    ("metadata", "field", "said"),
    [
        ({"name": None}, "metadata.name", "name or generateName is required"),
        ({"name": "Pi"}, "metadata.name", "lower case"),
        ({"name": "a" * 64}, "metadata.name", "at most 63"),
        ({"name": "a..b"}, "metadata.name", "lower case"),
        ({"name": 5}, "metadata.name", "lower case"),
        ({"name": None, "generateName": "Pi-"}, "metadata.name", "lower case"),
        ({"labels": ["a"]}, "metadata.labels", "object of texts"),
        ({"labels": {"a": 1}}, "metadata.labels", "object of texts"),
        ({"labels": {"a b": "c"}}, "metadata.labels", "alphanumeric"),
        ({"labels": {"A.io/b": "c"}}, "metadata.labels", "DNS name"),
        ({"labels": {"a": "b c"}}, "metadata.labels", "alphanumeric"),
        ({"annotations": {"a": None}}, "metadata.annotations", "object of texts"),
        (
            {"annotations": {"a": "x" * (256 * 1024)}},
            "metadata.annotations",
            "Too long: may not be more than 262144 bytes",
        ),
        ({"finalizers": "a"}, "metadata.finalizers", "list of texts"),
        ({"finalizers": [1]}, "metadata.finalizers", "list of texts"),
        ({"finalizers": ["a b"]}, "metadata.finalizers", "alphanumeric"),
        ({"finalizers": ["orphan", "foregroundDeletion"]}, "metadata.finalizers", "cannot be both set"),
        ({"ownerReferences": {"a": 1}}, "metadata.ownerReferences", "list of objects"),
        ({"ownerReferences": [{**OWNER, "uid": ""}]}, "metadata.ownerReferences[0].uid", "must not be empty"),
        (
            {"ownerReferences": [{**OWNER, "controller": True}, {**OWNER, "name": "g", "controller": True}]},
            "metadata.ownerReferences",
            'Found "true" in references for DeviceFleet/f and DeviceFleet/g',
        ),
        ({"lables": {}}, "metadata.lables", "unknown field"),
    ],
)
def test_wrong_metadata_is_refused_by_its_fields_path(metadata: dict[str, Any], field: str, said: str) -> None:
    error = refused(422, "Invalid", new, device(**metadata))
    assert field in [cause["field"] for cause in error.details["causes"]]
    assert said in error.message
    assert (error.details["kind"], error.details["group"]) == ("EdgeDevice", "meedge.dev")


def test_every_wrong_field_is_named_at_once() -> None:
    error = refused(422, "Invalid", new, device(name="Pi", labels={"a b": "c d"}, finalizers=["e f"]))
    assert len(error.details["causes"]) == 4


@pytest.mark.parametrize("metadata", [[], "text", 5])
def test_metadata_is_an_object(metadata: Any) -> None:
    refused(400, "BadRequest", new, {**device(), "metadata": metadata})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 1) | st.sampled_from(("", "a", "pi-1")),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(("a", "uid")), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ("name", "namespace", "uid", "labels", "annotations", "finalizers", "ownerReferences", "resourceVersion")
MORE = ("generateName", "creationTimestamp", "deletionTimestamp", "managedFields", "generation", "other")


METADATA = JSON | st.dictionaries(st.sampled_from((*FIELDS, *MORE)), JSON)
OPTIONS = st.dictionaries(st.sampled_from(("preconditions", "propagationPolicy", "orphanDependents")), JSON)


@given(metadata=METADATA, options=OPTIONS)
def test_whatever_the_metadata_it_is_taken_or_refused(metadata: Any, options: dict[str, Any]) -> None:
    content, before = {**device(), "metadata": metadata}, stored(finalizers=["a/b"])
    with contextlib.suppress(ApiError):
        new(content)
    for subresource in ("", "status"):
        with contextlib.suppress(ApiError):
            assert change(before, content, subresource=subresource)["metadata"]["name"] == "pi-1"
    with contextlib.suppress(ApiError):
        deleted(KEY, before, now=NOW, options=options)


def test_a_change_of_the_spec_is_a_new_generation_and_no_other_change_is() -> None:
    before = stored(labels={"a": "b"})
    for change_of, generation in (
        ({"spec": {"memory": "2Mi"}}, 2),
        ({"spec": {"memory": "1Mi"}}, 1),
        ({"status": {"branches": 2}}, 1),
        ({"metadata": {"name": "pi-1", "labels": {"a": "c"}}}, 1),
        ({"metadata": {"generation": 9}}, 1),
        ({"more": 1}, 2),
    ):
        assert change(before, {**before, **change_of})["metadata"]["generation"] == generation


def test_the_main_endpoint_leaves_the_status_alone_and_the_status_endpoint_everything_else() -> None:
    before = stored(finalizers=["a/b"])
    other = {
        **with_metadata(before, labels={"x": "y"}, finalizers=[]),
        "spec": {"memory": "9"},
        "status": {"branches": 9},
    }
    main, status = change(before, other), change(before, other, subresource="status")
    assert (main["status"], main["spec"]) == ({"branches": 1}, {"memory": "9"})
    assert status == {**before, "status": {"branches": 9}}
    without_status = {name: value for name, value in other.items() if name != "status"}
    assert change(before, without_status)["status"] == {"branches": 1}
    assert "status" not in change(before, without_status, subresource="status")


def test_what_the_server_writes_is_kept_where_it_is_not_sent() -> None:
    before = stored(deletionTimestamp="2026-01-10T12:00:00Z", deletionGracePeriodSeconds=0, finalizers=["a/b"])
    sparse = {**before, "metadata": {"finalizers": ["a/b"], "creationTimestamp": None}}
    assert change(before, sparse) == before


def test_what_users_write_is_gone_where_it_is_not_sent() -> None:
    before = stored(labels={"a": "b"}, annotations={"c": "d"}, finalizers=["a/b"], ownerReferences=[OWNER])
    after = change(before, {**before, "metadata": {"name": "pi-1", "labels": {}}})
    assert not {"labels", "annotations", "finalizers", "ownerReferences"} & set(after["metadata"])


@pytest.mark.parametrize("subresource", ["", "status"])
def test_an_older_version_is_a_conflict_in_kubernetes_words(subresource: str) -> None:
    before = stored()
    error = refused(
        409, "Conflict", change, before, with_metadata(before, resourceVersion="6"), subresource=subresource
    )
    assert error.message == (
        'Operation cannot be fulfilled on edgedevices.meedge.dev "pi-1": the object has been modified; please apply '
        "your changes to the latest version and try again"
    )


def test_another_uid_is_a_conflict() -> None:
    before = stored()
    error = refused(409, "Conflict", change, before, with_metadata(before, uid="u"))
    assert "Precondition failed: UID in precondition: u, UID in object meta: " in error.message


def test_a_version_is_needed_where_it_is_asked_for() -> None:
    before = stored()
    error = refused(422, "Invalid", change, before, with_metadata(before, resourceVersion=""), needs_version=True)
    assert "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update" in error.message
    change(before, before, needs_version=True)


@pytest.mark.parametrize("metadata", [{"name": "other"}, {"namespace": "other"}])
def test_name_and_namespace_are_those_of_the_request(metadata: dict[str, str]) -> None:
    before = stored()
    refused(400, "BadRequest", change, before, with_metadata(before, **metadata))


@pytest.mark.parametrize(
    "metadata",
    [
        {"creationTimestamp": "2020-01-01T00:00:00Z"},
        {"deletionTimestamp": "2020-01-01T00:00:00Z"},
        {"deletionGracePeriodSeconds": 5},
    ],
)
def test_times_of_creation_and_deletion_cannot_be_changed(metadata: dict[str, Any]) -> None:
    before = stored()
    error = refused(422, "Invalid", change, before, with_metadata(before, **metadata))
    assert "field is immutable" in error.message


def test_wrong_metadata_is_refused_in_a_change_as_well() -> None:
    before = stored()
    refused(422, "Invalid", change, before, with_metadata(before, labels={"a b": "c"}))


def test_an_object_that_nothing_holds_is_gone_at_once() -> None:
    assert deleted(KEY, stored(), now=NOW) is None
    assert deleted(KEY, stored(), now=NOW, options={"propagationPolicy": "Background"}) is None


def test_finalizers_hold_a_deleted_object_until_the_last_is_removed() -> None:
    before = stored(finalizers=["a/b", "c/d"])
    held = deleted(KEY, before, now=NOW)
    assert held is not None
    assert held["metadata"]["deletionTimestamp"] == "2026-01-10T12:00:00Z"
    assert held["metadata"]["deletionGracePeriodSeconds"] == 0
    assert held["metadata"]["generation"] == 2
    assert not finished(held)
    one_left = change(held, with_metadata(held, finalizers=["c/d"]))
    assert not finished(one_left)
    assert finished(change(one_left, with_metadata(one_left, finalizers=[])))
    assert not finished(stored())


def test_deleting_again_changes_nothing() -> None:
    held = deleted(KEY, stored(finalizers=["a/b"]), now=NOW)
    assert held is not None
    assert deleted(KEY, held, now=NOW + timedelta(hours=1)) == held


def test_a_deleted_object_takes_no_new_finalizers() -> None:
    held = deleted(KEY, stored(finalizers=["a/b"]), now=NOW)
    assert held is not None
    error = refused(422, "Invalid", change, held, with_metadata(held, finalizers=["a/b", "e/f"]))
    assert "no new finalizers can be added if the object is being deleted" in error.message


@pytest.mark.parametrize(
    ("finalizers", "options", "held_by"),
    [
        ([], {"propagationPolicy": "Foreground"}, ["foregroundDeletion"]),
        ([], {"propagationPolicy": "Orphan"}, ["orphan"]),
        ([], {"orphanDependents": True}, ["orphan"]),
        ([], {"orphanDependents": False}, None),
        (["a/b"], {"propagationPolicy": "Foreground"}, ["a/b", "foregroundDeletion"]),
        (["a/b", "orphan"], {"propagationPolicy": "Background"}, ["a/b"]),
        (["orphan"], {"propagationPolicy": "Foreground"}, ["foregroundDeletion"]),
        (["foregroundDeletion"], {"propagationPolicy": "Background"}, None),
        (["foregroundDeletion"], {}, ["foregroundDeletion"]),
        (["orphan"], None, ["orphan"]),
    ],
)
def test_the_policy_holds_the_object_by_its_own_finalizer(
    finalizers: list[str], options: dict[str, Any] | None, held_by: list[str] | None
) -> None:
    before = stored(finalizers=finalizers)
    unchanged = copy.deepcopy(before)
    held = deleted(KEY, before, now=NOW, options=options)
    assert (held["metadata"]["finalizers"] if held else None) == held_by
    assert before == unchanged


def test_a_policy_can_be_changed_while_the_object_is_being_deleted() -> None:
    held = deleted(KEY, stored(), now=NOW, options={"propagationPolicy": "Foreground"})
    assert held is not None
    again = deleted(KEY, held, now=NOW + timedelta(hours=1), options={"propagationPolicy": "Orphan"})
    assert again is not None
    assert again["metadata"] == {**held["metadata"], "finalizers": ["orphan"]}


@pytest.mark.parametrize(
    "options",
    [
        {"propagationPolicy": "Sideways"},
        {"propagationPolicy": 5},
        {"propagationPolicy": {}},
        {"propagationPolicy": "Orphan", "orphanDependents": True},
    ],
)
def test_an_unknown_policy_is_invalid(options: dict[str, Any]) -> None:
    refused(422, "Invalid", deleted, KEY, stored(), now=NOW, options=options)


@pytest.mark.parametrize(
    ("preconditions", "said"),
    [
        ({"uid": "u"}, "Precondition failed: UID in precondition: u, UID in object meta: "),
        ({"resourceVersion": "6"}, "Precondition failed: ResourceVersion in precondition: 6, "),
    ],
)
def test_deletion_keeps_to_its_preconditions(preconditions: dict[str, str], said: str) -> None:
    before = stored()
    error = refused(409, "Conflict", deleted, KEY, before, now=NOW, options={"preconditions": preconditions})
    assert said in error.message
    right = {"uid": before["metadata"]["uid"], "resourceVersion": "7"}
    assert deleted(KEY, before, now=NOW, options={"preconditions": right}) is None


def test_preconditions_are_an_object() -> None:
    refused(400, "BadRequest", deleted, KEY, stored(), now=NOW, options={"preconditions": ["a"]})
