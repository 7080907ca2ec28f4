"""The build as a job of a cluster that somebody else runs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meedge_ray.bundle.manifest import read_bundle, verify_units


def job(manifest: Path, output: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "meedge_ray.jobs.build", "--manifest", str(manifest), "--output", str(output)]
    return subprocess.run(
        command, env=kept | environment, capture_output=True, text=True, timeout=600, check=False, cwd=manifest.parent
    )


def test_without_a_cluster_it_says_how_to_submit_it(tiny_manifest: Path, tmp_path: Path) -> None:
    ended = job(tiny_manifest, tmp_path / "bundle")
    assert ended.returncode == 2
    assert "ray job submit" in ended.stderr
    assert not (tmp_path / "bundle").exists()


@pytest.mark.ray
def test_it_builds_on_the_cluster_it_is_submitted_to(own_cluster: Any, tiny_manifest: Path, tmp_path: Path) -> None:
    ended = job(tiny_manifest, tmp_path / "bundle", RAY_ADDRESS=own_cluster.address, **own_cluster.environment)
    assert ended.returncode == 0, ended.stderr
    assert "cultivate 4.0/4" in ended.stdout
    verify_units(tmp_path / "bundle", read_bundle(tmp_path / "bundle"))


@pytest.mark.ray
def test_a_bad_manifest_fails_the_job_with_one_clear_line(
    own_cluster: Any, tiny_manifest: Path, tmp_path: Path
) -> None:
    tiny_manifest.write_text(tiny_manifest.read_text().replace("resnet8", "resnet9"))
    ended = job(tiny_manifest, tmp_path / "bundle", RAY_ADDRESS=own_cluster.address, **own_cluster.environment)
    assert ended.returncode == 2
    assert "resnet9" in ended.stderr
    assert "Traceback" not in ended.stderr
