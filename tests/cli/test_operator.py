"""up, down, status and kubeconfig, as far as they need no Ray."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from api_process import ServerProcess

from meedge_ray.cli import operator_up
from meedge_ray.operator.keeping.home import open_home

Run = Callable[..., tuple[int, str, str]]
# What only the extras bring.
_HEAVY = ("ray", "torch", "torchvision", "kopf", "starlette", "uvicorn", "fastapi", "jsonpatch", "cryptography")


def test_where_nothing_runs_every_command_says_so(meedge: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert meedge("down", "--home", home) == (0, f"nothing runs in {home}\n", "")
    code, out, _ = meedge("status", "--home", home)
    assert (code, out) == (1, f"nothing runs in {home}\n")
    code, out, _ = meedge("status", "--home", home, "-o", "json")
    assert (code, json.loads(out)["state"]) == (1, "stopped")
    code, _, err = meedge("kubeconfig", "--home", home)
    assert code == 2
    assert "`meedge up`" in err
    assert not home.exists()


def test_a_missing_extra_says_how_to_get_it(meedge: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_up, "_NEEDED", ("no_such_package",))
    code, _, err = meedge("up", "--home", tmp_path / "home")
    assert code == 1
    assert "no_such_package is not installed. pip install 'meedge-ray[operator]'" in err
    assert not (tmp_path / "home").exists()


def test_up_refuses_what_cannot_work_and_starts_nothing(meedge: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    code, _, err = meedge("up", "--home", tmp_path)
    assert code == 2
    assert "other things in it" in err
    home = tmp_path / "home"
    code, _, err = meedge("up", "--home", home, "--base-dir", tmp_path / "nowhere")
    assert code == 2
    assert "--base-dir: is no folder" in err
    for host, said in (("192.0.2.1", "no address of this machine"), ("0.0.0.0", "must be told one address")):
        code, _, err = meedge("up", "--home", home, "--host", host)
        assert code == 2
        assert said in err
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    code, _, err = meedge("up", "--home", home, "--tls-cert", certificate)
    assert code == 2
    assert "--tls-cert, --tls-key: one goes not without the other" in err
    code, _, err = meedge("up", "--home", home, "--tls-cert", certificate, "--tls-key", key)
    assert code == 2
    assert "HTTPS cannot be served with that" in err
    assert not (home / "run.json").exists()


def test_up_says_which_port_is_taken_by_whom(meedge: Run, tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    with socket.create_server(("127.0.0.1", home.ports().dashboard)):
        code, _, err = meedge("up", "--home", home.path)
    assert code == 1
    assert f"home.json: ports.dashboard: port {home.ports().dashboard} is taken by process" in err
    assert not home.run_file.exists()


def test_the_base_install_is_enough_to_declare_and_look(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "home")
    server.start()
    try:
        for command in (["get", "em"], ["explain", "em"], ["status"], ["events"], ["down"]):
            code = f"import sys; sys.modules.update(dict.fromkeys({_HEAVY})); sys.argv[0] = 'meedge'; "
            code += "from meedge_ray.cli.main import main; main()"
            ended = subprocess.run(
                [sys.executable, "-c", code, *command],
                env={"KUBECONFIG": str(server.kubeconfig), "MEEDGE_HOME": str(tmp_path / "other"), "HOME": "/"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert "Traceback" not in ended.stderr
            assert ended.returncode == (1 if command == ["status"] else 0), ended.stderr
    finally:
        server.stop(signal.SIGKILL)
