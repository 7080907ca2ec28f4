"""The server as a process: how it starts, what it refuses, how it ends."""

import json
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading

import pytest
import yaml
from api_process import device

DEVICES = "/apis/meedge.dev/v1alpha1/namespaces/default/edgedevices"
SERVER = [sys.executable, "-m", "meedge_ray.operator.server"]


def refused(*options):
    done = subprocess.run([*SERVER, *map(str, options)], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_the_first_start_makes_a_home_that_others_cannot_read(own_server):
    own_server.start()
    home = own_server.home
    config = yaml.safe_load(own_server.kubeconfig.read_text())

    private = [home / "kubeconfig", home / "tokens" / "admin", *home.glob("state.db*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert len(own_server.token) >= 32
    assert config["users"][0]["user"]["token"] == own_server.token
    with own_server.client() as http:
        names = [item["metadata"]["name"] for item in http.get("/api/v1/namespaces").json()["items"]]
    assert names == ["default"]


def test_a_restart_keeps_token_and_objects(own_server):
    own_server.start()
    token = own_server.token
    with own_server.client() as http:
        made = http.post(DEVICES, json=device()).json()
        version = http.get(DEVICES).json()["metadata"]["resourceVersion"]
    assert own_server.stop() == 0
    own_server.start()

    with own_server.client() as http:
        assert own_server.token == token
        assert http.get(f"{DEVICES}/pi-1").json() == made
        # What watches knew before still holds: nothing was written meanwhile.
        assert http.get(DEVICES).json()["metadata"]["resourceVersion"] == version


def test_told_to_stop_it_ends_watches_well_even_those_that_nobody_reads(own_server):
    own_server.start()
    context = ssl.create_default_context(cafile=str(own_server.certificate))
    host, port = own_server.url.removeprefix("https://").split(":")
    ask = f"GET {DEVICES}?watch=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {own_server.token}\r\n\r\n"
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect((host, int(port)))
    deaf = context.wrap_socket(plain, server_hostname=host)
    deaf.sendall(ask.encode())
    idle = socket.create_connection((host, int(port)))
    begun, ended = threading.Barrier(6), []

    def watch():
        with own_server.client() as http, http.stream("GET", DEVICES, params={"watch": "1"}) as stream:
            begun.wait(30)
            ended.extend(stream.iter_lines())  # raises where the answer is cut off
            ended.append("end")

    watchers = [threading.Thread(target=watch) for _ in range(5)]
    for watcher in watchers:
        watcher.start()
    begun.wait(30)
    with own_server.client() as http:
        big = device()
        big["metadata"]["annotations"] = {"x": "y" * 200_000}
        http.post(DEVICES, json=big).raise_for_status()
        for index in range(40):  # more than the connection's buffers hold
            change = json.dumps({"metadata": {"annotations": {"count": str(index)}}})
            http.patch(f"{DEVICES}/pi-1", content=change, headers={"content-type": "application/merge-patch+json"})

    assert own_server.stop() == 0
    for watcher in watchers:
        watcher.join(30)
    assert ended.count("end") == 5
    deaf.close()
    idle.close()


def test_what_was_answered_outlives_a_kill(own_server):
    own_server.start()
    acknowledged = []

    def write(writer):
        with own_server.client() as http:
            try:
                for index in range(10_000):
                    name = f"pi-{writer}-{index}"
                    if http.post(DEVICES, json=device(name)).status_code == 201:
                        acknowledged.append(name)
            except Exception:
                return

    writers = [threading.Thread(target=write, args=(index,)) for index in range(3)]
    for writer in writers:
        writer.start()
    while len(acknowledged) < 100:
        pass
    own_server.stop(signal.SIGKILL)
    for writer in writers:
        writer.join()
    own_server.start()

    with own_server.client() as http:
        there = {item["metadata"]["name"] for item in http.get(DEVICES).json()["items"]}
    assert set(acknowledged) <= there
    assert len(there) <= len(acknowledged) + 3  # written, and the answer not yet out


def test_a_taken_port_is_named(own_server, tmp_path):
    own_server.start()
    port = own_server.url.rpartition(":")[2]

    code, why = refused("--home", tmp_path / "other", "--port", port)

    assert code == 1
    assert f"127.0.0.1:{port}: cannot listen: Address already in use" in why
    assert "--port" in why


def test_one_home_has_one_server(own_server):
    own_server.start()
    before = own_server.kubeconfig.read_text()

    code, why = refused("--home", own_server.home, "--port", 0)

    assert code == 1
    assert f"in use by process {own_server.process.pid}" in why
    assert own_server.kubeconfig.read_text() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tls-cert", "nowhere.pem"], "--tls-cert"),
        (["--tls-cert", "nowhere.pem", "--tls-key", "nowhere.pem"], "nowhere.pem: TLS cannot start"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--port", "99999"], "--port"),
        (["--event-ttl", "-1"], "--event-ttl"),
        (["--event-ttl", "nan"], "--event-ttl"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, said):
    code, why = refused("--home", tmp_path / "home", "--port", "0", *options)

    assert code in (1, 2)
    assert said in why


def test_a_home_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    code, why = refused("--home", tmp_path / "file" / "home")

    assert code == 2
    assert str(tmp_path / "file" / "home") in why


def test_a_token_that_keeps_nobody_out_is_refused(tmp_path):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "admin").write_text("x")

    code, why = refused("--home", tmp_path, "--port", "0")

    assert code == 2
    assert str(tmp_path / "tokens" / "admin") in why


def test_what_makes_processes_large_is_not_imported():
    heavy = ["torch", "ray", "pandas", "numpy", "kopf", "kubernetes", "aiohttp", "meedge_ray.operator.controllers"]
    program = f"import sys, meedge_ray.operator.server.__main__; print([n for n in {heavy} if n in sys.modules])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "[]\n"
