import dataclasses
import json
import os
import socket
import stat
from pathlib import Path

import pytest

from meedge_ray.domain.errors import InvalidInputError, UnavailableError
from meedge_ray.operator.keeping.home import BusyError, Home, check_free, home_path, open_home, private_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_home_is_for_its_user_alone(tmp_path: Path) -> None:
    home = open_home(tmp_path / "deep" / "home")
    assert home.ray_token == home.ray_token
    with home.locked():
        pass
    for path in (home.path, *home.path.rglob("*")):
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path


def test_ports_are_chosen_once_and_differ(tmp_path: Path) -> None:
    ports = open_home(tmp_path / "home").ports()
    assert open_home(tmp_path / "home").ports() == ports
    assert len(set(dataclasses.astuple(ports))) == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"version": 99, "ports": {}}', "a newer version of meedge-ray (99"),
        ('{"version": 0}', "an older version of meedge-ray (0"),
        ("{", "cannot be read"),
        ('{"ports": {}}', "cannot be read"),
        ('{"version": 1, "ports": {"ray": 1}}', "must name five ports"),
    ],
)
def test_a_home_that_is_not_understood_is_left_alone(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "home.json").write_text(content)
    with pytest.raises(InvalidInputError) as raised:
        open_home(tmp_path)
    assert said in str(raised.value)
    assert str(tmp_path) in raised.value.where
    assert (tmp_path / "home.json").read_text() == content


def test_a_folder_of_other_things_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InvalidInputError, match="other things in it"):
        open_home(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_home_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="cannot be written"):
        open_home(tmp_path / "file" / "home")


def test_one_keeps_a_home_at_a_time(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    assert not home.is_locked()
    with home.locked():
        assert Home(home.path).is_locked()
        with pytest.raises(BusyError), Home(home.path).locked():
            pass
    assert not home.is_locked()
    assert not Home(tmp_path / "nowhere").is_locked()


def test_a_port_that_is_taken_names_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError) as raised:
            check_free(port, "Ray")
    assert f"port {port} is taken by process {os.getpid()}" in str(raised.value)
    check_free(port, "Ray")


def test_a_private_folder_is_not_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(InvalidInputError, match="no folder of yours"):
        private_folder(tmp_path / "link")
    (tmp_path / "real").chmod(0o777)
    private_folder(tmp_path / "real")
    assert mode(tmp_path / "real") == 0o700


def test_rays_folder_is_short_and_of_one_home(tmp_path: Path) -> None:
    long = Home(tmp_path / ("deep/" * 40))
    assert len(str(long.temp)) < 40  # what follows it in a socket's path takes 65 of 107 bytes
    assert long.temp != Home(tmp_path).temp


def test_the_home_is_named_by_option_then_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEEDGE_HOME", str(tmp_path))
    assert home_path() == tmp_path
    assert home_path(Path("here")) == Path("here")
    monkeypatch.delenv("MEEDGE_HOME")
    assert home_path() == Path("~/.meedge").expanduser()


def test_the_homes_file_is_readable_by_people(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    assert json.loads(home.config_file.read_text())["version"] == 1
