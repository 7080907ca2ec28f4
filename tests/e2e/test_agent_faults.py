"""What befalls a device's agent, each a real fault of real processes.

Power cuts are in tests/runtime/test_power_cuts.py, clocks that are set in tests/runtime/test_memory_budget.py.
"""

import contextlib
import subprocess
import sys
import threading
import time

import psutil
import pytest
from edge_homes import SAMPLE, Asking, served_home
from kept_agent import KeptAgent, is_placed, kept

from meedge_ray.domain.errors import UnavailableError

YEAR_S = 365 * 24 * 3600


@pytest.fixture
def home(monkeypatch):
    with served_home(monkeypatch) as home:
        yield home


@pytest.fixture
def agent(home):
    with kept(home.settings()) as agent:
        agent.until(is_placed)
        yield agent


def test_a_killed_agent_is_back_with_its_cache_though_nobody_else_is(home, agent):
    home.service.kill()
    pid = agent.kill()
    status = agent.until(lambda status: status.pid != pid and status.running is not None and not status.busy)
    assert status.running.branches == home.best
    assert status.counts.fetched_bytes == 0
    assert home.is_right(agent.client.infer(SAMPLE))


def test_a_killed_agent_answers_before_a_service_that_says_nothing(home, agent):
    # Its connections are taken, and nothing ever comes.
    service = psutil.Process(home.service.pid)
    service.suspend()
    try:
        pid = agent.kill()
        status = agent.until(
            lambda status: status.pid != pid and status.running is not None and status.running.branches == home.best
        )
        assert status.busy
        assert home.is_right(agent.client.infer(SAMPLE))
    finally:
        service.resume()
    agent.until(is_placed)


def test_requests_go_on_while_the_service_is_away_and_when_it_is_back(home, agent):
    with Asking(home, agent) as asking:
        home.service.kill()
        small = agent.client.set_memory(home.world.bundle.backbone_bytes)
        assert (small.running.branches, small.running.source) == ((), "local")
        assert agent.client.set_memory(10**8).running.branches == home.best
        asking.a_few_more()
        home.service.start()
        agent.until(is_placed)
        asking.a_few_more()
    assert asking.failed == []


def test_a_stopped_agent_answers_when_it_goes_on(home, agent):
    process = psutil.Process(agent.pid)
    with Asking(home, agent) as asking:
        for _ in range(5):
            asking.a_few_more(3)
            process.suspend()
            time.sleep(0.1)
            process.resume()
        asking.a_few_more()
    assert asking.failed == []
    assert agent.pid == process.pid


def test_an_inference_that_slept_past_its_deadline_says_so(home, agent):
    process = psutil.Process(agent.pid)
    process.suspend()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(agent.client.infer(SAMPLE, deadline_ms=1e3)))
    asking.start()
    time.sleep(0.3)
    process.resume()
    asking.join()
    assert [answer.label is not None for answer in answers] == [True]


def test_a_full_disk_takes_nothing_from_an_agent(home):
    with small_disk(home.cache), kept(home.settings(memory_bytes=home.world.bundle.backbone_bytes)) as agent:
        agent.until(is_placed)
        fill(home.cache)
        with Asking(home, agent) as asking:
            status = agent.client.set_memory(10**8)
            assert status.running.branches == home.best
            asking.a_few_more()
        assert asking.failed == []
        (home.cache / "filler").unlink()
        agent.client.set_memory(home.world.bundle.backbone_bytes)
        assert agent.client.set_memory(10**8).running.branches == home.best
        assert all(file.exists() for file in home.kept_files())


def test_a_unit_damaged_on_the_disk_is_fetched_again(home, agent):
    agent.client.set_memory(home.world.bundle.backbone_bytes)
    damaged = home.kept_files()[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with Asking(home, agent) as asking:
        before = agent.client.status().counts.fetched_bytes
        status = agent.client.set_memory(10**8)
        assert status.running.branches == home.best
        assert status.counts.fetched_bytes == before + len(whole)
        asking.a_few_more()
    assert asking.failed == []
    assert damaged.read_bytes() == whole


def test_without_a_service_the_best_without_the_damaged_unit_goes_on(home, agent):
    agent.client.set_memory(home.world.bundle.backbone_bytes)
    home.service.kill()
    damaged = home.kept_files()[0]
    damaged.write_bytes(b"")
    with Asking(home, agent) as asking:
        status = agent.client.set_memory(10**8)
        assert set(status.running.branches) == set(home.best[1:])
        asking.a_few_more()
    assert asking.failed == []


def test_a_clock_that_began_a_year_ago_is_as_good_as_any(home):
    # A time namespace has a monotonic clock of its own; the wall clock is the whole machine's, and stays as it is.
    ago = ["unshare", "--time", f"--monotonic={YEAR_S}", f"--boottime={YEAR_S}"]
    clock = "import time; print(time.monotonic())"
    said = subprocess.run([*ago, sys.executable, "-c", clock], capture_output=True, text=True, check=False)
    if said.returncode != 0 or float(said.stdout) < YEAR_S:
        pytest.skip(f"no time namespace can be made here: {said.stderr.strip()}")
    settings = home.folder / "settings.json"
    settings.write_text(home.settings(latency_ms=1e3).model_dump_json())
    process = subprocess.Popen([*ago, sys.executable, "-m", "meedge_ray.agent", str(settings)])
    agent = KeptAgent(home.settings())
    try:
        agent.until(is_placed)
        assert home.is_right(agent.client.infer(SAMPLE))
        agent.client.set_memory(home.world.bundle.backbone_bytes, in_ms=50)
        agent.until(lambda status: status.running.branches == ())
        assert agent.client.set_memory(10**8).running.branches == home.best
    finally:
        with contextlib.suppress(UnavailableError):
            agent.client.stop()
        agent.client.close()
        process.wait(20)


@contextlib.contextmanager
def small_disk(folder):
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    with contextlib.suppress(OSError), (folder / "filler").open("ab", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
