"""A real API server of this machine, with TLS, and unmodified kubectl in front of it."""

import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from meedge_ray.operator.keeping.certificate import make_certificate

START_TIMEOUT_S = 60
KUBECTL_TIMEOUT_S = 60


class ServerProcess:
    """A server of one home. It can be killed and started again: the port stays."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.certificate, self.key = home / "tls" / "certificate.pem", home / "tls" / "key.pem"
        make_certificate(self.certificate, self.key)
        self.url = ""
        self._port = 0

    def start(self, *options: str) -> None:
        tls = (f"--tls-cert={self.certificate}", f"--tls-key={self.key}")
        command = [sys.executable, "-m", "meedge_ray.operator.server", f"--home={self.home}", f"--port={self._port}"]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen([*command, *tls, *options], stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.process.stdout.readline()
        assert "https://" in line, (self.home / "log").read_text()
        self.url = yaml.safe_load(self.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        self._port = int(self.url.rpartition(":")[2])

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.stdout.close()
        return self.process.wait(START_TIMEOUT_S)

    @property
    def kubeconfig(self) -> Path:
        return self.home / "kubeconfig"

    @property
    def token(self) -> str:
        return (self.home / "tokens" / "admin").read_text().strip()

    def client(self, **settings: Any) -> httpx.Client:
        return httpx.Client(
            **{
                "base_url": self.url,
                "headers": {"Authorization": f"Bearer {self.token}"},
                "verify": ssl.create_default_context(cafile=str(self.certificate)),
                "trust_env": False,
                "timeout": 30,
                **settings,
            }
        )


@contextmanager
def serving(home: Path) -> Iterator[ServerProcess]:
    """Run a server while the context lasts."""
    server = ServerProcess(home)
    server.start()
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)


class Kubectl:
    """Unmodified kubectl, in a namespace of its own."""

    def __init__(self, server: ServerProcess, namespace: str, folder: Path) -> None:
        self.namespace, self.folder, self._server = namespace, folder, server
        self._environment = {**os.environ, "KUBECONFIG": str(server.kubeconfig), "HOME": str(folder)}

    def command(self, *arguments: str) -> list[str]:
        # One cache for all tests: it finds out what is served once.
        cache = self._server.home / "kubectl-cache"
        return ["kubectl", f"--namespace={self.namespace}", f"--cache-dir={cache}", *arguments]

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            input=stdin,
            env={**self._environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=KUBECTL_TIMEOUT_S,
            check=False,
        )

    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> str:
        """Return what it says; it must succeed."""
        done = self.run(*arguments, stdin=stdin, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments: str, stdin: str = "") -> str:
        """Return why it fails."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 1, done.stdout
        return done.stderr

    def started(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments), env=self._environment, cwd=self.folder, stdout=subprocess.PIPE, text=True
        )


def device(name: str = "pi-1", **changes: Any) -> dict[str, Any]:
    """An EdgeDevice; `changes` are of its spec."""
    spec = {"device": name, "serviceRef": {"name": "demo"}, "modelRef": {"name": "digits"}, "memory": "64Mi"}
    return {
        "apiVersion": "meedge.dev/v1alpha1",
        "kind": "EdgeDevice",
        "metadata": {"name": name},
        "spec": {**spec, **changes},
    }
