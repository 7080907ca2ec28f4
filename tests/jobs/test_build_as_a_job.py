"""The build and its stages as jobs of a cluster that somebody else runs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meedge_ray.bundle.manifest import read_bundle, verify_units

PROGRESS = re.compile(r"progress (\w+) \d+\.\d/\d+( .+)?")


def run(name: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", f"meedge_ray.jobs.{name}", *arguments]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=600, check=False)


def job(manifest: Path, output: Path, name: str = "build", **environment: str) -> "subprocess.CompletedProcess[str]":
    return run(name, "--manifest", str(manifest), "--output", str(output), **environment)


def test_without_a_cluster_it_says_how_to_submit_it(tiny_manifest: Path, tmp_path: Path) -> None:
    ended = job(tiny_manifest, tmp_path / "bundle")
    assert ended.returncode == 2
    assert "ray job submit" in ended.stderr
    assert not (tmp_path / "bundle").exists()


def test_arguments_that_are_wrong_are_answered_in_one_line(tiny_manifest: Path, tmp_path: Path) -> None:
    lacking = run("cultivate", "--manifest", str(tiny_manifest))
    assert (lacking.returncode, lacking.stdout) == (2, "")
    assert lacking.stderr.startswith("error: the following arguments are required: --output. See python -m meedge_ray.")
    assert "ray job submit --working-dir . -- python -m meedge_ray.jobs.cultivate" in run("cultivate", "--help").stdout


def test_a_stage_without_tasks_needs_no_worker_and_one_before_its_turn_names_the_first(
    tiny_manifest: Path, tmp_path: Path
) -> None:
    nowhere = {"RAY_ADDRESS": "nowhere"}
    early = job(tiny_manifest, tmp_path / "bundle", "cultivate", **nowhere)
    assert (early.returncode, early.stdout) == (2, "")
    assert early.stderr == (
        f"error: {tmp_path / 'bundle'}: cultivate needs pretrain, which is not finished. "
        "Run pretrain first, with the same manifest and output\n"
    )
    done = job(tiny_manifest, tmp_path / "bundle", "pretrain", **nowhere)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.partition(" loss")[0] for line in lines[:-1]] == [f"progress pretrain {n}.0/3" for n in (1, 2, 3)]
    assert lines[-1] == f"tiny: pretrain is finished in {tmp_path / 'bundle'}"
    again = job(tiny_manifest, tmp_path / "bundle", "pretrain", **nowhere)
    assert (again.returncode, again.stdout, again.stderr) == (0, f"{lines[-1]}, as before\n", "")
    stuck = job(tiny_manifest, tmp_path / "bundle", "cultivate", **nowhere)
    assert stuck.returncode == 1
    assert stuck.stderr.splitlines()[-1].startswith(
        "error: RAY_ADDRESS: cannot connect to the cluster (Invalid address"
    )


def test_relative_paths_start_where_base_dir_says(tiny_manifest: Path, tmp_path: Path) -> None:
    text = tiny_manifest.read_text()
    pretrain = 'pretrain: {epochs: 3, batchSize: 64, learningRate: "0.01"}'
    tiny_manifest.write_text(text.replace(pretrain, "weights: own.safetensors"))
    arguments = ("--manifest", str(tiny_manifest), "--output", str(tmp_path / "bundle"), "--base-dir")
    nowhere = run("cultivate", *arguments, str(tmp_path / "none"), RAY_ADDRESS="nowhere")
    assert (nowhere.returncode, nowhere.stderr) == (
        2,
        "error: --base-dir: no such folder. Name the folder that relative paths start from\n",
    )
    (tmp_path / "data").mkdir()
    elsewhere = run("cultivate", *arguments, str(tmp_path / "data"), RAY_ADDRESS="nowhere")
    assert elsewhere.returncode == 2
    assert str(tmp_path / "data" / "own.safetensors") in elsewhere.stderr


@pytest.mark.ray
def test_it_builds_on_the_cluster_it_is_submitted_to(own_cluster: Any, tiny_manifest: Path, tmp_path: Path) -> None:
    ended = job(tiny_manifest, tmp_path / "bundle", RAY_ADDRESS=own_cluster.address, **own_cluster.environment)
    assert ended.returncode == 0, ended.stderr
    assert "progress cultivate 4.0/4 exit " in ended.stdout
    *progress, last = ended.stdout.splitlines()
    stages = list(dict.fromkeys(PROGRESS.fullmatch(line)[1] for line in progress))
    assert stages == ["pretrain", "cultivate", "share", "assemble"]
    bundle = read_bundle(tmp_path / "bundle")
    assert last == f"tiny: {len(bundle.branches)} branches in {tmp_path / 'bundle'}"
    verify_units(tmp_path / "bundle", bundle)


@pytest.mark.ray
def test_a_bad_manifest_fails_the_job_with_one_clear_line(
    own_cluster: Any, tiny_manifest: Path, tmp_path: Path
) -> None:
    tiny_manifest.write_text(tiny_manifest.read_text().replace("resnet8", "resnet9"))
    ended = job(tiny_manifest, tmp_path / "bundle", RAY_ADDRESS=own_cluster.address, **own_cluster.environment)
    assert ended.returncode == 2
    assert "resnet9" in ended.stderr
    assert "Traceback" not in ended.stderr
