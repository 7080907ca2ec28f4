"""Clients that say nothing, or nonsense, or too slowly; and agents that went away and came back."""

import gc
import json
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import psutil
import pytest
from agents import SmallAgent, connected, served

from meedge_ray.agent import listening
from meedge_ray.agent.client import AgentClient
from meedge_ray.agent.listening import MOST_CONNECTIONS, MOST_HEAD_BYTES
from meedge_ray.agent.places import AgentPlace
from meedge_ray.domain.errors import InvalidInputError, UnavailableError


@contextmanager
def many(run_dir, count):
    """So many connections that say nothing."""
    with ExitStack() as stack:
        yield [stack.enter_context(connected(run_dir)) for _ in range(count)]


def answer_to(connection, request):
    """What comes until the other end closes."""
    with suppress(BrokenPipeError):
        connection.sendall(request)
    said = b""
    with suppress(ConnectionResetError):  # it had not read everything
        while data := connection.recv(65536):
            said += data
    return said


def problem(said):
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head[9:12]), json.loads(body)


def test_a_thousand_who_say_nothing_take_nothing_from_those_who_ask(client, run_dir, sample):
    client.infer(sample)
    before = psutil.Process().num_fds()
    for _ in range(5):
        with many(run_dir, 200) as silent:
            assert client.infer(sample).label is not None
            # Those that went first are closed: what is open is this end of each, and as many as are allowed.
            assert sum(each.recv(1) == b"" for each in silent[: -MOST_CONNECTIONS + 1]) == 200 - MOST_CONNECTIONS + 1
            assert psutil.Process().num_fds() - before <= len(silent) + MOST_CONNECTIONS + 2
    assert client.status().device == "pi-1"


def test_the_oldest_silent_connection_goes_first_and_those_who_asked_stay(client, run_dir, sample):
    client.infer(sample)
    [kept] = client._idle
    with many(run_dir, MOST_CONNECTIONS) as silent:
        assert silent[0].recv(1) == b""  # closed
        client.infer(sample)
        assert list(client._idle) == [kept]
        assert answer_to(silent[-1], b"GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n").endswith(b"ok")


def test_where_all_are_busy_a_newcomer_is_told_so(agent, server, run_dir):
    with many(run_dir, MOST_CONNECTIONS) as busy:
        for each in busy:
            each.sendall(b"POST /v1/infer HTTP/1.1\r\nContent-Length: 10\r\n\r\na")
        connections = server.server_state.connections
        while sum(not each.is_silent for each in list(connections)) < MOST_CONNECTIONS:
            time.sleep(0.01)
        with connected(run_dir) as newcomer:
            code, said = problem(newcomer.recv(1000))
        assert code == 503
        assert said["kind"] == "UnavailableError"
        with pytest.raises(UnavailableError, match="busy"), AgentClient("pi-1", run_dir=run_dir) as client:
            client.status()


def test_a_request_that_comes_too_slowly_is_ended(monkeypatch, agent, run_dir):
    monkeypatch.setattr(listening, "REQUEST_SECONDS", 0.1)
    with served(agent, run_dir):
        for begun in (
            b"GET",
            b"GET /v1/status HTTP/1.1\r\nA: b\r\n",
            b"PUT /v1/memory HTTP/1.1\r\ncontent-length: 9\r\n\r\na",
        ):
            with connected(run_dir) as slow:
                code, said = problem(answer_to(slow, begun))
                assert (code, said["kind"]) == (408, "InvalidInputError")
        with connected(run_dir) as silent:
            assert silent.recv(1) == b""


def test_an_inference_may_take_longer_than_a_request(monkeypatch, agent, run_dir, sample):
    monkeypatch.setattr(listening, "REQUEST_SECONDS", 0.05)
    agent.hold.clear()
    with served(agent, run_dir), AgentClient("pi-1", run_dir=run_dir) as client, connected(run_dir) as silent:
        silent.settimeout(30)
        waiting = AgentClient("pi-1", run_dir=run_dir, timeout_s=0.5)
        with pytest.raises(UnavailableError, match="did not answer within"):
            waiting.infer(sample)
        assert silent.recv(1) == b""
        agent.hold.set()
        assert client.infer(sample).label is not None


