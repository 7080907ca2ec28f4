"""An agent and its service at the two ends of a real, slow link; measured in benchmarks/edge_link.py."""

import threading
import time

import pytest
from edge_homes import SAMPLE, served_home
from kept_agent import is_placed, kept
from links import SERVICE, joined

FEW_BYTES = 30_000  # of requests, answers, and headers
SLOW_BPS, LIMIT_BPS = 5e6, 2e6


@pytest.fixture
def link():
    with joined(85e6) as link:
        yield link


@pytest.fixture
def home(link, monkeypatch):
    with served_home(monkeypatch, address=(SERVICE, 8000), wrap=link.service.command, ballast=400) as home:
        yield home


def moved_by(link, change):
    before = link.device.moved()
    status = change()
    moved = link.device.moved().since(before)
    return status, moved.received_bytes + moved.sent_bytes


def test_only_what_is_missing_moves(link, home):
    backbone = home.world.bundle.backbone_bytes
    with kept(home.settings(memory_bytes=backbone), link.device.entered()) as agent:
        agent.until(is_placed)
        grown, moved = moved_by(link, lambda: agent.client.set_memory(10**8))
        assert grown.running.branches == home.best
        assert home.branch_bytes <= moved <= 1.2 * home.branch_bytes + FEW_BYTES
        for memory_bytes in (backbone, 10**8):
            status, moved = moved_by(link, lambda: agent.client.set_memory(memory_bytes))  # noqa: B023
            assert moved <= FEW_BYTES
        assert status.running.branches == home.best


def test_a_placement_is_of_what_can_be_sent_in_time(link, home):
    link.shape(SLOW_BPS)
    some_ms = 1e3 * 0.5 * home.branch_bytes * 8 / SLOW_BPS
    settings = home.settings(memory_bytes=home.world.bundle.backbone_bytes, transfer_ms=some_ms)
    with kept(settings, link.device.entered()) as agent:
        agent.until(is_placed)
        status, moved = moved_by(link, lambda: agent.client.set_memory(10**8))
        assert status.running.source == "service"
        assert moved <= some_ms / 1e3 * SLOW_BPS / 8 + FEW_BYTES


def test_a_limited_device_takes_no_more_of_the_link(link, home):
    settings = home.settings(memory_bytes=home.world.bundle.backbone_bytes, rate_limit_bps=LIMIT_BPS)
    with kept(settings, link.device.entered()) as agent:
        agent.until(is_placed)
        start = time.monotonic()
        _, moved = moved_by(link, lambda: agent.client.set_memory(10**8))
        assert 8 * moved / (time.monotonic() - start) <= 1.2 * LIMIT_BPS


def test_a_device_answers_without_a_link_and_fetches_when_it_is_back(link, home):
    with kept(home.settings(memory_bytes=home.world.bundle.backbone_bytes), link.device.entered()) as agent:
        agent.until(is_placed)
        link.cut()
        changing = threading.Thread(target=agent.client.set_memory, args=(10**8,))
        changing.start()
        for _ in range(100):
            assert home.is_right(agent.client.infer(SAMPLE))
        link.mend()
        changing.join()
        status = agent.until(is_placed)
        assert status.running.branches == home.best
        assert agent.client.status().counts.failed == 0


def test_a_link_that_delays_and_loses_delivers_all_the_same(monkeypatch):
    with (
        joined(SLOW_BPS, delay_ms=100, loss=0.01) as link,
        served_home(monkeypatch, address=(SERVICE, 8000), wrap=link.service.command) as home,
        kept(home.settings(), link.device.entered()) as agent,
    ):
        assert agent.until(is_placed).running.branches == home.best
        assert home.is_right(agent.client.infer(SAMPLE))
