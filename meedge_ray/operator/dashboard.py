"""The dashboard of a Ray cluster over HTTP: where jobs and Ray Serve are told what to do."""

import httpx

from meedge_ray.domain.errors import UnavailableError

TIMEOUT_S = 15.0


def dashboard(url: str, token: str) -> httpx.Client:
    """Return a client of the dashboard at `url`; the token is the cluster's, empty without one."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # Without the machine's proxies: the dashboard is no place on the internet.
    return httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False)


def unavailable(where: str, why: str) -> UnavailableError:
    """Return the error of a dashboard that does not answer, or refuses."""
    return UnavailableError(
        f"the Ray cluster's dashboard does not do what it is asked ({why})",
        where=where,
        do="Check that the cluster runs, and its token",
    )
