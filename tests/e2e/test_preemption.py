"""The processor taken from a running agent, by real signals and by a real-time process; figures are in benchmarks/."""

import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from random import Random
from signal import SIGCONT, SIGSTOP, SIGUSR1

import pytest
from edge_homes import SAMPLE
from kept_agent import is_placed, kept
from services import serving
from worlds import make_world

from meedge_ray.api.agent import AgentSettings

BLOCKS = 50  # an inference of some ms: there is time to take the processor in

BURN = """
import os, sys, time
try:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
except PermissionError:
    sys.exit("forbidden")
print("burns", flush=True)
for _ in range(2000):
    end = time.monotonic() + 0.002
    while time.monotonic() < end:
        pass
    time.sleep(0.004)
"""


@pytest.fixture(scope="module")
def long_world():
    return make_world(blocks=BLOCKS)


@pytest.fixture(scope="module")
def agent(long_world):
    with (
        tempfile.TemporaryDirectory(prefix="meedge-") as name,
        serving(long_world) as service,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("MEEDGE_RUN_DIR", f"{name}/run")
        said = {"device": "pi-1", "service_url": service.url, "token": service.token, "model": "tiny"}
        settings = AgentSettings.model_validate({**said, "cache_dir": f"{name}/cache", "memory_bytes": 10**9})
        with kept(settings) as agent:
            agent.until(is_placed)
            yield agent


@contextmanager
def at_random_moments(act, least_s, most_s):
    """Do it again and again in a thread while the context lasts."""
    random, over = Random(0), threading.Event()

    def repeat():
        while not over.wait(random.uniform(least_s, most_s)):
            act()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def burning():
    """Run a real-time process that takes a third of a core."""
    with subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            if process.stdout.readline() != b"burns\n":
                pytest.skip("real-time priority is forbidden here")
            yield
        finally:
            process.kill()


def best_said(world, answer):
    """What the most accurate of the exits that came has to say; None of none."""
    accuracy = {branch.name: branch.accuracy for branch in world.bundle.branches} | {None: world.bundle.final_accuracy}
    best = max(answer.outputs, key=lambda output: accuracy[output.branch], default=None)
    return None if best is None else best.label


def test_killed_at_any_moment_an_inference_answers_with_the_best_it_has(agent, long_world):
    with at_random_moments(lambda: agent.kill(SIGUSR1), 0.0005, 0.01):
        before = agent.client.status().counts
        answers = [agent.client.infer(SAMPLE) for _ in range(200)]
    endings = Counter(answer.ending for answer in answers)
    assert set(endings) <= {"preempted", "completed"}
    assert endings["preempted"] > 0
    assert all(answer.label == best_said(long_world, answer) for answer in answers)
    assert any(answer.outputs for answer in answers if answer.ending == "preempted")
    counts = agent.client.status().counts
    assert (counts.preempted - before.preempted, counts.failed) == (endings["preempted"], 0)
    assert agent.client.infer(SAMPLE).ending == "completed"


def test_a_request_to_take_the_processor_ends_what_runs_then(agent):
    ended = []
    with at_random_moments(lambda: ended.append(agent.client.preempt()), 0.0005, 0.01):
        preempted = sum(agent.client.infer(SAMPLE).ending == "preempted" for _ in range(200))
    # What was told to end may have ended by itself before it looked.
    assert 0 < preempted <= sum(ended)


def test_stopped_beyond_its_deadline_an_inference_has_what_came_before(agent, long_world):
    deadline_ms = 200.0

    def stop():
        agent.kill(SIGSTOP)
        time.sleep(1.5 * deadline_ms / 1e3)
        agent.kill(SIGCONT)

    with at_random_moments(stop, 0.01, 0.05):
        answers = [agent.client.infer(SAMPLE, deadline_ms=deadline_ms) for _ in range(100)]
    assert {answer.ending for answer in answers} <= {"deadline", "completed"}
    assert all(output.at_ms <= deadline_ms for answer in answers for output in answer.outputs)
    assert all(answer.label == best_said(long_world, answer) for answer in answers)


def test_beside_a_real_time_process_no_result_that_counts_is_late(agent, long_world):
    usual_ms = agent.client.infer(SAMPLE).elapsed_ms
    with burning():
        answers = [agent.client.infer(SAMPLE, deadline_ms=usual_ms) for _ in range(100)]
    assert all(output.at_ms < usual_ms for answer in answers for output in answer.outputs)
    assert all(answer.label == best_said(long_world, answer) for answer in answers)
    assert agent.client.infer(SAMPLE).ending == "completed"
