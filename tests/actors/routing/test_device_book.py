"""The scheduler's book of a device, given reports and answers by hand; on Ray in test_fleet_scheduler."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.actors.device import DeviceReport, RemoteDevice
from meedge_ray.actors.routing.device_book import DeviceBook, Recent
from meedge_ray.api.agent import DeviceSettings
from meedge_ray.domain.answer import Answer, Output
from meedge_ray.domain.device_status import DeviceStatus

SILENT_S = 2.0

STATUS = DeviceStatus(
    model="tiny",
    bundle_sha256="0" * 64,
    device_type="board-1t",
    memory_bytes=1000,
    resident_bytes=900,
    process_rss_bytes=10**8,
    branches=("a", "b"),
    planning="auto",
    planner="none",
    expectation=0.5,
    units_held=3,
    fetched_bytes=900,
    source="service",
    problem="",
)
SETTINGS = DeviceSettings(service_url="http://x", token="t", model="tiny", cache_dir="/c", memory_bytes=1000)


def report(status=STATUS):
    return DeviceReport(settings=SETTINGS, status=status, busy=False, problem=None)


def answer(elapsed_ms, first_ms=1.0, ending="completed"):
    outputs = (Output(exit_index=0, branch="a", at_ms=first_ms, label=1, confidence=0.9),)
    return Answer(
        label=1, confidences=(), exit_index=0, branch="a", ending=ending, elapsed_ms=elapsed_ms, outputs=outputs
    )


@pytest.fixture
def book():
    return DeviceBook(RemoteDevice("pi-1", None))


def hear(book, now_s, status=STATUS):
    book.hear(report(status), asked_s=now_s - 0.002, now_s=now_s, silent_s=SILENT_S)
    return book.candidate


def ask(book, now_s, given, way_s=0.003):
    sent = book.send(now_s)
    book.end(sent, given, now_s=now_s + way_s + given.elapsed_ms / 1000)
    return book.candidate


@given(times=st.lists(st.floats(0, 1e6), max_size=80))
def test_the_longest_is_what_most_of_the_last_times_do_not_exceed_but_for_hiccups(times):
    def least_that_covers(share):
        return min((each for each in kept if sum(other <= each for other in kept) >= share * len(kept)), default=0.0)

    recent = Recent()
    for number, time_ms in enumerate(times):
        recent.add(number / 10, time_ms)
    kept = times[-64:]
    assert recent.usual_ms == least_that_covers(0.5)
    assert recent.longest_ms == min(least_that_covers(0.95), 3 * recent.usual_ms)
    recent.forget(1e9)
    assert (recent.usual_ms, recent.longest_ms) == (0.0, 0.0)


def test_a_report_says_what_the_device_runs(book):
    assert book.candidate.model is None
    loading = hear(book, 1.0, status=None)
    assert (loading.model, loading.expectation) == ("tiny", 0.0)
    assert "loading" in loading.aside
    loaded = hear(book, 2.0)
    assert (loaded.aside, loaded.expectation, loaded.memory_bytes) == ("", 0.5, 1000)
    assert loaded.beyond_ms == pytest.approx(2.0)


def test_requests_are_counted_and_measured(book):
    hear(book, 1.0)
    sent = book.send(1.0)
    assert book.candidate.ahead == 1
    book.end(sent, answer(20.0, first_ms=4.0), now_s=1.025)
    known = book.candidate
    assert (known.ahead, known.usual_ms, known.first_ms, known.whole_ms) == (0, 20.0, 4.0, 20.0)
    assert known.beyond_ms == pytest.approx(5.0)  # the report took 2 ms
    load = book.load(2.0)
    assert (load.routed, load.answered, load.put_aside, load.heard_s_ago) == (1, 1, 0, 1.0)


def test_who_waits_for_others_does_not_make_the_way_look_longer(book):
    hear(book, 1.0)
    ask(book, 1.0, answer(20.0))
    first, second = book.send(2.0), book.send(2.0)
    book.end(first, answer(20.0), now_s=2.023)
    book.end(second, answer(20.0), now_s=2.043)
    assert book.candidate.beyond_ms == pytest.approx(3.0)


def test_a_cut_inference_is_taken_for_longer_than_it_was_let(book):
    hear(book, 1.0)
    assert ask(book, 1.0, answer(20.0, ending="deadline")).whole_ms == 40.0


def test_an_inference_without_any_result_in_time_is_given_more_the_next_time(book):
    hear(book, 1.0)
    empty = dataclasses.replace(answer(3.0, ending="deadline"), label=None, outputs=())
    assert ask(book, 1.0, empty).first_ms == 6.0


def test_a_device_is_put_aside_until_its_report_comes(book):
    hear(book, 1.0)
    ask(book, 1.0, answer(20.0))
    book.put_aside("is silent", now_s=2.0)
    book.put_aside("is silent", now_s=2.5)
    assert book.candidate.aside == "is silent"
    back = hear(book, 3.0)
    assert (back.aside, back.whole_ms, book.load(3.0).put_aside) == ("", 20.0, 1)


def test_a_device_that_was_away_or_runs_other_branches_is_measured_anew(book):
    hear(book, 1.0)
    ask(book, 1.0, answer(20.0))
    of_before = book.send(1.5)
    book.put_aside("is silent", now_s=2.0)
    assert hear(book, 9.0).whole_ms == 0.0
    book.end(of_before, answer(7500.0), now_s=9.1)
    assert book.candidate.whole_ms == 0.0
    assert ask(book, 9.2, answer(30.0)).whole_ms == 30.0
    assert hear(book, 10.0, dataclasses.replace(STATUS, branches=("a",))).whole_ms == 0.0


def test_what_is_long_ago_counts_no_more(book):
    hear(book, 1.0)
    ask(book, 1.0, answer(20.0))
    assert hear(book, 100.0).whole_ms == 0.0


def test_a_request_that_failed_is_under_way_no_more(book):
    hear(book, 1.0)
    book.end(book.send(1.0), None, now_s=2.0)
    assert (book.candidate.ahead, book.candidate.whole_ms, book.load(2.0).answered) == (0, 0.0, 0)
