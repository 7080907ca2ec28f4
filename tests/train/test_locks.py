import errno
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from meedge_ray.domain.errors import UnavailableError
from meedge_ray.train.locks import locked, locked_if_free

HOLD = """
import sys
from pathlib import Path
from meedge_ray.train.locks import locked

with locked(Path(sys.argv[1]), on_wait=lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


def never() -> None:
    raise AssertionError("it was not free")


def is_free(path: Path) -> bool:
    with locked_if_free(path) as free:
        return free


def test_a_lock_is_held_alone_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "stage.lock"
    with locked(path, on_wait=never):
        assert not is_free(path)
    assert is_free(path)


def test_those_who_share_a_lock_do_not_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "stage.lock"
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(locked(path, shared=True, on_wait=never))
        assert not is_free(path)
    assert is_free(path)


def test_who_comes_second_says_so_and_waits(tmp_path: Path) -> None:
    path, waits, done = tmp_path / "stage.lock", threading.Event(), threading.Event()

    def second() -> None:
        with locked(path, on_wait=waits.set):
            done.set()

    with locked(path, shared=True, on_wait=never):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(60)
        assert not done.is_set()
    thread.join(60)
    assert done.is_set()


def test_a_killed_process_gives_its_lock_back(tmp_path: Path) -> None:
    path = tmp_path / "stage.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert not is_free(path)
        holder.kill()
    assert is_free(path)


def test_a_folder_that_cannot_be_written_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UnavailableError, match=r"file/stage\.lock: cannot be written"),
        locked(tmp_path / "file" / "stage.lock", on_wait=never),
    ):
        pass


def test_where_the_file_system_has_no_locks_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refused)
    with locked(tmp_path / "stage.lock", on_wait=never):
        assert is_free(tmp_path / "stage.lock")
