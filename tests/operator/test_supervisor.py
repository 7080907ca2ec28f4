"""`meedge up` as its user runs it: what is killed comes back, and nothing is left after `meedge down`."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import psutil
import pytest
from api_process import ServerProcess
from meedge_up import Up, running_up
from real_operator import clean_environment

from meedge_ray.operator.client.api_client import ApiClient
from meedge_ray.operator.client.resources import MODELS
from meedge_ray.operator.keeping.places import bearer
from meedge_ray.operator.keeping.processes import marked

pytestmark = pytest.mark.ray
_FLEET = """
apiVersion: meedge.dev/v1alpha1
kind: DeviceFleet
metadata: {name: edge}
spec:
  selector: {matchLabels: {}}
  template: {serviceRef: {name: none}, modelRef: {name: none}, memory: 1Mi}
"""

_MODEL = {
    "apiVersion": "meedge.dev/v1alpha1",
    "kind": "ElasticModel",
    "metadata": {"name": "digits"},
    "spec": {"model": {"architecture": "resnet8", "pretrain": {"epochs": 1}}},
}


def part(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in status["parts"] if each["name"] == name)


def is_back(name: str, pid: int) -> Callable[[dict[str, Any]], bool]:
    return lambda status: status["state"] == "ready" and part(status, name)["pid"] not in (None, pid)


def read_until(stream: IO[str], last: str) -> list[str]:
    lines = []
    for line in stream:
        lines.append(line.strip())
        if lines[-1] == last:
            return lines
    raise AssertionError("\n".join(lines))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("up") / "home") as up:
        up.up()
        up.kubectl("apply", "-f", "-", stdin=_FLEET)
        yield up


def test_up_answers_kubectl_and_says_where_all_is(up: Up) -> None:
    said = up.up()
    assert [(each["name"], each["state"]) for each in said["parts"]] == [
        ("api-server", "ready"),
        ("ray", "ready"),
        ("reconciler", "ready"),
    ]
    assert up.meedge("kubeconfig").stdout == f"{said['kubeconfig']}\n"
    assert "edge" in up.kubectl("get", "devicefleets")
    assert up.meedge("get", "df", "-o", "name").stdout == "devicefleet.meedge.dev/edge\n"
    again = up.up()
    assert [each["pid"] for each in again["parts"]] == [each["pid"] for each in said["parts"]]
    other = up.meedge("up", "--host", "127.0.0.3")
    assert other.returncode == 2
    assert "runs already, with --host=127.0.0.1" in other.stderr


def test_what_is_killed_comes_back(up: Up) -> None:
    before = up.up()
    server = part(before, "api-server")["pid"]
    os.kill(server, signal.SIGKILL)
    after = up.until(is_back("api-server", server))
    assert part(after, "api-server")["restarts"] == part(before, "api-server")["restarts"] + 1
    assert "edge" in up.kubectl("get", "devicefleets")

    worker = part(after, "reconciler")["pid"]
    os.kill(worker, signal.SIGKILL)
    up.until(is_back("reconciler", worker))


def test_edge_nodes_stay_while_the_whole_head_is_killed(up: Up) -> None:
    before = up.up()
    command = shlex.split(before["join"].replace("NAME", "pi-1"))
    folder = Path(tempfile.mkdtemp(prefix=f"meedge-{os.getpid()}-", dir="/tmp"))  # short, for Unix sockets
    ray = [f"{Path(sys.executable).parent}/{word}" if word == "ray" else word for word in ["env", *command]]
    with (folder / "log").open("wb") as log:
        node = subprocess.Popen(
            [*ray, f"--temp-dir={folder}", "--disable-usage-stats"],
            env=clean_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (folder / "log").read_text():
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.5)
        head, worker = part(before, "ray")["pid"], part(before, "reconciler")["pid"]
        for process in marked(up.home.path, "ray"):
            process.kill()
        up.until(lambda status: is_back("ray", head)(status) and is_back("reconciler", worker)(status))
        assert node.poll() is None, (folder / "log").read_text()
        while ("ALIVE", "pi-1") not in up.nodes():
            assert time.monotonic() < deadline + 240
            time.sleep(0.5)
    finally:
        family = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
        node.terminate()
        node.wait(60)
        for left in psutil.wait_procs(family, timeout=5)[1]:
            left.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_the_next_up_goes_on_with_what_a_killed_supervisor_left(up: Up) -> None:
    before = up.up()
    os.kill(before["supervisor"]["pid"], signal.SIGKILL)
    up.until(lambda status: status["state"] == "unsupervised")
    assert "edge" in up.kubectl("get", "devicefleets")
    after = up.up()
    assert after["supervisor"]["pid"] != before["supervisor"]["pid"]
    assert [each["pid"] for each in after["parts"]] == [each["pid"] for each in before["parts"]]


def test_down_leaves_nothing_even_of_a_killed_supervisor(up: Up) -> None:
    before = up.up()
    uid = up.kubectl("get", "df", "edge", "-o", "jsonpath={.metadata.uid}")
    job = {"entrypoint": f"{sys.executable} -c 'import time; time.sleep(600)'", "submission_id": "sleeper"}
    jobs = httpx.Client(base_url=before["dashboard"], headers=bearer(up.home), timeout=60, trust_env=False)
    jobs.post("/api/jobs/", json=job).raise_for_status()
    deadline = time.monotonic() + 120
    while not (sleepers := [each for each in marked(up.home.path) if "time.sleep(600)" in " ".join(each.cmdline())]):
        assert time.monotonic() < deadline, jobs.get("/api/jobs/sleeper").text
        time.sleep(0.5)
    jobs.close()
    everything = [*marked(up.home.path), *sleepers]
    os.kill(before["supervisor"]["pid"], signal.SIGKILL)
    os.kill(part(before, "ray")["pid"], signal.SIGKILL)  # and its family is orphaned

    ended = up.meedge("down")
    assert (ended.returncode, ended.stdout) == (0, "stopped\n"), ended.stderr
    assert [each for each in everything if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
    folder = str(up.home.temp)
    assert [
        each.info for each in psutil.process_iter(["cmdline"]) if folder in " ".join(each.info["cmdline"] or [])
    ] == []
    assert not up.home.temp.exists()
    assert not up.home.run_file.exists()
    assert up.status()["state"] == "stopped"
    assert up.meedge("down").stdout == f"nothing runs in {up.home.path}\n"

    after = up.up()
    assert (after["apiServer"], after["join"]) == (before["apiServer"], before["join"])
    assert up.kubectl("get", "df", "edge", "-o", "jsonpath={.metadata.uid}") == uid


def test_logs_follow_a_build_from_job_to_job(up: Up, tmp_path: Path) -> None:
    # The jobs are real and build nothing; the model is at a server without controllers, and its status told by hand.
    said = up.up()
    server = ServerProcess(tmp_path / "server")
    server.start()
    environment = {"KUBECONFIG": str(server.kubeconfig), "RAY_API_SERVER_ADDRESS": said["dashboard"]}
    up.environment |= {**environment, "RAY_AUTH_TOKEN": up.home.ray_token}
    try:
        with (
            ApiClient(server.kubeconfig) as client,
            httpx.Client(base_url=said["dashboard"], headers=bearer(up.home), timeout=60, trust_env=False) as jobs,
        ):
            client.create(MODELS, "default", _MODEL, manager="test")
            assert "has no job yet" in up.meedge("logs", "em/digits").stderr

            def report(ready: str, **stages: str) -> None:
                condition = {"type": "Ready", "status": ready, "reason": "Because", "message": ""}
                condition |= {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}
                told = [{"name": name, "state": state, "jobId": name} for name, state in stages.items()]
                status = {"observedGeneration": 1, "conditions": [condition], "stages": told}
                client.patch(MODELS, "default", "digits", {"status": status}, manager="test", subresource="status")

            def begin(name: str) -> None:
                entrypoint = f"sh -c 'echo {name} begins; sleep 2; echo {name} ends'"
                jobs.post("/api/jobs/", json={"submission_id": name, "entrypoint": entrypoint}).raise_for_status()

            begin("pretrain")
            report("False", pretrain="Running")
            with subprocess.Popen(
                [sys.executable, "-m", "meedge_ray.cli.main", "logs", "em/digits", "-f"],
                env=up.environment,
                stdout=subprocess.PIPE,
                text=True,
            ) as following:
                assert following.stdout is not None
                lines = read_until(following.stdout, "pretrain ends")
                begin("assemble")
                report("False", pretrain="Succeeded", assemble="Running")
                lines += read_until(following.stdout, "assemble ends")
                report("True", pretrain="Succeeded", assemble="Succeeded")
                assert following.wait(60) == 0
            told = [line for line in lines if line.startswith(("==>", "pretrain", "assemble"))]
            assert told == [
                "==> pretrain: job pretrain <==",
                "pretrain begins",
                "pretrain ends",
                "==> assemble: job assemble <==",
                "assemble begins",
                "assemble ends",
            ]
            ended = up.meedge("logs", "elasticmodel", "digits", "--stage", "pretrain")
            assert (ended.returncode, "pretrain ends" in ended.stdout) == (0, True)
            jobs.delete("/api/jobs/pretrain").raise_for_status()
            assert "knows no such job" in up.meedge("logs", "em/digits", "--stage", "pretrain").stderr
    finally:
        server.stop(signal.SIGKILL)
        for name in (*environment, "RAY_AUTH_TOKEN"):
            del up.environment[name]
