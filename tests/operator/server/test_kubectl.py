"""Unmodified kubectl against a real server."""

import json
import select
import signal
import time

import pytest
import yaml
from api_process import device

EVENT = {
    "metadata": {"name": "pi-1.started"},
    "reason": "Placed",
    "message": "nine branches in memory",
    "type": "Normal",
    "count": 3,
    "firstTimestamp": "2026-01-31T12:00:00Z",
    "source": {"component": "meedge"},
}


def manifest(*objects):
    return yaml.safe_dump_all(objects)


def apply(kubectl, *objects, flags=()):
    return kubectl("apply", "-f", "-", *flags, stdin=manifest(*objects))


def got(kubectl, *arguments):
    return json.loads(kubectl("get", *arguments, "-o", "json"))


def patch_status(kubectl, name, **status):
    kubectl("patch", "ed", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))


def condition(status, type="Ready"):
    return {
        "type": type,
        "status": status,
        "reason": "Test",
        "message": "so",
        "lastTransitionTime": "2026-01-31T12:00:00Z",
    }


@pytest.mark.parametrize("flags", [(), ("--server-side",)])
def test_apply_creates_changes_and_leaves_alone(kubectl, flags):
    created = apply(kubectl, device(), flags=flags)
    again = apply(kubectl, device(), flags=flags)
    changed = apply(kubectl, device(memory="65Mi", threads=2), flags=flags)
    removed = apply(kubectl, device(memory="65Mi"), flags=flags)

    assert "serverside-applied" in created if flags else "created" in created
    assert "serverside-applied" in again if flags else "unchanged" in again
    assert "serverside-applied" in changed if flags else "configured" in changed
    assert removed == changed
    content = got(kubectl, "ed", "pi-1")
    assert content["spec"] == device(memory="65Mi")["spec"]
    assert content["metadata"]["generation"] == 3


def test_server_side_apply_names_who_holds_a_field_and_takes_it_when_forced(kubectl):
    apply(kubectl, device(), flags=["--server-side"])
    kubectl("patch", "ed", "pi-1", "--type=merge", "-p", '{"spec": {"memory": "1Mi"}}')

    why = kubectl.refused("apply", "--server-side", "-f", "-", stdin=manifest(device()))
    apply(kubectl, device(), flags=["--server-side", "--force-conflicts"])

    assert 'conflict with "kubectl-patch"' in why
    assert ".spec.memory" in why
    assert got(kubectl, "ed", "pi-1")["spec"]["memory"] == "64Mi"


@pytest.mark.parametrize("flags", [(), ("--server-side",), ("--dry-run=server",)])
def test_bad_manifests_are_refused_with_the_paths_of_their_fields(kubectl, flags):
    bad = device(memori="64Mi", threads="two")

    why = kubectl.refused("apply", "-f", "-", *flags, stdin=manifest(bad))

    assert 'The EdgeDevice "pi-1" is invalid' in why
    assert "spec.memori: Forbidden: unknown field" in why
    assert "spec.threads: Invalid value" in why
    assert kubectl("get", "ed") == ""


def test_what_cannot_change_is_refused_by_its_path(kubectl):
    apply(kubectl, device())

    assert "spec.device: Forbidden" in kubectl.refused(
        "apply", "-f", "-", stdin=manifest(device() | {"spec": device(device="pi-2")["spec"]})
    )


def test_get_shows_tables(kubectl):
    apply(kubectl, device(), device("pi-2", memory="2Mi"))
    patch_status(kubectl, "pi-1", residentBytes=5, branches=9, expectation="0.7", conditions=[condition("True")])

    lines = kubectl("get", "ed").splitlines()
    wide = kubectl("get", "edgedevices", "-o", "wide").splitlines()

    assert lines[0].split()[:4] == ["NAME", "DEVICE", "MEMORY", "RESIDENT"]
    assert lines[1].split()[:7] == ["pi-1", "pi-1", "64Mi", "5", "9", "0.7", "True"]
    assert lines[2].split()[:3] == ["pi-2", "pi-2", "2Mi"]
    assert "MODEL" in wide[0]
    assert "digits" in wide[1]


