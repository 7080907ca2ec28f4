"""Ray Serve through the REST API of the cluster's dashboard: one configuration of all applications."""

from collections.abc import Mapping
from typing import Any

import httpx

from meedge_ray.operator.dashboard import TIMEOUT_S, dashboard, unavailable

_PATH = "/api/serve/applications/"
_DEPLOY_TIMEOUT_S = 90.0  # the first configuration starts Ray Serve itself


class ServeClient:
    """Reads what Ray Serve does, and tells it what to do. Thread-safe.

    Every method raises UnavailableError where the cluster does not answer, or refuses.

    Args:
        url: of the dashboard.
        token: the cluster's, empty without one.
    """

    def __init__(self, url: str, token: str = "") -> None:
        self._http = dashboard(url, token)

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
        self, method: str, *, json: Mapping[str, Any] | None = None, timeout_s: float = TIMEOUT_S
    ) -> httpx.Response:
        try:
            response = self._http.request(method, _PATH, json=json, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise unavailable(f"{method} {self._http.base_url}", str(error) or type(error).__name__) from error
        if response.is_error:
            raise unavailable(f"{method} {response.url}", f"{response.status_code} {response.text.strip()[-500:]}")
        return response