@pytest.mark.parametrize(
    "request_",
    [b"\0" * 100, b"GET / HTTP/9.9\r\n\r\n", b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET \xff HTTP/1.1\r\n\r\n"],
)
def test_nonsense_is_refused_in_the_form_of_every_error(server, run_dir, request_):
    with connected(run_dir) as connection:
        code, said = problem(answer_to(connection, request_))
    assert code == 400
    assert said["do"]


@pytest.mark.parametrize(
    "endless", [b"GET /" + b"a" * 100, b"GET / HTTP/1.1\r\nA: " + b"a" * 100, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10]
)
def test_a_head_without_end_is_refused(server, run_dir, endless):
    with connected(run_dir) as connection:
        connection.sendall(endless)
        filler = b"A: b\r\n" if endless.endswith(b"\r\n") else b"a"
        code, said = problem(answer_to(connection, filler * (2 * MOST_HEAD_BYTES // len(filler))))
    assert (code, said["what"]) == (431, "the head of the request is too long")


def test_lengths_that_contradict_each_other_are_refused(server, run_dir):
    for lengths in (b"content-length: 5\r\ntransfer-encoding: chunked", b"content-length: 5\r\ncontent-length: 6"):
        with connected(run_dir) as connection:
            code, _ = problem(answer_to(connection, b"POST /v1/infer HTTP/1.1\r\n" + lengths + b"\r\n\r\n"))
            assert code == 400


def test_who_leaves_in_the_middle_of_a_sample_leaves_nothing_behind(server, client, run_dir, sample):
    for _ in range(50):
        with connected(run_dir) as connection:
            connection.sendall(b"POST /v1/infer HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n" + b"a" * 1000)
    assert client.infer(sample).label is not None
    for _ in range(5):  # the bytes that were promised are free again
        with pytest.raises(InvalidInputError, match="shape"):
            client.infer([0] * 100_000)


def test_requests_sent_at_once_are_answered_in_order(server, run_dir):
    asked = b"GET /healthz HTTP/1.1\r\n\r\n" * 3 + b"GET /v1/nothing HTTP/1.1\r\n\r\n"
    with connected(run_dir) as connection:
        said = answer_to(connection, asked)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"200", b"200", b"404"]


def test_a_client_finds_the_agent_again_that_was_started_anew(world, run_dir, sample):
    with AgentClient("pi-1", run_dir=run_dir) as client:
        with pytest.raises(UnavailableError, match="no agent answers"):
            client.status()
        for _ in range(2):
            with served(SmallAgent(world), run_dir):
                assert client.infer(sample).label is not None
                assert client.status().device == "pi-1"
        with pytest.raises(UnavailableError, match="`meedge agent status`"):
            client.infer(sample)


def test_an_agent_that_ends_in_the_middle_of_an_answer_is_told_of(run_dir, sample):
    place = AgentPlace("pi-1", run_dir)
    with place.claimed(), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.socket))
        listener.listen()
        with AgentClient("pi-1", run_dir=run_dir, timeout_s=30) as client:
            client._idle.append(client._connected())
            listener.accept()[0].close()

            def half() -> None:
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
                connection.close()

            thread = threading.Thread(target=half)
            thread.start()
            with pytest.raises(UnavailableError, match="ended before it answered"):
                client.infer(sample)
            thread.join()


def test_a_forked_process_gets_its_own_answers(server, run_dir):
    code = (
        "import os, sys; from pathlib import Path; import numpy as np\n"
        "from meedge_ray.agent.client import AgentClient\n"
        "client = AgentClient('pi-1', run_dir=Path(sys.argv[1]))\n"
        "samples = np.random.default_rng(3).integers(0, 256, (2, 2, 4, 4), dtype=np.uint8)\n"
        "expected = [client.infer(each).confidences for each in samples]\n"
        "assert expected[0] != expected[1]\n"
        "child = os.fork()\n"
        "mine = 0 if child else 1\n"
        "right = all(client.infer(samples[mine]).confidences == expected[mine] for _ in range(100))\n"
        "if not child: os._exit(not right)\n"
        "sys.exit(not right or os.waitpid(child, 0)[1] != 0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(run_dir)], check=True, timeout=120)


@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.001, 0.002, 0.004])
def test_an_agent_ends_cleanly_under_a_flood_of_connections(agent, run_dir, background, after_s):
    over = threading.Event()

    def flood():
        while not over.is_set():
            with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
                connection.connect(str(AgentPlace("pi-1", run_dir).socket))

    flooding = background(flood)
    with served(agent, run_dir):
        time.sleep(after_s)
    over.set()
    flooding.result()
    gc.collect()  # a socket left open would be told as a warning, an error here


def test_a_taken_port_is_told(agent, run_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(UnavailableError, match=f"127.0.0.1:{port}: cannot listen"),
            served(agent, run_dir, http_port=port),
        ):
            pass
