import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meedge_ray.bundle.manifest import unit_store
from meedge_ray.domain.elastic import Bundle


def answer(run: tuple[int, str, str]) -> Any:
    code, out, err = run
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.fixture
def sample(tiny: tuple[Path, Bundle], tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.full(tiny[1].input.shape, 8, np.uint8))
    return tmp_path / "x.npy"


def test_help_lists_every_command(meedge) -> None:
    code, out, _ = meedge("--help")
    assert code == 0
    for name in ("build", "inspect", "place", "infer", "evaluate", "adapt", "serve", "doctor"):
        assert f"  {name} " in out


def test_inspect_shows_blocks_and_branches(meedge, tiny: tuple[Path, Bundle]) -> None:
    content = answer(meedge("inspect", tiny[0], "-o", "json"))
    assert content["model"] == "tiny"
    assert len(content["branches"]) == len(tiny[1].branches)
    code, out, _ = meedge("inspect", tiny[0])
    assert code == 0
    assert all(branch.name in out for branch in tiny[1].branches)


@pytest.mark.parametrize("method", ["frontier", "hpf"])
def test_place_keeps_to_the_memory(meedge, tiny: tuple[Path, Bundle], method: str) -> None:
    memory = tiny[1].backbone_bytes + 4000
    placement = answer(meedge("place", tiny[0], "--memory", memory, "--method", method, "-o", "json"))
    assert tiny[1].backbone_bytes < placement["size_bytes"] <= memory
    assert placement["branches"]
    assert placement["method"] == method
    code, out, _ = meedge("place", tiny[0], "--memory", memory, "--method", method)
    assert code == 0
    assert "final exit" in out


@pytest.mark.parametrize("score", ["m0", "m5", "m7"])
def test_place_tries_every_score_of_hpf(meedge, tiny: tuple[Path, Bundle], score: str) -> None:
    placement = answer(meedge("place", tiny[0], "--memory", "2Mi", "--method", "hpf", "--score", score, "-o", "json"))
    assert placement["method"] == "hpf"


def test_place_weighs_with_the_law_of_the_kills_time(meedge, tiny: tuple[Path, Bundle], tmp_path: Path) -> None:
    command = ("place", tiny[0], "--memory", "2Mi", "--horizon-ms", 10, "-o", "json")
    uniform = answer(meedge(*command))
    law = tmp_path / "late.json"
    law.write_text('{"normal": {"mean_ms": "9.5", "standard_deviation_ms": 0.2}}')
    late = answer(meedge(*command, "--distribution", law))
    # By then everything has run.
    best = max([tiny[1].final_accuracy, *(branch.accuracy for branch in tiny[1].branches)])
    assert late["expectation"] == pytest.approx(best, abs=1e-3)
    assert late["expectation"] > uniform["expectation"]


def test_place_keeps_to_what_can_be_sent(meedge, tiny: tuple[Path, Bundle]) -> None:
    folder, bundle = tiny
    command = ("place", folder, "--memory", "2Mi", "-o", "json", "--rate", "8", "--latency-ms")
    whole = answer(meedge(*command, 1e12))
    assert whole["branches"]
    assert whole["fetch_bytes"] == whole["size_bytes"]
    assert whole["transmission_ms"] == whole["fetch_bytes"] * 1e3
    bare = answer(meedge(*command, (bundle.backbone_bytes + 1) * 1e3))
    assert (bare["branches"], bare["fetch_bytes"]) == ([], bundle.backbone_bytes)
    held = answer(meedge(*command, 1e6, "--held", folder / "units"))
    assert (held["branches"], held["fetch_bytes"]) == (whole["branches"], 0)
    code, out, _ = meedge("place", folder, "--memory", "2Mi", "--rate", "8", "--latency-ms", 1e12)
    assert code == 0
    assert "to send in" in out


def test_infer_answers_and_says_from_where(meedge, tiny: tuple[Path, Bundle], sample: Path) -> None:
    content = answer(meedge("infer", tiny[0], "--memory", "2Mi", "--input", sample, "-o", "json"))
    assert content["class"] in tiny[1].classes
    assert content["ending"] == "completed"
    assert len(content["confidences"]) == 10
    assert content["branch"] in {output["branch"] for output in content["outputs"]}
    planned = answer(
        meedge("infer", tiny[0], "--memory", "2Mi", "--input", sample, "--plan", "samplewise", "-o", "json")
    )
    assert planned["planner"] == "samplewise"
    assert 1 <= len(planned["outputs"]) <= planned["resident"] + 1
    code, out, _ = meedge("infer", tiny[0], "--memory", "2Mi", "--input", sample, "--deadline-ms", 0)
    assert code == 0
    assert "nothing was at hand yet (deadline" in out


def test_evaluate_writes_a_report(meedge, tiny: tuple[Path, Bundle], tmp_path: Path) -> None:
    folder = tmp_path / "report"
    code, out, err = meedge("evaluate", tiny[0], "--memory", "1Mi", "--kills", 50, "--report", folder, "-o", "json")
    assert code == 0
    assert "evaluate" in err  # progress
    assert json.loads(out)["methods"]["meedge"]["mae"] > 0
    assert (folder / "index.html").exists()


def test_doctor_says_whether_the_c_loops_are_active(meedge) -> None:
    content = answer(meedge("doctor", "-o", "json"))
    assert isinstance(content["c_loops"], bool)
    assert content["packages"]["onnxruntime"]
    assert "C loops" in meedge("doctor")[1]


