"""What an agent answers, over its socket and over loopback."""

import json
import threading
from dataclasses import replace

import httpx
import numpy as np
import pytest

from meedge_ray.agent.app import LEAST_SAMPLE_BYTES
from meedge_ray.agent.client import AgentClient
from meedge_ray.agent.npy import MOST_HEADER_BYTES, encoded
from meedge_ray.agent.places import AgentPlace
from meedge_ray.api.agent import AgentProblem
from meedge_ray.domain.errors import BudgetError, InvalidInputError, MeedgeError, UnavailableError


@pytest.fixture
def http(server, run_dir):
    """The Unix socket by an ordinary HTTP client."""
    transport = httpx.HTTPTransport(uds=str(AgentPlace("pi-1", run_dir).socket))
    with httpx.Client(transport=transport, base_url="http://agent", timeout=30) as http:
        yield http


@pytest.fixture
def tcp(server, run_dir):
    """Loopback with the right token."""
    token = AgentPlace("pi-1", run_dir).token_file.read_text().strip()
    url = f"http://127.0.0.1:{server.http_port}"
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30, trust_env=False) as tcp:
        yield tcp


def problem(response):
    return AgentProblem.model_validate_json(response.content)


def timeless(answer):
    return replace(answer, elapsed_ms=0, outputs=tuple(replace(output, at_ms=0) for output in answer.outputs))


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64, np.int64])
def test_the_answer_is_the_engines(client, agent, sample, kind):
    assert timeless(client.infer(sample.astype(kind))) == timeless(agent.engine.infer(sample.astype(kind)))
    assert timeless(client.infer(np.asfortranarray(sample))) == timeless(agent.engine.infer(sample))


def test_an_inference_whose_deadline_has_come_ends_without_a_result(client, sample):
    answer = client.infer(sample, deadline_ms=0)
    assert (answer.label, answer.ending, answer.outputs) == (None, "deadline", ())
    assert client.infer(sample, deadline_ms=60_000).ending == "completed"


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 4)), np.full((2, 4, 4), np.nan), np.zeros((5, 2, 4, 4)), np.array(1.0), np.zeros((0,))]
)
def test_a_sample_that_does_not_fit_is_refused_and_the_agent_goes_on(client, sample, bad):
    with pytest.raises(InvalidInputError, match="sample") as refused:
        client.infer(bad)
    assert refused.value.do
    assert client.infer(sample).label is not None


@pytest.mark.parametrize("bad", ["text", [[1, 2], [3]], np.zeros((2, 4, 4), complex), None, object()])
def test_what_is_no_array_of_numbers_is_not_even_sent(client, bad):
    with pytest.raises(InvalidInputError, match="sample"):
        client.infer(bad)


def test_a_deadline_that_is_none_is_refused(client, http, sample):
    for deadline_ms in (-1, float("nan")):
        with pytest.raises(InvalidInputError, match="deadline_ms"):
            client.infer(sample, deadline_ms=deadline_ms)
    for query in ("deadline_ms=soon", "deadline_ms=", "deadline_ms=1&deadline_ms=2", "deadline=3", "=", "&", "%"):
        refused = http.post(f"/v1/infer?{query}", content=b"".join(encoded(sample)))
        assert refused.status_code == 422, query
        assert problem(refused).kind == "InvalidInputError"


def test_the_status_comes_as_it_is(client, agent):
    said, own = client.status(), agent.status()
    assert replace(said, started_at=0, memory=own.memory) == replace(own, started_at=0)


def test_what_it_is_told_reaches_the_agent(client, agent):
    assert client.set_memory(5000).memory.allowed_bytes == 5000
    [foreseen] = client.set_memory(4000, in_ms=250).foreseen
    assert (foreseen.memory_bytes, foreseen.in_s) == (4000, 0.25)
    assert client.set_latency(2.5).latency_ms == 2.5
    assert client.set_latency(None).latency_ms is None
    client.renew_token("another")
    assert agent.tokens == ["another"]


def test_an_error_crosses_the_socket_as_what_it_is(client, agent, sample):
    with pytest.raises(BudgetError) as refused:
        client.set_memory(10)
    assert (refused.value.what, refused.value.where) == ("is below the backbone", "memory_bytes")
    agent.failing = UnavailableError("the model is being loaded", where="tiny", do="Try again")
    with pytest.raises(UnavailableError, match="being loaded"):
        client.infer(sample)


def test_wrong_values_are_refused_before_they_are_sent_and_by_the_agent_too(client, http):
    for bad in (0, -1, 1.5, "a"):
        with pytest.raises(InvalidInputError, match="memory_bytes"):
            client.set_memory(bad)
    with pytest.raises(InvalidInputError, match="latency_ms"):
        client.set_latency(0)
    for path, body in {
        "/v1/memory": ["", "{}", "[]", "null", '{"memory_bytes": "5"}', '{"memory_bytes": 5, "x": 1}', "\xff" * 9],
        "/v1/latency": ["{}", '{"latency_ms": -1}', '{"latency_ms": NaN}', '{"latency_ms": true}', "[" * 10_000],
        "/v1/token": ["{}", '{"token": 1}'],
    }.items():
        for each in body:
            refused = http.put(path, content=each)
            assert refused.status_code == 422, each
            assert problem(refused).do.startswith("Send one like")


