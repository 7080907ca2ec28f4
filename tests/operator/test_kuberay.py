"""The manifests for Kubernetes, held against KubeRay's schemas, Ray Serve's, and the parts they speak of."""

import json
import os
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from kubernetes.client import ApiClient
from ray._private.label_utils import parse_node_labels_from_yaml_file

from meedge_ray.actors.cluster import DEVICE_LABEL, EDGE, ROLE_LABEL, Cluster, start_arguments
from meedge_ray.api.kinds import KINDS
from meedge_ray.operator.kuberay.cluster import Settings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Using extra keyword arguments on `Field`")  # Ray Serve's own
    from ray.serve.schema import ServeDeploySchema

    from meedge_ray.actors.service import serving
    from meedge_ray.operator.kuberay.__main__ import COMMAND, main, rendered

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "manifests" / "elasticmodel.yaml"
OTHER = Settings(namespace="other", image="registry.example/meedge:1", storage="1Ti", gpu_workers=0, edge_nodes=7)
Object = dict[str, Any]


def objects(settings: Settings) -> dict[str, Object]:
    texts = rendered(settings, MODEL).values()
    return {content["kind"]: content for text in texts for content in yaml.safe_load_all(text)}


@pytest.fixture(params=[Settings(), OTHER], ids=["as they are shipped", "with other settings"])
def made(request: pytest.FixtureRequest) -> dict[str, Object]:
    return objects(request.param)


def schema(kind: str) -> Object:
    if "MEEDGE_SHARED" not in os.environ:
        pytest.skip("KubeRay's schemas lie in $MEEDGE_SHARED, which is not set")
    path = Path(os.environ["MEEDGE_SHARED"]) / "schemas" / f"kuberay-{kind.lower()}s-v1.json"
    found: Object = json.loads(path.read_text())["openAPIV3Schema"]
    return found


