"""A Ray cluster to work in: the one that is there, or one of our own that vanishes afterwards."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from meedge_ray.actors.agents import stop_agents
from meedge_ray.actors.waiting import eventually
from meedge_ray.agent.places import RUN_DIR
from meedge_ray.domain.errors import InvalidInputError, UnavailableError

NAMESPACE = "meedge"
ROLE_LABEL = "meedge.dev/role"
DEVICE_LABEL = "meedge.dev/device"
EDGE = "edge"
OFF_EDGES = {ROLE_LABEL: f"!{EDGE}"}  # the label selector of everything that is no device actor

# Ray turns 127.0.0.1 into the machine's outward address; the rest of 127/8 it leaves alone.
LOOPBACK = "127.0.0.2"
_FOLDERS = Path("/tmp")  # noqa: S108 - made by mkdtemp, and short: paths of Unix sockets end at 107 bytes
_HEAD_OBJECT_STORE_BYTES = 200_000_000
_EDGE_OBJECT_STORE_BYTES = 80_000_000  # about the least Ray accepts; units travel over HTTP
_RUN = "run"  # where a node's agent has its folder, within the node's
_AGENT_MODULE = "ray.dashboard.optional_deps"
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_JOIN_TIMEOUT_S = 60.0
_KNOCK_TIMEOUT_S = 5.0
_STOP_TIMEOUT_S = 10.0
# A node told to end would wait 30 s for its device actor, which never ends by itself.
_NODE_ENVIRONMENT = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
# A lost node is noticed after about 2 s where Ray's defaults take 14 s.
_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


def detached_on_head(name: str) -> dict[str, Any]:
    """Return the options of an actor on the cluster's head, one of its name, that outlives its maker and comes back."""
    return {
        "name": name,
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "resources": {"node:__internal_head__": 0.001},
        "num_cpus": 0,
        "max_restarts": -1,
    }


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where other nodes join, and the environment variables their processes need for it."""

    address: str
    environment: Mapping[str, str]


@contextmanager
def cluster(*, host: str = LOOPBACK) -> Iterator[Cluster]:
    """Join the cluster that RAY_ADDRESS names; without it run one of our own while the context lasts.

    Our own listens on free ports, lets in only who has its random token, and touches no other Ray.

    Args:
        host: the address of this machine at which nodes find our own cluster; on loopback only its own can.

    Raises:
        InvalidInputError: this process works in a cluster already.
        UnavailableError: the cluster does not answer, or refuses the token.
    """
    if ray.is_initialized():
        raise InvalidInputError(
            "this process works in a Ray cluster already", where="ray.init", do="Use that, or leave it before"
        )
    address = os.environ.get("RAY_ADDRESS")
    with _joined(address) if address else _started(host) as found:
        yield found


@contextmanager
def _joined(address: str) -> Iterator[Cluster]:
    try:
        _knock(address)
        context = ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise UnavailableError(
            f"cannot join the Ray cluster ({str(error).splitlines()[0]})",
            where=f"RAY_ADDRESS={address}",
            do="Start it, or unset RAY_ADDRESS to run one here; check RAY_AUTH_MODE and RAY_AUTH_TOKEN",
        ) from error
    try:
        tokens = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH_")}
        yield Cluster(context.address_info["gcs_address"], tokens | _NODE_ENVIRONMENT)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    # Ray would try an address where nobody listens for a quarter of an hour.
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), _KNOCK_TIMEOUT_S).close()


@contextmanager
def _started(host: str) -> Iterator[Cluster]:
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    _remove_orphans()
    folder = str(_new_folder())
    try:
        with _environment({**environment, "RAY_USAGE_STATS_ENABLED": "0"}):
            try:
                with _without_dashboard_agent():
                    context = ray.init(
                        address="local",
                        namespace=NAMESPACE,
                        include_dashboard=False,
                        log_to_driver=False,
                        configure_logging=False,
                        object_store_memory=_HEAD_OBJECT_STORE_BYTES,
                        _node_ip_address=host,
                        _temp_dir=folder,
                        _system_config=dict(_HEALTH_CHECKS),  # Ray writes into it
                    )
                yield Cluster(context.address_info["gcs_address"], environment | _NODE_ENVIRONMENT)
            finally:
                ray.shutdown(wait_for_processes=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _new_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix=f"meedge-{os.getpid()}-", dir=_FOLDERS))


def _remove_orphans() -> None:
    # What a killed process could not remove itself.
    for folder in _FOLDERS.glob("meedge-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            stop_agents(folder / _RUN)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _without_dashboard_agent() -> Iterator[None]:
    # Ray then starts as it does without ray[default]: its full agent wants port 52365, which clusters on one
    # machine fight for (5 s each time), and `ray.init` has no argument for another one.
    before = sys.modules.get(_AGENT_MODULE)
    sys.modules[_AGENT_MODULE] = None  # type: ignore[assignment] # what makes an import fail
    try:
        yield
    finally:
        del sys.modules[_AGENT_MODULE]
        if before is not None:
            sys.modules[_AGENT_MODULE] = before


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    _reread_authentication()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _reread_authentication()


def _reread_authentication() -> None:
    # Ray reads the mode when it is imported and the token at its first use, each once in a process.
    # In this order: a thread still at work must not look for a token that is gone already.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


class EdgeNode:
    """A second Ray node on this machine, in a process of its own, labelled as an edge device."""

    def __init__(self, device: str, process: "subprocess.Popen[bytes]", folder: Path) -> None:
        self.device = device
        self.process = process
        self._folder = folder

    @property
    def log(self) -> str:
        """What the node's process has printed."""
        return (self._folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """End the node and its device's agent; nothing happens where it has ended already."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        stop_agents(self._folder / _RUN)
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def attach_edge_node(cluster: Cluster, device: str, *, labels: Mapping[str, str] | None = None) -> Iterator[EdgeNode]:
    """Run a node for `device` on this machine while the context lasts; it is alive when the context begins.

    Raises:
        InvalidInputError: the name is no label value, or the cluster has a live node of that device already.
        UnavailableError: the node did not come up; the message ends with what its log says.
    """
    if _LABEL_VALUE.fullmatch(device) is None:
        raise InvalidInputError(
            f"{device!r} cannot name a device",
            where="device",
            do="Take up to 63 letters, digits, '-', '_' and '.', a letter or digit first and last",
        )
    if is_alive(device):
        raise InvalidInputError(
            f"device {device!r} has a node already",
            where=cluster.address,
            do="Stop that, or take another name",
        )
    node = _start(cluster, device, {**(labels or {}), ROLE_LABEL: EDGE, DEVICE_LABEL: device})
    try:
        _wait_until_alive(node)
        yield node
    finally:
        node.stop()


def _start(cluster: Cluster, device: str, labels: Mapping[str, str]) -> EdgeNode:
    folder = _new_folder()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", *start_arguments(cluster, labels)),
                *("--disable-usage-stats", "--log-style=record", "--log-color=false", f"--temp-dir={folder}"),
            ],
            env={**os.environ, **cluster.environment, RUN_DIR: str(folder / _RUN)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Out of reach of the terminal's Ctrl-C: the context ends it, in order.
            start_new_session=True,
        )
    return EdgeNode(device, process, folder)


def start_arguments(cluster: Cluster, labels: Mapping[str, str]) -> list[str]:
    """Return the arguments of `ray` that join a node to the cluster, in the environment the cluster names."""
    host = cluster.address.rpartition(":")[0]
    return [
        "start",
        f"--address={cluster.address}",
        *([f"--node-ip-address={host}"] if host == LOOPBACK else []),
        f"--labels={','.join(f'{key}={value}' for key, value in labels.items())}",
        f"--object-store-memory={_EDGE_OBJECT_STORE_BYTES}",
        "--num-cpus=0",
        "--dashboard-agent-listen-port=0",
        "--include-log-monitor=false",
        "--block",
    ]


def _wait_until_alive(node: EdgeNode) -> None:
    eventually(lambda: is_alive(node.device) or node.process.poll() is not None, timeout_s=_JOIN_TIMEOUT_S)
    if not is_alive(node.device):
        raise UnavailableError(
            f"the node of device {node.device!r} did not join",
            where=f"ray start, exit status {node.process.poll()}",
            do=f"Its log says:\n{node.log[-2000:]}",
        )


def is_alive(device: str) -> bool:
    """Return whether the device has a live node."""
    return any(node["Alive"] and node["Labels"].get(DEVICE_LABEL) == device for node in ray.nodes())