def test_a_bug_is_told_without_a_traceback(http, agent, sample, caplog):
    agent.failing = RuntimeError("secret detail")
    failed = http.post("/v1/infer", content=b"".join(encoded(sample)))
    assert failed.status_code == 500
    assert problem(failed).what == "the agent failed"
    assert "secret" not in failed.text
    assert "secret detail" in caplog.text  # whoever runs it is told
    agent.failing = None
    assert http.post("/v1/infer", content=b"".join(encoded(sample))).status_code == 200


def test_what_is_not_there_or_cannot_be_done_is_said(http):
    for method, path, code in (
        ("GET", "/", 404),
        ("GET", "/v1/infer/", 404),
        ("GET", "/v1/infer", 405),
        ("DELETE", "/v1/status", 405),
        ("POST", "/v1/memory", 405),
    ):
        refused = http.request(method, path)
        assert refused.status_code == code
        assert problem(refused).where == path


def test_a_body_of_unknown_length_or_too_long_is_not_read(http, client):
    refused = http.post("/v1/infer", content=iter([b"a", b"b"]))
    assert (refused.status_code, problem(refused).what) == (411, "the length of the body is missing")
    with pytest.raises(InvalidInputError, match=f"{LEAST_SAMPLE_BYTES + MOST_HEADER_BYTES} are read at most"):
        client.infer(np.zeros(2**24, np.uint8))
    with pytest.raises(InvalidInputError, match="65536 are read at most"):
        client.renew_token("x" * 2**16)
    refused = http.post("/v1/infer", content=b"a" * (LEAST_SAMPLE_BYTES + MOST_HEADER_BYTES))
    assert problem(refused).what == "the body is no .npy file"


def test_only_so_many_large_bodies_are_in_memory_at_once(client, agent, sample):
    large = np.zeros(LEAST_SAMPLE_BYTES, np.uint8)
    agent.hold.clear()
    answers = []

    def ask():
        try:
            client.infer(large)
        except MeedgeError as error:
            answers.append(type(error))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    while answers.count(UnavailableError) < 4:
        threads[-1].join(0.01)
    agent.hold.set()
    for thread in threads:
        thread.join()
    assert sorted(answers, key=str) == [InvalidInputError] * 4 + [UnavailableError] * 4
    assert client.infer(sample).label is not None


def test_nobody_waits_for_inferences_or_for_the_service(client, agent, sample):
    agent.hold.clear()
    agent.service.clear()
    answers, budgets = [], []
    threads = [threading.Thread(target=lambda: answers.append(client.infer(sample))) for _ in range(5)]
    threads.append(threading.Thread(target=lambda: budgets.append(client.set_memory(2000))))
    for thread in threads:
        thread.start()
    agent.entered.wait()
    assert client.status().memory.allowed_bytes == 10_000
    assert "meedge_inferences_total" in client.metrics()
    assert client.preempt() >= 1
    assert (answers, budgets) == ([], [])
    agent.service.set()
    threads[-1].join()
    assert budgets[0].memory.allowed_bytes == 2000
    agent.hold.set()
    for thread in threads:
        thread.join()
    assert "preempted" in {answer.ending for answer in answers}


def test_threads_share_a_client_and_get_their_own_answers(client, agent):
    samples = np.random.default_rng(2).integers(0, 256, (8, 2, 4, 4), dtype=np.uint8)
    wrong = []

    def ask(sample):
        expected = timeless(agent.engine.infer(sample))
        wrong.extend(each for each in range(20) if timeless(client.infer(sample)) != expected)

    threads = [threading.Thread(target=ask, args=(sample,)) for sample in samples]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_loopback_answers_whoever_has_the_token(tcp, agent, sample):
    answer = tcp.post("/v1/infer?deadline_ms=60000", content=b"".join(encoded(sample)))
    assert answer.json()["label"] == agent.engine.infer(sample).label
    assert tcp.get("/v1/status").json()["device"] == "pi-1"
    assert tcp.put("/v1/memory", json={"memory_bytes": 3000}).json()["memory"]["allowed_bytes"] == 3000
    assert tcp.post("/v1/preempt").json() == {"ended": 0}


@pytest.mark.parametrize("token", [None, "", "Bearer", "Bearer wrong", "Basic {}", "Bearer {}x", "{}"])
def test_without_the_token_loopback_tells_nothing(server, run_dir, token):
    right = AgentPlace("pi-1", run_dir).token_file.read_text().strip()
    headers = {} if token is None else {"Authorization": token.format(right)}
    with httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}", trust_env=False, timeout=30) as stranger:
        for method, path in (("GET", "/v1/status"), ("POST", "/v1/infer"), ("GET", "/metrics"), ("GET", "/nothing")):
            refused = stranger.request(method, path, headers=headers)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert "http-token" in problem(refused).do
        assert stranger.get("/healthz", headers=headers).text == "ok"


def test_only_the_unix_socket_may_end_the_agent_or_change_its_token(tcp, agent, client):
    assert tcp.post("/v1/stop").status_code == 403
    assert tcp.put("/v1/token", json={"token": "x"}).status_code == 403
    assert agent.tokens == []
    assert client.status().device == "pi-1"


def test_stopping_lets_answers_under_way_come(client, agent, server, run_dir, sample):
    agent.hold.clear()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(client.infer(sample)))
    thread.start()
    agent.entered.wait()
    with AgentClient("pi-1", run_dir=run_dir) as other:
        other.stop()
    agent.hold.set()
    thread.join()
    assert answers[0].label is not None


def test_health_needs_no_agent_to_work(http):
    assert http.get("/healthz").text == "ok"
    page = http.get("/metrics")
    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert json.loads(http.get("/v1/status").content)["device"] == "pi-1"