def strict(schema: Any) -> Any:
    """The same as JSON Schema says it, refusing unknown fields as a server in strict mode does."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if schema.get("nullable") is True and isinstance(schema.get("type"), str):
        result["type"] = [schema["type"], "null"]
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not is_open:
        result["additionalProperties"] = False
    return result


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayService"])
def test_kuberay_accepts_what_is_rendered(made: dict[str, Object], kind: str) -> None:
    validator = Draft202012Validator(strict(schema(kind)))
    content = made[kind]
    assert [error.message for error in validator.iter_errors(content)] == []
    field = next(iter(content["spec"]))
    assert not validator.is_valid(content | {"spec": content["spec"] | {f"{field}x": content["spec"][field]}})


def test_kubernetes_knows_every_field_of_its_own_kinds(made: dict[str, Object]) -> None:
    client = ApiClient()
    own = ("Namespace", "PersistentVolumeClaim", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap")
    for kind in (*own, "Deployment"):
        answer = type("Answer", (), {"data": json.dumps(made[kind])})()
        typed = client.deserialize(answer.data, f"V1{kind}", "application/json")
        assert client.sanitize_for_serialization(typed) == made[kind]


def test_ray_serve_accepts_the_services_configuration(made: dict[str, Object]) -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(made["RayService"]["spec"]["serveConfigV2"]))
    [application] = config.applications
    [deployment] = application.deployments
    assert application.import_path == "meedge_ray.actors.service.serving:application"
    assert deployment.name == serving.DEPLOYMENT
    assert serving.Arguments.model_validate(application.args).token_file == Path("/etc/meedge/token")
    assert deployment.user_config.keys() == serving.Bundles.__annotations__.keys()
    [bundle] = deployment.user_config["bundles"]
    assert bundle in made["RayJob"]["spec"]["entrypoint"]


def groups(content: Object) -> Iterator[Object]:
    spec = content["spec"]
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


def pods(made: dict[str, Object]) -> Iterator[Object]:
    for kind in ("RayCluster", "RayJob", "RayService"):
        for group in groups(made[kind]):
            yield group["template"]["spec"]
    yield made["Deployment"]["spec"]["template"]["spec"]


def test_every_container_runs_one_image_without_privileges(made: dict[str, Object]) -> None:
    pods = [
        group["template"]["spec"] for kind in ("RayCluster", "RayJob", "RayService") for group in groups(made[kind])
    ]
    pods.append(made["Deployment"]["spec"]["template"]["spec"])
    containers = [each for pod in pods for each in (*pod["containers"], *pod.get("initContainers", ()))]
    assert len({container["image"] for container in containers}) == 1
    for container in containers:
        assert container["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert "memory" in container["resources"]["limits"]


def test_every_mount_has_its_volume(made: dict[str, Object]) -> None:
    pods = [
        group["template"]["spec"] for kind in ("RayCluster", "RayJob", "RayService") for group in groups(made[kind])
    ]
    for pod in (*pods, made["Deployment"]["spec"]["template"]["spec"]):
        volumes = [volume["name"] for volume in pod["volumes"]]
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert [mount["name"] for mount in container["volumeMounts"]] == volumes


def edges(made: dict[str, Object]) -> Object:
    return next(group for group in groups(made["RayCluster"]) if group.get("groupName") == EDGE)


def test_an_edge_node_starts_as_everywhere(made: dict[str, Object]) -> None:
    ours = start_arguments(Cluster("head:6379", {}), {ROLE_LABEL: EDGE})
    started = {f"--{name}={value}" for name, value in edges(made)["rayStartParams"].items()}
    assert f"--labels={ROLE_LABEL}={EDGE}" in ours
    assert edges(made)["labels"] == {ROLE_LABEL: EDGE}
    # The address and --block are KubeRay's to give; its probes ask the agent at its usual port.
    expected = set(ours) - {"start", "--block", "--address=head:6379", "--dashboard-agent-listen-port=0"}
    assert started - {"--labels-file=/var/run/meedge/labels.yaml"} == {
        each for each in expected if not each.startswith("--labels=")
    }
    assert "--num-cpus=0" in started


def test_an_edge_node_is_named_as_its_node_of_kubernetes(made: dict[str, Object], tmp_path: Path) -> None:
    [container] = edges(made)["template"]["spec"]["initContainers"]
    command = [part.replace("/var/run/meedge", str(tmp_path)) for part in container["command"]]
    subprocess.run(command, env={"NODE_NAME": "10"}, check=True)
    assert parse_node_labels_from_yaml_file(str(tmp_path / "labels.yaml")) == {DEVICE_LABEL: "10"}


def test_the_operator_may_do_what_it_does_and_no_more(made: dict[str, Object]) -> None:
    rules = made["ClusterRole"]["rules"]
    allowed = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    for kind in KINDS:
        assert {("meedge.dev", kind.plural, verb) for verb in ("get", "list", "watch", "patch")} <= allowed
        assert ("meedge.dev", f"{kind.plural}/status", "patch") in allowed
    assert {resource for _, resource, verb in allowed if verb == "delete"} == {"edgedevices"}
    assert not any("*" in each for each in allowed)
    assert not any(resource == "secrets" for _, resource, _ in allowed)
    account = made["ServiceAccount"]["metadata"]
    assert made["ClusterRoleBinding"]["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
    assert made["Deployment"]["spec"]["template"]["spec"]["serviceAccountName"] == account["name"]


def test_the_operators_script_writes_a_kubeconfig_that_only_it_can_read(
    made: dict[str, Object], tmp_path: Path
) -> None:
    [container] = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("secret")
    script = container["command"][2].replace("/var/run/secrets/kubernetes.io/serviceaccount", str(folder))
    script = script.replace("/tmp/kubeconfig", str(tmp_path / "kubeconfig"))
    head, _, tail = script.partition("\nray start")
    subprocess.run(["/bin/bash", "-ec", head], check=True)
    config = json.loads((tmp_path / "kubeconfig").read_text())
    assert config["users"][0]["user"] == {"token": "secret"}
    assert (tmp_path / "kubeconfig").stat().st_mode & 0o777 == 0o600
    told = subprocess.run(
        ["/bin/bash", "-ec", f"ray() {{ echo ray $@; }}\nray start{tail.replace('exec python', 'echo python')}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert told[0].startswith("ray start --address=meedge-head-svc.")
    assert told[1].startswith("python -m meedge_ray.operator.reconciler --kubeconfig=")


def test_what_is_shipped_is_what_the_settings_say() -> None:
    shipped = {path.name: path.read_text() for path in (ROOT / "manifests" / "kuberay").iterdir()}
    assert shipped == rendered(Settings(), MODEL), f"run: {COMMAND}"


def test_the_command_takes_every_setting(tmp_path: Path) -> None:
    main(
        ["--output", str(tmp_path / "new"), "--model", str(MODEL), "--namespace=other", "--storage=1Ti"]
        + ["--image=registry.example/meedge:1", "--gpu-workers=0", "--edge-nodes=7"]
    )
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == rendered(OTHER, MODEL)


def test_a_long_name_is_cut_to_what_kuberay_takes(tmp_path: Path) -> None:
    model = tmp_path / "model.yaml"
    model.write_text(MODEL.read_text().replace("name: digits", f"name: {'a' * 39}.{'b' * 23}"))
    [config, job] = yaml.safe_load_all(rendered(Settings(), model)["rayjob.yaml"])
    assert job["metadata"]["name"] == config["metadata"]["name"] == f"meedge-{'a' * 39}"


@pytest.mark.parametrize("mistake", ["model", "output"])
def test_a_mistake_is_told_in_a_line(tmp_path: Path, mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = tmp_path / "model.yaml", tmp_path / "output"
    if mistake == "output":
        model.write_text(MODEL.read_text())
        output.write_text("a file")
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(output), "--model", str(model)])
    assert stopped.value.code == 2
    assert str(tmp_path / mistake) in capsys.readouterr().err
