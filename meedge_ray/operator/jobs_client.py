"""Ray jobs through the REST API of the cluster's dashboard.

Not through Ray's own `JobSubmissionClient`: its requests know no time limit, and RAY_ADDRESS, which is set in every
process of a cluster, takes precedence over the address it is given.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

import httpx

from meedge_ray.operator.dashboard import dashboard, unavailable

_EXISTS = "already exists"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the cluster knows of a job.

    `exit_code` is None while it runs, and where the cluster lost its process; of a process that was killed it is
    128 and the signal, or below 0. `message` of one that failed ends with the last lines of its log.
    """

    id: str
    state: Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
    message: str
    exit_code: int | None = None
    node_id: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.state in ("STOPPED", "SUCCEEDED", "FAILED")

    def is_lost(self, nodes: Iterable[Mapping[str, Any]]) -> bool:
        """Whether it went with its node, given `ray.nodes()`; Ray may say that it runs until another is submitted."""
        if self.is_over or self.node_id is None:
            return False
        return not any(node["Alive"] and node["NodeID"] == self.node_id for node in nodes)


class JobsClient:
    """Submits jobs, follows them and stops them. Thread-safe.

    Every method raises UnavailableError where the cluster does not answer, or refuses.

    Args:
        url: of the dashboard.
        token: the cluster's, empty without one.
    """

    def __init__(self, url: str, token: str = "") -> None:
        self._http = dashboard(url, token)

    def job(self, job_id: str) -> Job | None:
        """Return the job, None if the cluster knows none of that name."""
        response = self._send("GET", _path(job_id), accept=(404,))
        return None if response.status_code == 404 else _job(response.json())

    def jobs(self, prefix: str) -> list[Job]:
        """Return all jobs whose names begin so."""
        listed = self._send("GET", "/api/jobs/").json()
        return [_job(each) for each in listed if str(each.get("submission_id") or "").startswith(prefix)]

    def submit(self, job_id: str, command: Sequence[str], metadata: Mapping[str, str]) -> None:
        """Run a command on the cluster's head; nothing happens if the cluster knows a job of that name."""
        body = {"submission_id": job_id, "entrypoint": shlex.join(command), "metadata": dict(metadata)}
        response = self._send("POST", "/api/jobs/", json=body, accept=(400, 500))
        if response.is_error and _EXISTS not in response.text:
            raise unavailable(f"POST {response.url}", _last_line(response.text))

    def stop(self, job_id: str) -> None:
        """Tell the job to end, and kill it if it does not within some seconds; return at once."""
        self._send("POST", f"{_path(job_id)}/stop", accept=(404,))

    def delete(self, job_id: str) -> None:
        """Forget a job that is over."""
        self._send("DELETE", _path(job_id), accept=(404,))

    def last_lines(self, job: Job, count: int) -> list[str]:
        """Return the last lines of the job's log; none before it runs."""
        if job.node_id is None:
            return []
        query = {"node_id": job.node_id, "filename": f"job-driver-{job.id}.log", "lines": str(count)}
        response = self._send("GET", "/api/v0/logs/file", params=query, accept=(404, 500))
        return [] if response.is_error else response.text.splitlines()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _send(
        self,
        method: str,
        path: str,
        *,
        accept: tuple[int, ...] = (),
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, json=json, params=params)
        except httpx.HTTPError as error:
            raise unavailable(f"{method} {self._http.base_url}{path}", str(error) or type(error).__name__) from error
        # A dashboard that is still starting answers 404 as well, of the path and not of the job.
        is_of_the_job = response.status_code != 404 or "does not exist" in response.text
        if response.is_success or (response.status_code in accept and is_of_the_job):
            return response
        raise unavailable(f"{method} {response.url}", f"{response.status_code} {_last_line(response.text)}")


def _path(job_id: str) -> str:
    return f"/api/jobs/{quote(job_id, safe='')}"


def _job(content: Mapping[str, Any]) -> Job:
    return Job(
        id=content["submission_id"],
        state=content["status"],
        message=content.get("message") or "",
        exit_code=content.get("driver_exit_code"),
        node_id=content.get("driver_node_id"),
        started_at=_time(content.get("start_time")),
        finished_at=_time(content.get("end_time")),
    )


def _time(time_ms: int | None) -> datetime | None:
    return None if time_ms is None else datetime.fromtimestamp(time_ms // 1000, UTC)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:500] if lines else ""
