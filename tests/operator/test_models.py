"""What the controller of ElasticModels does where there is no cluster to build on: the API server is real."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from api_process import ServerProcess, serving
from real_operator import condition, free_port
from worlds import World as Model

from meedge_ray.bundle.manifest import unit_store, write_bundle
from meedge_ray.operator.client.api_client import Object
from meedge_ray.operator.client.resources import MODELS, NAMESPACES
from meedge_ray.operator.controllers.models import ModelController
from meedge_ray.operator.world import OperatorSettings, World
from meedge_ray.train.manifest import read_manifest

SPEC = {"model": {"architecture": "lenet", "pretrain": {"epochs": 1}}}


class Desk:
    """A controller, and a user at the same API server; the cluster is away."""

    def __init__(self, server: ServerProcess, folder: Path) -> None:
        self.settings = OperatorSettings(
            kubeconfig=server.kubeconfig,
            home=folder,
            base_dir=folder,
            dashboard_url=f"http://127.0.0.1:{free_port()}",
            ray_address="127.0.0.1:1",
        )
        self.world = World(self.settings)
        self.api = self.world.api
        self.controller = ModelController(self.world)
        self.namespace = f"test-{folder.name.replace('_', '-')[-40:].lower().strip('-')}"
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        self.api.create(NAMESPACES, "", namespace, manager="test")

    def create(self, **spec: Any) -> None:
        content = {"apiVersion": "meedge.dev/v1alpha1", "kind": "ElasticModel", "metadata": {"name": "tiny"}}
        self._see(self.api.create(MODELS, self.namespace, {**content, "spec": {**SPEC, **spec}}, manager="test"))

    def change(self, change: Mapping[str, Any]) -> None:
        self._see(self.api.patch(MODELS, self.namespace, "tiny", change, manager="test"))

    def _see(self, content: Object) -> None:
        self.world.models.see(content)  # as a watch would

    def swept(self) -> Object:
        """The object after another look of the controller."""
        self.controller.sweep()
        return self.api.get(MODELS, self.namespace, "tiny")


@pytest.fixture(scope="module")
def lone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One that no running operator works on."""
    with serving(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture
def desk(lone_server: ServerProcess, tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(lone_server, tmp_path)
    yield desk
    desk.world.jobs.close()
    desk.api.close()


def test_nothing_is_begun_before_the_end_is_prepared(desk: Desk) -> None:
    desk.create()
    first = desk.swept()
    assert first["metadata"]["finalizers"] == ["meedge.dev/bundle"]
    assert "status" not in first


def test_a_job_is_named_before_it_is_submitted_and_waits_for_the_cluster(desk: Desk) -> None:
    desk.create()
    desk.swept()
    named = desk.swept()
    stage = named["status"]["stages"][0]
    assert stage["state"] == "Running"
    assert stage["jobId"].endswith("-g1-pretrain-a1")
    assert (condition(named)["status"], condition(named)["reason"]) == ("Unknown", "Unavailable")
    manifest = read_manifest(desk.settings.home / "manifests" / desk.namespace / "tiny" / "g1.yaml")
    assert manifest.model.spec.model.architecture == "lenet"
    assert desk.swept()["status"]["stages"] == named["status"]["stages"]


def test_a_suspended_model_tells_of_the_bundle_that_is_there(desk: Desk, world: Model) -> None:
    desk.create(suspend=True)
    desk.swept()
    assert "bundle" not in desk.swept()["status"]
    folder = desk.settings.bundle_folder(desk.namespace, "tiny")
    store = unit_store(folder)
    for data in world.units.values():
        store.put(data)
    write_bundle(folder, world.bundle)
    shown = desk.swept()
    assert shown["status"]["bundle"]["branches"] == len(world.bundle.branches)
    assert condition(shown)["reason"] == "Suspended"
    version = shown["metadata"]["resourceVersion"]
    assert desk.swept()["metadata"]["resourceVersion"] == version
    (folder / "bundle.json").unlink()
    assert "bundle" not in desk.swept()["status"]


def test_a_spec_that_another_server_let_in_is_refused_with_its_fields(desk: Desk) -> None:
    desk.create(suspend=True)
    desk.swept()
    content = desk.api.get(MODELS, desk.namespace, "tiny")
    version = str(int(content["metadata"]["resourceVersion"]) + 1)
    content["metadata"] = {**content["metadata"], "resourceVersion": version}
    content["spec"] = {"model": {"architecture": "lenet"}}
    desk.world.models.see(content)
    said = condition(desk.swept())
    assert said["reason"] == "InvalidSpec"
    assert "spec.model" in said["message"]
    assert "pretrain" in said["message"]
