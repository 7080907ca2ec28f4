"""ElasticModels end to end: kubectl, the API server, the controllers and Ray's jobs are all real."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from real_operator import Objects, Operator, condition, is_ready

from meedge_ray.bundle.manifest import bundle_sha256, read_bundle, verify_units
from meedge_ray.operator.jobs_client import JobsClient

pytestmark = pytest.mark.ray

PATIENCE_S = 300.0
SPEC: Mapping[str, Any] = {
    "model": {"architecture": "resnet8", "pretrain": {"epochs": 1, "learningRate": "0.01"}},
    "data": {"source": "digits", "trainSamples": 300},
    "zoo": {"convolutions": [{"kind": "none"}], "fullyConnected": [{"pooledSize": 1}]},
    "cultivation": {"epochs": 1},
}


def manifest(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "ElasticModel",
        "metadata": {"name": name},
        "spec": {**SPEC, **changes},
    }


def stages(model: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {stage["name"]: stage for stage in model.get("status", {}).get("stages", ())}


def jobs_of(operator: Operator, namespace: str) -> dict[str, str]:
    with closing(JobsClient(operator.head.dashboard_url, operator.head.environment["RAY_AUTH_TOKEN"])) as client:
        return {job.id: job.state for job in client.jobs(f"{namespace}-")}


def driver(operator: Operator, namespace: str) -> psutil.Process:
    """The process of the namespace's one job."""
    family = psutil.Process(operator.head.process.pid).children(recursive=True)
    of_job = [each for each in family if "meedge_ray.jobs.pretrain" in each.cmdline()]
    [found] = [each for each in of_job if any(f"/{namespace}/" in part for part in each.cmdline())]
    return found


def test_a_model_is_built_and_rebuilt_as_far_as_it_changed_and_removed(operator: Operator, kubectl: Objects) -> None:
    kubectl.apply(manifest("tiny"))
    first = kubectl.wait_for("em", "tiny", is_ready, PATIENCE_S)
    said = first["status"]["bundle"]
    folder = Path(said["path"])
    bundle = read_bundle(folder)
    verify_units(folder, bundle)
    assert folder == operator.server.home / "bundles" / kubectl.namespace / "tiny"
    assert said["sha256"] == bundle_sha256(bundle)
    assert said["branches"] == len(bundle.branches)
    assert {name: stage["state"] for name, stage in stages(first).items()} == {
        "pretrain": "Succeeded",
        "cultivate": "Succeeded",
        "share": "Succeeded",
        "elasticize": "Skipped",
        "assemble": "Succeeded",
    }
    assert condition(first, "Cultivated")["status"] == "True"
    assert "Succeeded" in kubectl("get", "em")

    kubectl.apply(manifest("tiny", sharing={"epochs": 1}))
    second = kubectl.wait_for(
        "em", "tiny", lambda model: is_ready(model) and model["metadata"]["generation"] == 2, PATIENCE_S
    )
    for untouched in ("pretrain", "cultivate"):
        assert stages(second)[untouched] == stages(first)[untouched]
    for touched in ("share", "assemble"):
        assert stages(second)[touched]["jobId"].endswith(f"-g2-{touched}-a1")

    kubectl("delete", "em", "tiny", "--timeout=60s")
    assert kubectl.find("em", "tiny") is None
    assert not folder.exists()
    assert jobs_of(operator, kubectl.namespace) == {}


def test_what_is_wrong_with_a_model_is_said_where_people_look(operator: Operator, kubectl: Objects) -> None:
    kubectl.apply(manifest("wrong", model={"architecture": "resnet9", "pretrain": {"epochs": 1}}))
    model = kubectl.wait_for("em", "wrong", lambda model: condition(model).get("reason") == "Failed")
    assert "resnet9" in condition(model)["message"]
    assert stages(model)["pretrain"]["attempt"] == 1
    described = kubectl("describe", "em", "wrong")
    assert "resnet9" in described.partition("Events:")[2]
    assert "Traceback" not in described
    kubectl("delete", "em", "wrong", "--timeout=60s")


def test_a_model_stays_as_long_as_a_service_refers_to_it(operator: Operator, kubectl: Objects) -> None:
    kubectl.apply(manifest("kept", suspend=True))
    service = {"apiVersion": "meedge.dev/v1alpha1", "kind": "ElasticService", "metadata": {"name": "vision"}}
    kubectl.apply({**service, "spec": {"modelRefs": [{"name": "kept"}]}})
    kubectl.wait_for("em", "kept", lambda model: condition(model).get("reason") == "Suspended")
    kubectl("delete", "em", "kept", "--wait=false")
    model = kubectl.wait_for("em", "kept", lambda model: condition(model).get("reason") == "Deleting")
    assert "vision" in condition(model)["message"]
    assert "Deleting" in [reason for reason, _ in kubectl.events("kept")]
    kubectl("delete", "es", "vision", "--timeout=60s")
    kubectl("wait", "--for=delete", "em/kept", "--timeout=60s")


def test_a_killed_job_is_tried_again_and_a_suspended_model_has_none(operator: Operator, kubectl: Objects) -> None:
    long = {"architecture": "resnet8", "pretrain": {"epochs": 2000}}
    kubectl.apply(manifest("long", model=long))
    kubectl.wait_for("em", "long", lambda model: "progress" in stages(model).get("pretrain", {}))
    driver(operator, kubectl.namespace).kill()
    running = kubectl.wait_for(
        "em", "long", lambda model: "startedAt" in (stage := stages(model)["pretrain"]) and stage["attempt"] == 2
    )
    again = stages(running)["pretrain"]["jobId"]
    killed = again.replace("-a2", "-a1")
    assert "AttemptFailed" in [reason for reason, _ in kubectl.events("long")]
    kubectl.apply(manifest("long", model=long, suspend=True))
    kubectl.wait_for("em", "long", lambda model: condition(model).get("reason") == "Suspended")
    assert jobs_of(operator, kubectl.namespace) == {killed: "FAILED", again: "STOPPED"}
    kubectl.apply(manifest("long", model=long, suspend=False))
    kubectl.wait_for("em", "long", lambda model: stages(model)["pretrain"]["state"] == "Running")
    kubectl("delete", "em", "long", "--timeout=60s")
    assert jobs_of(operator, kubectl.namespace) == {}
