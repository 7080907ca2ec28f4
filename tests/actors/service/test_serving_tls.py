"""The service over HTTPS, on Ray Serve in a process of its own: what Serve listens with cannot change while it runs."""

import json
import os
import subprocess
import sys

import pytest

from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.operator.keeping.certificate import make_certificate

SCRIPT = """
import json, socket, ssl, sys
from pathlib import Path
import httpx
from meedge_ray.actors.cluster import cluster
from meedge_ray.actors.service.credentials import enrolment_token
from meedge_ray.actors.service.serving import run_service, stop_service
from meedge_ray.api.devices import Registration
from meedge_ray.bundle.manifest import bundle_units
from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.errors import MeedgeError
from meedge_ray.runtime.cache import Cache
from meedge_ray.runtime.client import ServiceClient

directory, certificate, key = map(Path, sys.argv[1:4])
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
said = {}
with cluster():
    url = run_service([directory], "token", port=port, certificate=certificate, key=key)
    said["url"] = url.replace(str(port), "PORT")
    with ServiceClient(url, "token", ca_file=certificate) as client:
        said["models"] = [model.name for model in client.models().models]
    with ServiceClient(url, "token") as stranger:
        try:
            stranger.models()
        except MeedgeError as error:
            said["stranger"] = str(error)
    body = Registration(model="tiny", memory_bytes=10**6, version="1").model_dump()
    with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=certificate)) as http:
        enrolment = {"Authorization": f"Bearer {enrolment_token('token')}"}
        credential = http.post("/v1/devices/pi", json=body, headers=enrolment).raise_for_status().json()["credential"]
        own = {"Authorization": f"Bearer {credential}"}
        status = json.loads(sys.argv[4])
        said["answer"] = http.put("/v1/devices/pi/status", json=status, headers=own).raise_for_status().json()
        said["frontier"] = http.get("/v1/models/tiny/frontier", headers=own).status_code
        said["models_of_a_device"] = http.get("/v1/models", headers=own).status_code
        with ServiceClient(url, credential, ca_file=certificate) as device:
            cache = Cache(device, UnitStore(Path("cache")))
            units = bundle_units(cache.bundle("tiny"))
            cache.ensure_all(units)
            said["fetched"] = len(cache.held(units)) == len(units) and cache.fetched_bytes
        listed = http.get("/v1/devices", headers={"Authorization": "Bearer token"}).raise_for_status().json()
        said["listed"] = [entry["device"] for entry in listed["devices"]]
    stop_service()
print(json.dumps(said))
"""
STATUS = {
    "device": "pi",
    "version": "1",
    "started_at": 0,
    "settings_sha256": "",
    "busy": True,
    "problem": None,
    "running": None,
    "mode": "anytime",
    "latency_ms": None,
    "memory": {
        "source": "meminfo",
        "limit_bytes": None,
        "used_bytes": None,
        "pressure": None,
        "allowed_bytes": 1,
        "rss_bytes": 1,
    },
    "counts": {},
}


@pytest.mark.ray
def test_a_thin_device_is_served_over_https_and_a_stranger_trusts_it_not(world, bundle_writer, tmp_path):
    bundle_writer(tmp_path / "bundle", world)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "bundle", certificate, key, json.dumps(STATUS)],
        env=environment | {"HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["url"] == "https://127.0.0.1:PORT"
    assert (said["models"], said["listed"]) == (["tiny"], ["pi"])
    assert "certificate" in said["stranger"].lower()
    assert (said["frontier"], said["models_of_a_device"]) == (200, 403)
    assert said["answer"]["desired"]["model"] == "tiny"
    assert said["fetched"] == sum(len(data) for data in world.units.values())


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # Ray Serve's import
@pytest.mark.parametrize("case", ["no key", "no file", "another's key"])
def test_a_certificate_that_cannot_be_used_is_refused_before_anything_is_started(case, directories, tmp_path):
    from meedge_ray.actors.service.serving import run_service

    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    if case == "no key":
        key = None
    elif case == "no file":
        certificate.unlink()
    else:
        make_certificate(tmp_path / "other.pem", key)
    with pytest.raises(InvalidInputError, match="HTTPS"):
        run_service(directories, "token", port=9, certificate=certificate, key=key)
