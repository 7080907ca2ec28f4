"""The page for Prometheus, read by Prometheus' own parser."""

import math
import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from meedge_ray.agent.metrics import Histogram, prometheus
from meedge_ray.agent.status import Counts
from meedge_ray.domain.device_status import DeviceStatus

RUNNING = DeviceStatus(
    model="tiny",
    bundle_sha256="0" * 64,
    device_type="board",
    memory_bytes=5000,
    resident_bytes=4000,
    process_rss_bytes=1,
    branches=("a", "b", "c"),
    planning="auto",
    planner="static",
    expectation=0.75,
    units_held=3,
    fetched_bytes=0,
    source="service",
    problem="",
)


def families(page):
    return {family.name: family for family in text_string_to_metric_families(page)}


def value(page, name):
    [sample] = families(page)[name].samples
    return sample.value


def test_prometheus_reads_every_figure(agent):
    counts = Counts(inferences=6, completed=3, deadline=2, preempted=1, failed=4, empty=1, drops=7, fetched_bytes=8)
    memory = replace(agent.status().memory, limit_bytes=100, used_bytes=50, pressure=0.25)
    status = replace(agent.status(), counts=counts, memory=memory, running=RUNNING, latency_ms=5.0)
    page = prometheus(status, agent.latencies)
    by_ending = {sample.labels["ending"]: sample.value for sample in families(page)["meedge_inferences"].samples}
    assert by_ending == {"completed": 3, "deadline": 2, "preempted": 1, "failed": 4}
    for name, expected in {
        "meedge_inferences_empty": 1,
        "meedge_memory_limit_bytes": 100,
        "meedge_memory_used_bytes": 50,
        "meedge_memory_pressure_ratio": 0.25,
        "meedge_memory_allowed_bytes": 10_000,
        "meedge_memory_rss_bytes": memory.rss_bytes,
        "meedge_memory_drops": 7,
        "meedge_memory_budget_bytes": 5000,
        "meedge_resident_bytes": 4000,
        "meedge_branches": 3,
        "meedge_expectation": 0.75,
        "meedge_fetched_bytes": 8,
        "meedge_deadline_seconds": 0.005,
        "meedge_ready": 1,
        "meedge_problem": 0,
    }.items():
        assert value(page, name) == expected, name
    assert value(page, "meedge_uptime_seconds") >= 0
    assert set(re.findall(r"^(\w+)", page, re.M)) >= {"meedge_inferences_total", "meedge_fetched_bytes_total"}


def test_every_figure_has_help_and_a_type(agent):
    page = prometheus(replace(agent.status(), running=RUNNING), agent.latencies)
    told = {kind: re.findall(rf"^# {kind} (\w+) \S", page, re.M) for kind in ("HELP", "TYPE")}
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"^(meedge_\w+)", page, re.M)}
    assert told["HELP"] == told["TYPE"]
    assert set(told["HELP"]) == named
    assert len(told["HELP"]) == len(named)
    assert page.endswith("\n")


def test_what_is_not_known_is_left_out(agent):
    page = prometheus(agent.status(), agent.latencies)
    assert value(page, "meedge_ready") == 0
    assert not families(page).keys() & {"meedge_memory_limit_bytes", "meedge_expectation", "meedge_deadline_seconds"}


def test_a_clock_that_was_set_back_makes_no_negative_uptime(agent):
    status = replace(agent.status(), started_at=4e9)
    assert value(prometheus(status, agent.latencies), "meedge_uptime_seconds") == 0


@given(st.lists(st.floats(0, 10)))
def test_the_histogram_counts_what_took_at_most_each_bound(seconds):
    histogram = Histogram((0.5, 1.0, 5.0))
    for each in seconds:
        histogram.observe(each)
    read, sum_s = histogram.read()
    expected = [sum(each <= bound for each in seconds) for bound in (0.5, 1.0, 5.0, math.inf)]
    assert read == list(zip(["0.5", "1.0", "5.0", "+Inf"], expected, strict=True))
    assert math.isclose(sum_s, sum(seconds), abs_tol=1e-9)


def test_inferences_are_on_the_page(client, sample):
    for _ in range(3):
        client.infer(sample)
    samples = families(client.metrics())["meedge_inference_seconds"].samples
    assert {each.name: each.value for each in samples}["meedge_inference_seconds_count"] == 3
    assert [each.value for each in samples if each.labels.get("le") == "+Inf"] == [3]
