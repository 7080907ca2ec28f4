"""Thin devices end to end: kubectl, the API server, Ray Serve, and devices that speak HTTP alone."""

import threading
from pathlib import Path

import httpx
import pytest
from real_operator import condition, is_ready
from worlds import make_world

from meedge_ray.actors.service.credentials import enrolment_token
from meedge_ray.bundle.manifest import bundle_sha256, unit_store, write_bundle

pytestmark = pytest.mark.ray


def manifest(kind, name, **spec):
    return {"apiVersion": "meedge.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


class ThinDevice:
    """Registers, and says every half second that it does what it was told last."""

    def __init__(self, service, name):
        self.name, self.sha256 = name, ""
        self.memory_bytes, self.refusal = 2**20, None
        enrolment = enrolment_token(Path(service["status"]["tokenFile"]))
        self._http = httpx.Client(base_url=service["status"]["url"], timeout=30, trust_env=False)
        body = {"model": "tiny", "memory_bytes": self.memory_bytes, "version": "1"}
        answer = self._send("POST", f"/v1/devices/{name}", enrolment, body).raise_for_status().json()
        self._credential = answer["credential"]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._http.close()

    def _beat(self):
        while not self._stop.wait(0.5):
            answer = self._send("PUT", f"/v1/devices/{self.name}/status", self._credential, self._status())
            if answer.status_code == 401:
                self.refusal = answer.json()["what"]
                return
            desired = answer.raise_for_status().json()["desired"]
            self.memory_bytes = desired["memory_bytes"] or self.memory_bytes
            self.sha256 = desired["bundle_sha256"]

    def _send(self, method, path, bearer, body):
        return self._http.request(method, path, json=body, headers={"Authorization": f"Bearer {bearer}"})

    def _status(self):
        return {
            "device": self.name,
            "version": "1",
            "started_at": 0,
            "settings_sha256": "c" * 64,
            "busy": False,
            "problem": None,
            "running": {
                "model": "tiny",
                "bundle_sha256": self.sha256 or "0" * 64,
                "device_type": "board-1t",
                "memory_bytes": self.memory_bytes,
                "resident_bytes": 1000,
                "process_rss_bytes": 10**8,
                "branches": ["exit0-small"],
                "planner": "static",
                "expectation": 0.5,
                "source": "service",
                "problem": "",
            },
            "mode": "anytime",
            "latency_ms": None,
            "memory": {
                "source": "meminfo",
                "limit_bytes": 2**30,
                "used_bytes": 2**20,
                "pressure": 0.0,
                "allowed_bytes": self.memory_bytes,
                "rss_bytes": 9 * 10**7,
            },
            "counts": {},
        }


def test_a_thin_device_has_its_object_follows_it_and_is_refused_without_it(operator, kubectl):
    world = make_world()
    folder = operator.server.home / "bundles" / kubectl.namespace / "tiny"
    for data in world.units.values():
        unit_store(folder).put(data)
    write_bundle(folder, world.bundle)
    kubectl.apply(
        manifest("ElasticModel", "tiny", model={"architecture": "lenet", "pretrain": {"epochs": 1}}, suspend=True)
    )
    kubectl.apply(manifest("ElasticService", "vision", modelRefs=[{"name": "tiny"}]))
    service = kubectl.wait_for("es", "vision", is_ready)

    with ThinDevice(service, f"Thin_{kubectl.namespace}") as device:
        name = device.name.lower().replace("_", "-")

        def runs(memory_bytes):
            return lambda found: is_ready(found) and found["status"]["memoryBytes"] == memory_bytes

        found = kubectl.wait_for("ed", name, runs(2**20))
        assert found["metadata"]["labels"] == {"meedge.dev/tier": "thin"}
        assert "node" not in found["status"]
        assert condition(found, "Reachable")["reason"] == "Heartbeat"
        kubectl.wait_for("ed", name, lambda found: found["status"].get("bundleSha256") == bundle_sha256(world.bundle))

        kubectl("patch", "ed", name, "--type=merge", "-p", '{"spec": {"memory": "2Mi"}}')
        kubectl.wait_for("ed", name, runs(2**21))

        kubectl("delete", "ed", name)
        device._thread.join(60)
        assert "revoked" in device.refusal
        assert kubectl.find("ed", name) is None
    kubectl("delete", "es", "vision")
