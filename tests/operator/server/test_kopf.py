"""Unmodified kopf with its default settings: what it stores in annotations and status, finalizers, events."""

import json
import os
import subprocess
import sys
import time

import pytest
from api_process import device

DEVICES = "/apis/meedge.dev/v1alpha1/namespaces/{}/edgedevices"
CONTROLLER = """
import kopf

@kopf.on.startup()
def configure(settings, **_):
    settings.watching.reconnect_backoff = 0.1

@kopf.on.create("meedge.dev", "v1alpha1", "edgedevices")
def created(spec, patch, body, **_):
    patch.status["branches"] = spec.get("threads", 1)
    kopf.event(body, type="Normal", reason="Placed", message="in memory")

@kopf.on.update("meedge.dev", "v1alpha1", "edgedevices", field="spec.memory")
def updated(new, retry, patch, **_):
    if retry == 0:
        raise kopf.TemporaryError("once more", delay=0.1)
    patch.status["expectation"] = "0.5"

@kopf.on.delete("meedge.dev", "v1alpha1", "edgedevices")
def deleted(logger, **_):
    logger.info("is let go")
"""


@pytest.fixture
def operator(server, namespace, tmp_path):
    """kopf at work in the test's namespace. Gives the file of its log."""
    program, log = tmp_path / "controller.py", tmp_path / "log"
    program.write_text(CONTROLLER)
    command = [
        sys.executable,
        "-m",
        "kopf",
        "run",
        "--standalone",
        "--verbose",
        f"--namespace={namespace}",
        str(program),
    ]
    with log.open("wb") as output:
        environment = {**os.environ, "KUBECONFIG": str(server.kubeconfig)}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    yield log
    process.terminate()
    process.wait(30)


def wait_until(holds, log):
    deadline = time.monotonic() + 30
    while not (found := holds()):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found


def test_kopf_handles_an_object_from_its_creation_to_its_deletion(operator, http, namespace):
    path = DEVICES.format(namespace)

    def now():
        return http.get(f"{path}/pi-1").json()

    def events():
        listed = http.get(f"/api/v1/namespaces/{namespace}/events").json()["items"]
        return [event for event in listed if event["reason"] == "Placed"]

    http.post(path, json=device(threads=3)).raise_for_status()
    wait_until(lambda: now().get("status") == {"branches": 3}, operator)
    [event] = wait_until(events, operator)
    held = now()["metadata"]["finalizers"]
    http.patch(
        f"{path}/pi-1",
        content=json.dumps({"spec": {"memory": "2Mi"}}),
        headers={"content-type": "application/merge-patch+json"},
    ).raise_for_status()
    wait_until(lambda: now()["status"].get("expectation") == "0.5", operator)
    http.delete(f"{path}/pi-1").raise_for_status()
    wait_until(lambda: now()["kind"] == "Status", operator)

    said = operator.read_text()
    assert event["involvedObject"]["uid"]
    assert held == ["kopf.zalando.org/KopfFinalizerMarker"]
    assert "is let go" in said
    assert "Traceback" not in said
    assert "inconsistencies" not in said