def test_build_prints_the_manifests_schema(meedge) -> None:
    assert answer(meedge("build", "--schema"))["title"] == "ElasticModel"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["place", "{bundle}", "--memory", "10"], "the backbone alone needs"),
        (["place", "{bundle}", "--memory", "lots"], "--memory: 'lots' is not a quantity"),
        (["place", "{bundle}", "--memory", "2Mi", "--device-type", "pi"], "there is no profile of device type pi"),
        (["place", "{bundle}", "--memory", "2Mi", "--horizon-ms", "0.00001"], "horizon"),
        (["place", "{nowhere}", "--memory", "2Mi"], "there is no bundle"),
        (["place", "{bundle}"], "--memory"),
        (["place", "{bundle}", "--memory", "2Mi", "--score", "m3"], "--score: a score belongs to HPF"),
        (["place", "{bundle}", "--memory", "2Mi", "--method", "hpf", "--score", "m8"], "m8"),
        (["place", "{bundle}", "--memory", "2Mi", "--rate", "85M"], "--latency-ms: a time to send in"),
        (["place", "{bundle}", "--memory", "2Mi", "--rate", "0", "--latency-ms", "9"], "--rate: must be at least 1"),
        (["place", "{bundle}", "--memory", "2Mi", "--rate", "9", "--latency-ms", "9"], "--latency-ms: the backbone's"),
        (["place", "{bundle}", "--memory", "2Mi", "--held", "{nowhere}"], "no such folder"),
        (["place", "{bundle}", "--memory", "2Mi", "--distribution", "{nowhere}"], 'Write one, such as {"normal"'),
        (["place", "{bundle}", "--memory", "2Mi", "--distribution", "{text}"], "Invalid JSON"),
        (
            ["place", "{bundle}", "--memory", "2Mi", "--distribution", "{law}"],
            "law.json: histogram.probabilities: must sum",
        ),
        (["place", "{bundle}", "--memory", "2Mi", "--distribution", "{far}"], "far.json: normal.mean_ms: only 0.00%"),
        (["place", "{bundle}", "--memory", "2Mi", "--distribution", "{soon}", "--method", "hpf"], "--method: HPF is"),
        (["infer", "{bundle}", "--memory", "2Mi", "--input", "{nowhere}"], "no such file"),
        (["infer", "{bundle}", "--memory", "2Mi", "--input", "{image}"], "expected is (1, 8, 8)"),
        (["infer", "{bundle}", "--memory", "2Mi", "--input", "{nan}"], "not finite"),
        (["infer", "{bundle}", "--memory", "2Mi", "--input", "{text}"], "cannot be read as .npy"),
        (["serve", "{bundle}", "--plan", "static"], "--plan: is for devices"),
        (["serve", "{bundle}", "--horizon-ms", "9"], "--horizon-ms: is for devices"),
        (["serve", "{bundle}", "--distribution", "{soon}"], "--distribution: is for devices"),
        (["serve", "{bundle}", "--memory", "10"], "--memory: the backbone alone needs"),
        (["serve", "{bundle}", "--memory", "2Mi", "--plan", "sometimes"], "sometimes"),
        (["serve", "{bundle}", "--memory", "2Mi", "--horizon-ms", "0.00001"], "--horizon-ms: a horizon"),
        (["serve", "{bundle}", "--memory", "2Mi", "--distribution", "{far}"], "far.json: normal.mean_ms: only 0.00%"),
        (["build", "{text}"], "needs one manifest and one folder"),
        (["build", "{nowhere}", "-o", "{out}"], "no such file"),
        (["frobnicate"], "No such command"),
    ],
)
def test_what_is_used_wrongly_exits_with_2_and_one_clear_message(
    meedge, tiny: tuple[Path, Bundle], tmp_path: Path, arguments: list[str], said: str
) -> None:
    np.save(tmp_path / "image.npy", np.zeros((3, 32, 32)))
    np.save(tmp_path / "nan.npy", np.full((1, 8, 8), np.nan))
    (tmp_path / "text").write_text("no array")
    (tmp_path / "law.json").write_text('{"histogram": {"edges_ms": [0, 1, 2], "probabilities": [0.5, 0.4]}}')
    (tmp_path / "far.json").write_text('{"normal": {"mean_ms": 1e9, "standard_deviation_ms": 1}}')
    (tmp_path / "soon.json").write_text('{"normal": {"mean_ms": 0, "standard_deviation_ms": 0.01}}')
    paths = {
        "bundle": tiny[0],
        "nowhere": tmp_path / "nowhere",
        "image": tmp_path / "image.npy",
        "nan": tmp_path / "nan.npy",
        "text": tmp_path / "text",
        "out": tmp_path / "out",
        "law": tmp_path / "law.json",
        "far": tmp_path / "far.json",
        "soon": tmp_path / "soon.json",
    }
    code, out, err = meedge(*(argument.format(**paths) for argument in arguments))
    assert code == 2
    assert said in " ".join(err.split())
    assert out == ""
    assert "Traceback" not in err


def test_a_damaged_unit_is_refused_by_name(meedge, tiny: tuple[Path, Bundle], tmp_path: Path, sample: Path) -> None:
    shutil.copytree(tiny[0], tmp_path / "copy")
    sha256 = tiny[1].blocks[0].unit.sha256
    path = unit_store(tmp_path / "copy").path(sha256)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for command in (["infer", tmp_path / "copy", "--memory", "2Mi", "--input", sample], ["inspect", tmp_path / "copy"]):
        code, _, err = meedge(*command)
        assert code == 1
        assert sha256 in err