def test_get_shows_objects_in_every_form(kubectl):
    apply(kubectl, device(), device("pi-2"))

    assert kubectl("get", "ed", "-o", "name").split() == ["edgedevice.meedge.dev/pi-1", "edgedevice.meedge.dev/pi-2"]
    assert kubectl("get", "ed/pi-1", "-o", "jsonpath={.spec.memory}") == "64Mi"
    assert yaml.safe_load(kubectl("get", "edgedevice", "pi-1", "-o", "yaml"))["spec"] == device()["spec"]
    assert [item["metadata"]["name"] for item in got(kubectl, "ed")["items"]] == ["pi-1", "pi-2"]
    assert kubectl("get", "ed", "--sort-by=.metadata.name", "--no-headers").split()[0] == "pi-1"
    assert "pi-1" in kubectl("get", "meedge")


def test_get_selects_by_labels_and_fields(kubectl):
    apply(kubectl, *(device(f"pi-{index}") for index in range(3)))
    kubectl("label", "ed", "pi-1", "room=kitchen")

    def names(*arguments):
        return kubectl("get", "ed", "-o", "name", *arguments).split()

    assert names("-l", "room=kitchen") == ["edgedevice.meedge.dev/pi-1"]
    assert names("-l", "room in (kitchen, hall)") == ["edgedevice.meedge.dev/pi-1"]
    assert names("-l", "!room") == ["edgedevice.meedge.dev/pi-0", "edgedevice.meedge.dev/pi-2"]
    assert names("--field-selector", "metadata.name=pi-2") == ["edgedevice.meedge.dev/pi-2"]
    assert "unable to parse" in kubectl.refused("get", "ed", "-l", "a in (")


def test_get_in_chunks_and_in_all_namespaces_gives_all(kubectl):
    apply(kubectl, *(device(f"pi-{index}") for index in range(7)))

    chunked = kubectl("get", "ed", "--chunk-size=3", "-o", "name").split()
    everywhere = kubectl("get", "ed", "-A", "--no-headers").splitlines()

    assert chunked == [f"edgedevice.meedge.dev/pi-{index}" for index in range(7)]
    assert sum(line.startswith(f"{kubectl.namespace} ") for line in everywhere) == 7


def test_watching_shows_what_is_there_and_each_change(kubectl):
    apply(kubectl, device())
    with kubectl.started("get", "ed", "-o", "name", "-w") as watching:
        assert watching.stdout.readline() == "edgedevice.meedge.dev/pi-1\n"
        apply(kubectl, device("pi-2"))
        assert watching.stdout.readline() == "edgedevice.meedge.dev/pi-2\n"
        watching.send_signal(signal.SIGTERM)


def test_watching_alone_shows_changes_alone(kubectl):
    apply(kubectl, device())
    with kubectl.started("get", "ed", "--watch-only", "--no-headers") as watching:
        # Nobody says when the watch has begun: change something until it shows.
        while not select.select([watching.stdout], [], [], 0.2)[0]:
            kubectl("annotate", "ed", "pi-1", f"at={time.monotonic_ns()}", "--overwrite")
        assert watching.stdout.readline().split()[:3] == ["pi-1", "pi-1", "64Mi"]
        watching.send_signal(signal.SIGTERM)


def test_describe_shows_the_events_of_an_object(kubectl):
    apply(kubectl, device())
    about = got(kubectl, "ed", "pi-1")["metadata"]
    involved = {"kind": "EdgeDevice", "name": "pi-1", "namespace": kubectl.namespace, "uid": about["uid"]}
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        **EVENT,
        "involvedObject": {**involved, "apiVersion": "meedge.dev/v1alpha1"},
    }
    kubectl("create", "-f", "-", stdin=manifest(event))

    described = kubectl("describe", "ed", "pi-1")

    assert "Memory:  64Mi" in described
    assert "Placed" in described
    assert "nine branches in memory" in described
    assert "EdgeDevice/pi-1" in kubectl("events")
    assert "nine branches" in kubectl("get", "events", "--field-selector", "involvedObject.name=pi-1")
    assert "nine branches" in kubectl("events", "--for", "edgedevice/pi-1")
    assert kubectl("get", "events", "--field-selector", "reason!=Placed") == ""


def test_explain_knows_every_field(kubectl):
    assert "budget" in kubectl("explain", "ed.spec.memory")
    recursive = kubectl("explain", "elasticmodel", "--recursive")
    assert "kernelSize" in recursive
    assert "-required-" in recursive
    assert "FIELD" in kubectl("explain", "namespaces.status.phase")
    assert "does not exist" in kubectl.refused("explain", "ed.spec.memori")


