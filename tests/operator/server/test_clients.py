"""The Python clients that people write controllers and scripts with."""

import json
import subprocess
import sys

import kubernetes
import pytest
from api_process import device
from kubernetes.client.exceptions import ApiException

PLACE = {"group": "meedge.dev", "version": "v1alpha1", "plural": "edgedevices"}


@pytest.fixture
def api_client(server):
    configuration = kubernetes.client.Configuration()
    kubernetes.config.load_kube_config(str(server.kubeconfig), client_configuration=configuration)
    with kubernetes.client.ApiClient(configuration) as client:
        yield client


def test_the_official_client_makes_lists_patches_and_deletes_objects(api_client, namespace):
    objects = kubernetes.client.CustomObjectsApi(api_client)
    here = PLACE | {"namespace": namespace}

    made = objects.create_namespaced_custom_object(**here, body=device())
    with pytest.raises(ApiException) as twice:
        objects.create_namespaced_custom_object(**here, body=device())
    patched = objects.patch_namespaced_custom_object(**here, name="pi-1", body={"spec": {"memory": "2Mi"}})
    status = objects.patch_namespaced_custom_object_status(**here, name="pi-1", body={"status": {"branches": 3}})
    replaced = objects.replace_namespaced_custom_object(**here, name="pi-1", body=status | {"spec": device()["spec"]})
    listed = objects.list_namespaced_custom_object(**here, label_selector="!room", limit=1)
    everywhere = objects.list_cluster_custom_object(**PLACE)
    deleted = objects.delete_namespaced_custom_object(**here, name="pi-1")

    assert twice.value.status == 409
    assert made["metadata"]["generation"] == 1
    assert patched["spec"]["memory"] == "2Mi"
    assert status["status"] == {"branches": 3}
    assert replaced["spec"]["memory"] == "64Mi"
    assert [item["metadata"]["uid"] for item in listed["items"]] == [made["metadata"]["uid"]]
    assert made["metadata"]["uid"] in {item["metadata"]["uid"] for item in everywhere["items"]}
    assert deleted["status"] == "Success"


def test_the_official_client_watches(api_client, namespace):
    objects = kubernetes.client.CustomObjectsApi(api_client)
    here = PLACE | {"namespace": namespace}
    objects.create_namespaced_custom_object(**here, body=device())
    watch = kubernetes.watch.Watch()

    seen = []
    for event in watch.stream(objects.list_namespaced_custom_object, **here, timeout_seconds=30):
        seen.append((event["type"], event["object"]["metadata"]["name"]))
        if len(seen) == 1:
            objects.patch_namespaced_custom_object(**here, name="pi-1", body={"spec": {"threads": 2}})
        elif len(seen) == 2:
            objects.delete_namespaced_custom_object(**here, name="pi-1")
        else:
            watch.stop()

    assert seen == [("ADDED", "pi-1"), ("MODIFIED", "pi-1"), ("DELETED", "pi-1")]


def test_the_official_client_knows_namespaces_and_events(api_client, namespace):
    core = kubernetes.client.CoreV1Api(api_client)
    other = f"{namespace}-of-client"
    about = kubernetes.client.V1ObjectReference(kind="EdgeDevice", name="pi-1", namespace=namespace)
    event = kubernetes.client.CoreV1Event(
        metadata=kubernetes.client.V1ObjectMeta(generate_name="pi-1-"),
        involved_object=about,
        reason="Placed",
        message="so",
        type="Normal",
    )

    core.create_namespace(kubernetes.client.V1Namespace(metadata=kubernetes.client.V1ObjectMeta(name=other)))
    created = core.create_namespaced_event(namespace, event)
    names = [each.metadata.name for each in core.list_namespace().items]
    events = core.list_namespaced_event(namespace, field_selector="involvedObject.name=pi-1").items
    core.delete_namespace(other)

    assert other in names
    assert created.metadata.name.startswith("pi-1-")
    assert [each.reason for each in events] == ["Placed"]


def test_the_official_clients_server_side_apply(api_client, namespace):
    dynamic = kubernetes.dynamic.DynamicClient(api_client)
    devices = dynamic.resources.get(api_version="meedge.dev/v1alpha1", kind="EdgeDevice")

    applied = devices.server_side_apply(
        body=device(), name="pi-1", namespace=namespace, field_manager="tester", force_conflicts=True
    )

    assert applied.metadata.managedFields[0].manager == "tester"


KR8S = """
import json, sys

import kr8s
from kr8s.objects import new_class

kubeconfig, namespace, content = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
api = kr8s.api(kubeconfig=kubeconfig, namespace=namespace)
EdgeDevice = new_class(kind="EdgeDevice", version="meedge.dev/v1alpha1", namespaced=True, plural="edgedevices")
device = EdgeDevice(content, api=api)
device.create()
seen = []
for kind, thing in api.watch("edgedevices.meedge.dev", namespace=namespace):
    seen.append((kind, thing.name))
    if kind == "ADDED":
        device.patch({"spec": {"memory": "2Mi"}})
        device.patch({"status": {"branches": 4}}, subresource="status")
        device.patch([{"op": "add", "path": "/metadata/labels", "value": {"room": "hall"}}], type="json")
        listed = list(api.get("edgedevices.meedge.dev", namespace=namespace, label_selector="room=hall"))
        device.delete()
    elif kind == "DELETED":
        break
print(json.dumps({"seen": seen, "listed": [thing.raw for thing in listed]}))
"""


def test_kr8s_makes_lists_patches_and_watches(server, namespace):
    content = device()
    content["metadata"]["namespace"] = namespace
    # In a process of its own: it leaves connections open.
    command = [sys.executable, "-c", KR8S, str(server.kubeconfig), namespace, json.dumps(content)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)

    assert said["seen"] == [["ADDED", "pi-1"], *[["MODIFIED", "pi-1"]] * 3, ["DELETED", "pi-1"]]
    [listed] = said["listed"]
    assert (listed["spec"]["memory"], listed["status"], listed["metadata"]["labels"]) == (
        "2Mi",
        {"branches": 4},
        {"room": "hall"},
    )
