"""`meedge agent`: what it says to people and programs, against an agent that is served for real."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from agents import SmallAgent, served
from worlds import SHAPE

from meedge_ray.agent import launching
from meedge_ray.api.agent import AgentSettings

Run = Callable[..., tuple[int, str, str]]
NEEDED = ("--service-url", "http://host:8000", "--model", "tiny", "--memory", "2Mi")


@pytest.fixture
def run_dir(monkeypatch):
    path = Path(tempfile.mkdtemp(prefix="meedge-"))
    monkeypatch.setenv("MEEDGE_RUN_DIR", str(path))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def agent(world, run_dir):
    agent = SmallAgent(world)
    with served(agent, run_dir):
        yield agent


@pytest.fixture
def sample(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(1).integers(0, 256, SHAPE, dtype=np.uint8))
    return path


@pytest.fixture
def started(monkeypatch):
    """The settings that an agent would be run with."""
    settings: list[AgentSettings] = []
    monkeypatch.setattr(launching, "become", lambda said, run_dir: settings.append(said))
    monkeypatch.delenv("MEEDGE_TOKEN", raising=False)
    return settings


def test_the_only_agent_answers_without_being_named(meedge: Run, agent, sample):
    code, out, _ = meedge("agent", "infer", "--input", sample, "--deadline-ms", 60_000, "-o", "json")
    said = json.loads(out)
    assert code == 0
    assert said["label"] == agent.engine.infer(np.load(sample)).label
    assert said["ending"] == "completed"
    code, out, _ = meedge("agent", "infer", "--device", "pi-1", "--input", sample)
    assert out.startswith(f"label {said['label']} from ")
    code, out, _ = meedge("agent", "infer", "--input", sample, "--deadline-ms", 0)
    assert out.startswith("nothing was at hand yet (deadline after")


def test_budgets_are_told_in_bytes_or_ahead(meedge: Run, agent):
    code, out, _ = meedge("agent", "memory", "5Ki", "-o", "json")
    assert (code, json.loads(out)["memory"]["allowed_bytes"]) == (0, 5120)
    code, out, _ = meedge("agent", "memory", "4Ki", "--in-seconds", 60)
    assert code == 0
    assert "foreseen: 4.00Ki in 60.0 s" in out
    code, _, err = meedge("agent", "memory", "10")
    assert (code, err) == (2, "error: --memory: is below the backbone. Give more\n")
    code, _, err = meedge("agent", "memory", "lots")
    assert code == 2
    assert "is not a quantity" in err


def test_the_status_says_whether_a_model_answers(meedge: Run, agent):
    code, out, _ = meedge("agent", "status", "-o", "json")
    assert (code, json.loads(out)["device"]) == (1, "pi-1")
    code, out, _ = meedge("agent", "status")
    assert code == 1
    assert "no model is loaded yet" in out
    assert meedge("agent", "preempt") == (0, "0 inferences ended\n", "")


def test_stopping_waits_for_the_end(meedge: Run, world, run_dir):
    with served(SmallAgent(world), run_dir) as server:
        ended = subprocess.Popen([sys.executable, "-m", "meedge_ray.cli.main", "agent", "stop"], stdout=subprocess.PIPE)
        while not server.should_exit:
            time.sleep(0.01)
    assert ended.communicate(timeout=60)[0] == b"stopped\n"


def test_where_no_agent_runs_every_command_says_so(meedge: Run, run_dir, sample):
    for arguments in (["status"], ["preempt"], ["stop"], ["memory", "1Mi"], ["infer", "--input", sample]):
        code, _, err = meedge("agent", *arguments)
        assert code == 2
        assert "no agent runs. Start one with `meedge agent run`" in err
        code, _, err = meedge("agent", *arguments, "--device", "pi-7")
        assert code == 1
        assert "no agent answers" in err


def test_files_that_are_no_samples_are_refused(meedge: Run, agent, tmp_path):
    (tmp_path / "x.npy").write_text("hello")
    code, _, err = meedge("agent", "infer", "--input", tmp_path / "x.npy")
    assert code == 2
    assert err.startswith("error: --input: the body is no .npy file")
    code, _, err = meedge("agent", "infer", "--input", tmp_path / "nothing.npy")
    assert code == 2
    assert "No such file" in err


def test_options_become_settings(meedge: Run, started, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    options = ("--device", "pi-1", "--token-file", tmp_path / "token", "--mode", "finiteTime", "--latency-ms", 5)
    assert meedge("agent", "run", *NEEDED, *options, "--rate-limit", "10M", "--http-port", 0, "--enroll")[0] == 0
    [settings] = started
    assert settings == AgentSettings(
        device="pi-1",
        service_url="http://host:8000",
        token="secret",
        model="tiny",
        memory_bytes=2 * 2**20,
        mode="finiteTime",
        latency_ms=5,
        rate_limit_bps=10e6,
        http_port=0,
        heartbeat_s=settings.heartbeat_s,
    )
    assert settings.heartbeat_s > 0


def test_a_file_holds_what_options_do_not_say(meedge: Run, started, tmp_path):
    file = tmp_path / "agent.yaml"
    file.write_text(
        "device: pi-9\nmodel: other\nmemory_policy: {headroom_bytes: 5}\nschedule: [{at: '08:00', memory_bytes: 9}]"
    )
    assert meedge("agent", "run", *NEEDED, "--settings", file)[0] == 0
    [settings] = started
    assert (settings.device, settings.model, settings.memory_policy.headroom_bytes) == ("pi-9", "tiny", 5)
    assert settings.schedule[0].memory_bytes == 9
    assert settings.heartbeat_s is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("memory_policy: {headroom: 5}", "{file}: memory_policy.headroom: Extra inputs are not permitted"),
        ("schedule: [{at: noon, memory_bytes: 9}]", "{file}: schedule.0.at: "),
        ("[1, 2]", "{file}: must be an object"),
        ("a: [", "{file}: is neither YAML nor JSON"),
        ("threads: 0", "{file}: threads: "),
    ],
)
def test_a_wrong_file_is_told_by_field(meedge: Run, started, tmp_path, text, said):
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    code, _, err = meedge("agent", "run", *NEEDED, "--settings", file)
    assert code == 2
    assert err.startswith(f"error: {said.format(file=file)}")
    assert started == []


def test_wrong_options_are_told_by_name(meedge: Run, started, tmp_path):
    for arguments, said in (
        ((), "--service-url: is needed"),
        (NEEDED[:4], "--memory: is needed"),
        ((*NEEDED[:4], "--memory", "0"), "--memory: Input should be greater than 0"),
        ((*NEEDED, "--device", "a/b"), "--device: String should match pattern"),
        ((*NEEDED, "--latency-ms", "-1"), "--latency-ms: Input should be greater than 0"),
        ((*NEEDED, "--token-file", tmp_path / "none"), "--token-file: cannot be read"),
        ((*NEEDED, "--settings", tmp_path / "none"), f"{tmp_path / 'none'}: cannot be read"),
    ):
        code, _, err = meedge("agent", "run", *arguments)
        assert code == 2
        assert err.startswith(f"error: {said}"), err
    assert started == []


def test_help_teaches(meedge: Run):
    assert "meedge agent run --service-url" in meedge("agent", "--help")[1]
    for command in ("run", "infer", "status", "memory", "preempt", "stop"):
        assert "Example: meedge agent" in meedge("agent", command, "--help")[1]
