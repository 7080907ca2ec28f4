"""Ray Serve through the REST API of the cluster's dashboard: one configuration of all applications."""

from collections.abc import Mapping
from typing import Any

import httpx

from meedge_ray.domain.errors import UnavailableError

_PATH = "/api/serve/applications/"
_TIMEOUT_S = 15.0
_DEPLOY_TIMEOUT_S = 90.0  # the first configuration starts Ray Serve itself


class ServeClient:
    """Reads what Ray Serve does, and tells it what to do. Thread-safe.

    Every method raises UnavailableError where the cluster does not answer, or refuses.

    Args:
        url: of the dashboard.
        token: the cluster's, empty without one.
    """

    def __init__(self, url: str, token: str = "") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # Without the machine's proxies: the dashboard is no place on the internet.
        self._http = httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)

    def details(self) -> dict[str, Any]:
        """Return Ray's ServeInstanceDetails; without `proxies` where Ray Serve does not run."""
        found: dict[str, Any] = self._send("GET").json()
        return found

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Make these the applications; those left out are removed. Returns before they run."""
        self._send("PUT", json=config, timeout_s=_DEPLOY_TIMEOUT_S)

    def stop(self) -> None:
        """Remove all applications, and end Ray Serve."""
        self._send("DELETE", timeout_s=_DEPLOY_TIMEOUT_S)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _send(
        self, method: str, *, json: Mapping[str, Any] | None = None, timeout_s: float = _TIMEOUT_S
    ) -> httpx.Response:
        try:
            response = self._http.request(method, _PATH, json=json, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise _unavailable(f"{method} {self._http.base_url}", str(error) or type(error).__name__) from error
        if response.is_error:
            raise _unavailable(f"{method} {response.url}", f"{response.status_code} {response.text.strip()[-500:]}")
        return response


def _unavailable(where: str, why: str) -> UnavailableError:
    return UnavailableError(
        f"Ray Serve does not do what it is asked ({why})",
        where=where,
        do="Check that the cluster runs, and its token",
    )