def test_diff_shows_what_apply_would_change(kubectl):
    apply(kubectl, device())

    same = kubectl.run("diff", "-f", "-", stdin=manifest(device()))
    other = kubectl.run("diff", "-f", "-", stdin=manifest(device(memory="65Mi")))
    server_side = kubectl.run(
        "diff", "--server-side", "--force-conflicts", "-f", "-", stdin=manifest(device(memory="65Mi"))
    )

    assert (same.returncode, same.stdout) == (0, "")
    for done in (other, server_side):
        assert done.returncode == 1, done.stderr
        assert "-  memory: 64Mi" in done.stdout
        assert "+  memory: 65Mi" in done.stdout


def test_edit_patches_what_the_editor_changed(kubectl):
    apply(kubectl, device())
    editor = kubectl.folder / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s/memory: .*/memory: 99Mi/" "$1"\n')
    editor.chmod(0o755)

    assert "edited" in kubectl("edit", "ed", "pi-1", KUBE_EDITOR=str(editor))
    assert got(kubectl, "ed", "pi-1")["spec"]["memory"] == "99Mi"


def test_labels_and_annotations_come_and_go(kubectl):
    apply(kubectl, device())

    kubectl("label", "ed", "--all", "room=kitchen")
    kubectl("annotate", "ed", "pi-1", "note=a b")
    metadata = got(kubectl, "ed", "pi-1")["metadata"]
    assert "already has a value" in kubectl.refused("label", "ed", "pi-1", "room=hall")
    kubectl("label", "ed", "pi-1", "room-")

    assert metadata["labels"] == {"room": "kitchen"}
    assert metadata["annotations"]["note"] == "a b"
    assert metadata["generation"] == 1
    assert "labels" not in got(kubectl, "ed", "pi-1")["metadata"]


def test_patches_merge_or_operate(kubectl):
    apply(kubectl, device(threads=4))

    kubectl("patch", "ed", "pi-1", "--type=merge", "-p", '{"spec": {"memory": "1Mi", "threads": null}}')
    kubectl("patch", "ed", "pi-1", "--type=json", "-p", '[{"op": "add", "path": "/spec/threads", "value": 3}]')
    failed = kubectl.refused(
        "patch", "ed", "pi-1", "--type=json", "-p", '[{"op": "test", "path": "/spec/threads", "value": 4}]'
    )
    refused = kubectl.refused("patch", "ed", "pi-1", "--type=merge", "-p", '{"spec": {"memory": -1}}')

    assert got(kubectl, "ed", "pi-1")["spec"] == device(memory="1Mi", threads=3)["spec"]
    assert "operation 0" in failed
    assert "spec.memory" in refused


def test_create_and_replace_ask_for_the_right_beginning(kubectl):
    kubectl("create", "-f", "-", stdin=manifest(device()))
    assert "already exists" in kubectl.refused("create", "-f", "-", stdin=manifest(device()))

    kubectl("replace", "-f", "-", stdin=manifest(device(memory="2Mi")))
    stale = got(kubectl, "ed", "pi-1")
    kubectl("replace", "-f", "-", stdin=manifest(device(memory="3Mi")))

    assert "not found" in kubectl.refused("replace", "-f", "-", stdin=manifest(device("pi-9")))
    assert "the object has been modified" in kubectl.refused("replace", "-f", "-", stdin=manifest(stale))
    assert got(kubectl, "ed", "pi-1")["spec"]["memory"] == "3Mi"


def test_wait_sees_conditions_and_deletions(kubectl):
    apply(kubectl, device())
    with kubectl.started("wait", "--for=condition=Ready", "ed/pi-1", "--timeout=30s") as waiting:
        patch_status(kubectl, "pi-1", conditions=[condition("True")])
        assert "condition met" in waiting.communicate()[0]
    assert "timed out" in kubectl.refused("wait", "--for=condition=Ready=False", "ed/pi-1", "--timeout=1s")
    with kubectl.started("wait", "--for=delete", "ed/pi-1", "--timeout=30s") as waiting:
        kubectl("delete", "ed", "pi-1")
        assert waiting.wait() == 0


