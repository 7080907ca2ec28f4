"""A few seconds of what benchmarks/edge_soak.py does for ten minutes: each thing that can happen, once."""

import time

import psutil
from edge_homes import SAMPLE, Asking, served_home
from kept_agent import is_placed, kept
from links import SERVICE, joined
from soaking import FAST_BPS, Bundles, Clients, Soak, seen

OUTCOMES = {"completed", "deadline", "preempted", "empty"}
MOST_THREADS_MORE = 8  # pools that had not been needed before


def test_whatever_happens_every_request_is_answered_by_the_same_process(monkeypatch):
    with (
        joined(FAST_BPS) as link,
        served_home(monkeypatch, address=(SERVICE, 8000), wrap=link.service.command) as home,
        kept(home.settings(), link.device.entered()) as agent,
    ):
        agent.until(is_placed)
        process = psutil.Process(agent.pid)
        before = seen(process)
        bundles = Bundles(home.folder / "bundle", home.folder / "bundle")
        soak = Soak(agent, home.service, link, bundles, seed=1, longest_s=0.5)
        with Clients(agent, SAMPLE, 2) as clients:
            for action in soak.actions.values():
                action()
            soak.close()
        assert clients.broken == soak.broken == []
        assert set(clients.counts) <= OUTCOMES, clients.counts
        assert agent.pid == process.pid
        status = agent.client.set_memory(10**8)
        agent.until(lambda status: is_placed(status) and status.running.branches == home.best)
        assert status.memory.allowed_bytes == 10**8
        with Asking(home, agent) as asking:
            asking.a_few_more()
        assert asking.failed == []
        agent.client.close()
        time.sleep(0.2)
        assert seen(process)["threads"] <= before["threads"] + MOST_THREADS_MORE
        assert seen(process)["files"] <= before["files"] + MOST_THREADS_MORE
