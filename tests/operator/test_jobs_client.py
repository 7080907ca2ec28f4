"""The client of Ray's jobs, against a real cluster."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from real_operator import RayHead, free_port

from meedge_ray.domain.errors import UnavailableError
from meedge_ray.operator.jobs_client import Job, JobsClient

PATIENCE_S = 60.0


@pytest.fixture
def jobs(ray_head: RayHead) -> Iterator[JobsClient]:
    with closing(JobsClient(ray_head.dashboard_url, ray_head.environment["RAY_AUTH_TOKEN"])) as client:
        yield client


def wait_for(jobs: JobsClient, job_id: str, holds: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + PATIENCE_S
    while (job := jobs.job(job_id)) is None or not holds(job):
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    return job


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.ray
def test_a_job_tells_how_it_ended_and_what_it_said_last(jobs: JobsClient) -> None:
    code = "import sys; print('it\\'s \"quoted\"'); print('error: it is wrong', file=sys.stderr); sys.exit(2)"
    jobs.submit("jobs-client-2", python(code), {"for": "a test"})
    job = wait_for(jobs, "jobs-client-2", lambda job: job.is_over)
    assert (job.state, job.exit_code) == ("FAILED", 2)
    assert job.message.rstrip().endswith("error: it is wrong")
    assert jobs.last_lines(job, 2) == ['it\'s "quoted"', "error: it is wrong"]
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.started_at <= job.finished_at


@pytest.mark.ray
def test_a_name_is_used_once_and_a_stopped_job_can_be_forgotten(jobs: JobsClient) -> None:
    jobs.submit("jobs-client-1", python("import time; time.sleep(600)"), {})
    jobs.submit("jobs-client-1", python("raise SystemExit(1)"), {})
    wait_for(jobs, "jobs-client-1", lambda job: job.state == "RUNNING")
    assert [job.id for job in jobs.jobs("jobs-client-1")] == ["jobs-client-1"]
    jobs.stop("jobs-client-1")
    job = wait_for(jobs, "jobs-client-1", lambda job: job.is_over)
    assert (job.state, job.exit_code) == ("STOPPED", None)
    jobs.delete("jobs-client-1")
    assert jobs.job("jobs-client-1") is None
    jobs.stop("jobs-client-1")
    jobs.delete("jobs-client-1")


@pytest.mark.ray
def test_a_wrong_token_is_an_error_with_words(ray_head: RayHead) -> None:
    with (
        closing(JobsClient(ray_head.dashboard_url, "a-wrong-one")) as stranger,
        pytest.raises(UnavailableError, match="token"),
    ):
        stranger.job("any")


def test_a_cluster_that_is_away_is_an_error_with_words() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with closing(JobsClient(url)) as jobs, pytest.raises(UnavailableError, match="does not do") as caught:
        jobs.job("any")
    assert url in caught.value.where