def test_status_is_written_through_its_own_door(kubectl):
    apply(kubectl, device() | {"status": {"branches": 1}})
    kubectl("patch", "ed", "pi-1", "--type=merge", "-p", '{"status": {"branches": 2}}')
    assert "status" not in got(kubectl, "ed", "pi-1")

    patch_status(kubectl, "pi-1", branches=3)
    content = got(kubectl, "ed", "pi-1")

    assert content["status"] == {"branches": 3}
    assert content["metadata"]["generation"] == 1


def test_delete_by_name_by_label_and_all(kubectl):
    apply(kubectl, *(device(f"pi-{index}") for index in range(4)))
    kubectl("label", "ed", "pi-1", "room=kitchen")

    kubectl("delete", "ed", "pi-0")
    kubectl("delete", "ed", "-l", "room=kitchen")
    assert kubectl("get", "ed", "-o", "name").split() == ["edgedevice.meedge.dev/pi-2", "edgedevice.meedge.dev/pi-3"]
    kubectl("delete", "ed", "--all")

    assert kubectl("get", "ed", "-o", "name") == ""
    assert "not found" in kubectl.refused("delete", "ed", "pi-0")
    kubectl("delete", "ed", "pi-0", "--ignore-not-found")


def test_a_finalizer_holds_what_is_deleted(kubectl):
    held = device()
    held["metadata"]["finalizers"] = ["example.com/hold"]
    apply(kubectl, held)

    kubectl("delete", "ed", "pi-1", "--wait=false")
    with kubectl.started("wait", "--for=delete", "ed/pi-1", "--timeout=30s") as waiting:
        assert "deletionTimestamp" in got(kubectl, "ed", "pi-1")["metadata"]
        kubectl("patch", "ed", "pi-1", "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
        assert waiting.wait() == 0

    assert "not found" in kubectl.refused("get", "ed", "pi-1")


def test_a_dry_run_says_what_would_be_and_changes_nothing(kubectl):
    assert "created (server dry run)" in apply(kubectl, device(), flags=["--dry-run=server"])
    assert kubectl("get", "ed") == ""
    apply(kubectl, device())
    shown = kubectl("apply", "-f", "-", "--dry-run=server", "-o", "json", stdin=manifest(device(memory="2Mi")))
    kubectl("delete", "ed", "pi-1", "--dry-run=server")

    assert json.loads(shown)["spec"]["memory"] == "2Mi"
    assert got(kubectl, "ed", "pi-1")["spec"]["memory"] == "64Mi"


def test_namespaces_come_and_go_with_all_in_them(kubectl):
    other = f"{kubectl.namespace}-b"
    kubectl("create", "namespace", other)
    kubectl("apply", "-n", other, "-f", "-", stdin=manifest(device()))

    kubectl("delete", "namespace", other)

    assert "not found" in kubectl.refused("get", "namespace", other)
    assert "not found" in kubectl.refused("create", "-n", other, "-f", "-", stdin=manifest(device()))
    assert "may not be deleted" in kubectl.refused("delete", "namespace", "default")


def test_namespaces_are_applied_like_everything_else(kubectl):
    name = f"{kubectl.namespace}-c"
    first = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"a": "1", "b": "2"}}}
    second = {**first, "metadata": {"name": name, "labels": {"a": "3"}}}

    assert "created" in apply(kubectl, first)
    assert "unchanged" in apply(kubectl, first)
    assert "configured" in apply(kubectl, second)
    assert "serverside-applied" in apply(kubectl, second, flags=["--server-side"])

    assert got(kubectl, "namespace", name)["metadata"]["labels"] == {"a": "3"}
    assert "Active" in kubectl("get", "ns", name)
    kubectl("delete", "ns", name)


def test_the_server_tells_what_it_serves(kubectl):
    resources = kubectl("api-resources", "-o", "name").split()
    assert {"elasticmodels.meedge.dev", "elasticservices.meedge.dev", "namespaces", "events"} <= set(resources)
    assert kubectl("api-versions").split()[-2:] == ["meedge.dev/v1alpha1", "v1"]
    assert "is running at https://" in kubectl("cluster-info")
    assert "Server Version: v1.32" in kubectl("version")
    assert kubectl("auth", "can-i", "create", "ed") == "yes\n"
    assert "*.*" in kubectl("auth", "can-i", "--list")
    assert "admin" in kubectl("auth", "whoami")
    assert "elasticmodels.meedge.dev" in kubectl("get", "crd")
    assert kubectl("get", "--raw", "/readyz") == "ok"
