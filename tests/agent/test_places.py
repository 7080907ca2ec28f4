"""Where agents are found, and that each device has one."""

import os
import signal
import stat
import subprocess
import sys

import pytest
from agents import served

from meedge_ray.agent.client import AgentClient
from meedge_ray.agent.places import MOST_SOCKET_PATH_BYTES, AgentPlace, place_of, run_folder
from meedge_ray.domain.errors import InvalidInputError, NotFoundError, UnavailableError


def test_the_run_folder_is_where_it_is_told_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("MEEDGE_RUN_DIR", raising=False)
    assert str(run_folder()) == "/run/user/1/meedge"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert str(run_folder()) == "/home/me/.cache/meedge/run"
    monkeypatch.setenv("MEEDGE_RUN_DIR", "~/run")
    assert str(run_folder()) == "/home/me/run"
    assert AgentPlace("pi-1", tmp_path.parent).path == tmp_path.parent / "pi-1"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(InvalidInputError, match="no name of a device"):
        AgentPlace(name, tmp_path)


def test_a_path_too_long_for_a_socket_is_refused(run_dir):
    with pytest.raises(InvalidInputError, match="MEEDGE_RUN_DIR"):
        AgentPlace("pi-1", run_dir / ("x" * MOST_SOCKET_PATH_BYTES))


def test_the_folder_is_for_its_user_alone(run_dir):
    place = AgentPlace("pi-1", run_dir)
    place.path.mkdir(mode=0o777)
    with place.claimed():
        assert stat.S_IMODE(place.path.stat().st_mode) == 0o700
        place.write_record(http_port=None)
        place.http_token()
        for file in (place.record_file, place.token_file):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_folder_that_leads_elsewhere_is_not_used(run_dir, tmp_path):
    (run_dir / "pi-1").symlink_to(tmp_path)
    with pytest.raises(InvalidInputError, match="no folder of yours"), AgentPlace("pi-1", run_dir).claimed():
        pass
    (run_dir / "pi-2").write_text("")
    with pytest.raises(UnavailableError, match="cannot be used"), AgentPlace("pi-2", run_dir).claimed():
        pass


def test_a_device_has_one_agent(run_dir):
    place = AgentPlace("pi-1", run_dir)
    assert not place.is_claimed()
    with place.claimed():
        assert place.is_claimed()
        with pytest.raises(UnavailableError, match="runs already"), AgentPlace("pi-1", run_dir).claimed():
            pass
        with AgentPlace("pi-2", run_dir).claimed():
            pass
        assert place.is_claimed()
    with place.claimed():
        pass


def test_what_a_killed_agent_left_is_cleared_away(run_dir, agent, sample):
    place = AgentPlace("pi-1", run_dir)
    code = (
        "import os, sys, socket, signal; from pathlib import Path; from meedge_ray.agent.places import AgentPlace\n"
        "place = AgentPlace('pi-1', Path(sys.argv[1]))\n"
        "with place.claimed():\n"
        "    s = socket.socket(socket.AF_UNIX); s.bind(str(place.socket)); s.listen()\n"
        "    place.write_record(http_port=1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", code, str(run_dir)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert place.record().http_port == 1
    assert not place.is_listened_to()
    with served(agent, run_dir) as server:
        assert place.record().pid == os.getpid()
        assert place.record().http_port is server.http_port is None
        with AgentClient("pi-1", run_dir=run_dir) as client:
            assert client.infer(sample).label is not None
    assert place.record() is None
    assert not place.socket.exists()


def test_the_only_agent_needs_no_name(run_dir, agent):
    with pytest.raises(NotFoundError, match="`meedge agent run`"):
        place_of(None, run_dir)
    (run_dir / "gone").mkdir()
    (run_dir / "gone" / "agent.sock").write_text("")
    with served(agent, run_dir, "pi-1"):
        with AgentClient(run_dir=run_dir) as client:
            assert client.device == "pi-1"
        with served(agent, run_dir, "pi-2"), pytest.raises(InvalidInputError, match="pi-1, pi-2"):
            place_of(None, run_dir)
        assert place_of("pi-9", run_dir).device == "pi-9"


def test_the_token_of_loopback_is_kept(run_dir):
    place = AgentPlace("pi-1", run_dir)
    with place.claimed():
        token = place.http_token()
    with place.claimed():
        assert place.http_token() == token
        place.token_file.unlink()
        assert place.http_token() != token
