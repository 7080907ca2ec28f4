"""Views of the objects, and statuses and events written to them, with a real API server."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.domain.errors import UnavailableError
from meedge_ray.operator import view as view_module
from meedge_ray.operator.client.api_client import ApiClient
from meedge_ray.operator.client.resources import FLEETS, NAMESPACES
from meedge_ray.operator.publishing import Condition, Publisher, condition_of, is_ready, merge_patch
from meedge_ray.operator.sweeping import Sweeps
from meedge_ray.operator.view import View, name_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = {
    "selector": {},
    "template": {"serviceRef": {"name": "s"}, "modelRef": {"name": "m"}, "memory": "1Mi"},
}
READY = Condition(type="Ready", status="True", reason="AllReady", message="one device")
UNREADY = Condition(type="Ready", status="False", reason="Lost", message="pi-1 is away", warning=True)


@pytest.fixture(scope="module")
def api(api_server):
    with ApiClient(api_server.kubeconfig) as api:
        yield api


@pytest.fixture
def make(api, request):
    name = f"view-{abs(hash(request.node.name)) % 10**8}"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    api.create(NAMESPACES, "", namespace, manager="test")

    def make(fleet):
        content = {"apiVersion": "meedge.dev/v1alpha1", "kind": "DeviceFleet", "metadata": {"name": fleet}}
        return api.create(FLEETS, name, {**content, "spec": SPEC}, manager="test")

    return make


def there(view, content):
    return name_of(content) in view.by_name()


def test_a_view_lists_once_and_is_then_kept_by_what_it_is_told(api, make):
    first = make("first")
    view = View(api, FLEETS)
    assert there(view, first)
    second = make("second")
    assert not there(view, second)
    view.see(second)
    assert there(view, second)
    names = [name_of(content).name for content in view.objects()]
    assert names.index("first") < names.index("second")
    view.forget(first)
    assert not there(view, first)


def test_what_is_older_than_what_is_known_changes_nothing(api, make):
    old = make("one")
    new = api.patch(FLEETS, *name_of(old), {"metadata": {"labels": {"new": ""}}}, manager="test")
    view = View(api, FLEETS)
    view.see(new)
    view.see(old)
    assert view.by_name()[name_of(old)]["metadata"]["labels"] == {"new": ""}
    view.forget({"metadata": {**new["metadata"], "uid": "of an earlier one of that name"}})
    assert there(view, new)


def test_what_was_deleted_unseen_is_found_out(api, make, monkeypatch):
    gone, kept = make("gone"), make("kept")
    view = View(api, FLEETS)
    assert there(view, gone)
    api.delete(FLEETS, *name_of(gone))
    assert there(view, gone)
    monkeypatch.setattr(view_module, "_RENEWED_AFTER_S", 0.0)
    assert not there(view, gone)
    assert there(view, kept)


def test_a_view_without_a_server_is_no_empty_view(api_server, tmp_path):
    text = api_server.kubeconfig.read_text()
    elsewhere = tmp_path / "kubeconfig"
    elsewhere.write_text(
        "\n".join("    server: http://127.0.0.1:9" if "server:" in line else line for line in text.splitlines())
    )
    with ApiClient(elsewhere) as api, pytest.raises(UnavailableError):
        View(api, FLEETS).objects()


def test_a_status_is_written_where_it_changed_and_events_tell_what_is_news(api, make):
    content = make("one")
    view, publisher = View(api, FLEETS), Publisher(api)
    view.see(content)

    def publish(status, *conditions, now=NOW):
        publisher.publish(view, view.by_name()[name_of(content)], status, conditions, now)
        return view.by_name()[name_of(content)]

    quiet = Condition(type="Conflict", status="False", reason="NoConflict")
    written = publish({"desired": 1, "ready": 1}, READY, quiet)
    assert is_ready(written)
    assert written == api.get(FLEETS, *name_of(content))
    later = NOW + timedelta(minutes=1)
    assert publish({"desired": 1, "ready": 1}, READY, quiet, now=later) is written
    lost = publish({"desired": 1}, UNREADY, quiet, now=later)
    assert "ready" not in lost["status"]
    assert condition_of(lost, "Ready")["lastTransitionTime"] == "2026-01-01T00:01:00Z"
    assert condition_of(lost, "Conflict")["lastTransitionTime"] == "2026-01-01T00:00:00Z"
    assert not is_ready(lost)
    said = [
        (event["type"], event["reason"], event["message"]) for event in api.events(None, content["metadata"]["uid"])
    ]
    assert sorted(said) == [("Normal", "AllReady", "one device"), ("Warning", "Lost", "pi-1 is away")]


def test_ready_counts_for_the_spec_it_was_said_of_alone(api, make):
    content = make("one")
    view = View(api, FLEETS)
    Publisher(api).publish(view, content, {}, [READY], NOW)
    changed = {"spec": {"template": {"memory": "2Mi"}}}
    assert is_ready(api.get(FLEETS, *name_of(content)))
    assert not is_ready(api.patch(FLEETS, *name_of(content), changed, manager="test"))


def test_the_status_of_what_is_gone_is_not_written_and_a_wrong_one_stops_nobody(api, make):
    gone, wrong = make("gone"), make("wrong")
    view, publisher = View(api, FLEETS), Publisher(api)
    assert there(view, gone)
    api.delete(FLEETS, *name_of(gone))
    publisher.publish(view, gone, {"desired": 1}, [READY], NOW)
    assert not there(view, gone)
    publisher.publish(view, wrong, {"desired": -1}, [READY], NOW)
    assert "status" not in api.get(FLEETS, *name_of(wrong))


JSON = st.recursive(
    st.integers(0, 3) | st.text("ab", max_size=2) | st.lists(st.integers(0, 3), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("xyz"), JSON, max_size=3)


def merged(target, patch):
    """RFC 7386, as it is written there."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = merged(target.get(key), value)
    return target


@given(before=OBJECTS, after=OBJECTS)
def test_a_merge_patch_makes_one_of_the_other_and_is_empty_only_between_equals(before, after):
    patch = merge_patch(before, after)
    assert merged(before, patch) == after
    assert (patch == {}) == (before == after)


def test_a_loop_that_fails_goes_on_and_all_end_together(caplog):
    seen, sweeps = [], Sweeps()

    def fails():
        seen.append("fails")
        raise UnavailableError("it is away")

    def works():
        seen.append("works")

    sweeps.every(0.01, fails)
    sweeps.every(0.01, works)
    with sweeps.running():
        deadline = time.monotonic() + 30
        while min(map(seen.count, ("fails", "works"))) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    told = [record.message for record in caplog.records if "it is away" in record.message]
    assert len(told) == 1
    number = len(seen)
    time.sleep(0.05)
    assert len(seen) == number
