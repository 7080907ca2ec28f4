"""The operator's parts by name, and where each is."""

from meedge_ray.operator.keeping.home import Home, Ports

API_SERVER, RAY, RECONCILER = "api-server", "ray", "reconciler"
LOOPBACK = "127.0.0.1"
_LOOPBACK_RAY = "127.0.0.2"  # Ray turns the other into the machine's outward address
NODE_SETTINGS = {
    # So long a node waits for a head that is started again.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    # A node told to end would wait 30 s for its actors, which never end by themselves.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
BUSY = 3  # exit status of a supervisor: another one keeps this home


def api_url(ports: Ports) -> str:
    """Return where the API server listens."""
    return f"https://127.0.0.1:{ports.api_server}"


def dashboard_url(ports: Ports) -> str:
    """Return where the Ray cluster takes jobs."""
    return f"http://127.0.0.1:{ports.dashboard}"


def ray_environment(home: Home) -> dict[str, str]:
    """Return the environment variables that let a process into the cluster."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": home.ray_token}


def ray_address(host: str) -> str:
    """Return where edge nodes find the head, on the machine that they and devices know as `host`."""
    return _LOOPBACK_RAY if host == LOOPBACK else host


def bearer(home: Home) -> dict[str, str]:
    """Return the header that Ray's dashboard asks for."""
    return {"Authorization": f"Bearer {home.ray_token}"}
