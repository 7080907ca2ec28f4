"""What the controllers share: where things are, the clients they act through, and what is declared."""

import os
from dataclasses import dataclass
from pathlib import Path

import kopf

from meedge_ray.operator.client.api_client import ApiClient
from meedge_ray.operator.client.resources import DEVICES, FLEETS, MODELS, SERVICES
from meedge_ray.operator.jobs_client import JobsClient
from meedge_ray.operator.publishing import Publisher
from meedge_ray.operator.serve_client import ServeClient
from meedge_ray.operator.sweeping import Sweeps
from meedge_ray.operator.view import View


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """Where the operator finds its API server, its Ray cluster and its files.

    Relative paths in manifests start at `base_dir`. Devices reach services at `serve_host` and `serve_port`, over
    HTTPS where there are a certificate and its key, PEM files on the cluster's head.
    """

    kubeconfig: Path
    home: Path
    base_dir: Path
    dashboard_url: str
    ray_address: str
    serve_host: str = "127.0.0.1"
    serve_port: int = 8000
    serve_certificate: Path | None = None
    serve_key: Path | None = None

    @property
    def token(self) -> str:
        """The cluster's token, empty without one; from the environment, so that it is never stored with the rest."""
        return os.environ.get("RAY_AUTH_TOKEN", "") if os.environ.get("RAY_AUTH_MODE") == "token" else ""

    @property
    def serve_tls(self) -> tuple[Path, Path] | None:
        """The certificate that services are served with, and its key; None without both."""
        certificate, key = self.serve_certificate, self.serve_key
        return None if certificate is None or key is None else (certificate, key)

    def path(self, text: str) -> Path:
        """Return where a path in a manifest leads."""
        return self.base_dir / Path(text).expanduser()

    def bundle_folder(self, namespace: str, model: str) -> Path:
        """Return where an ElasticModel's bundle is built and served from."""
        return self.home / "bundles" / namespace / model

    def service_token_file(self, namespace: str, service: str) -> Path:
        """Return where the token of an ElasticService is kept that names none of its own."""
        return self.home / "tokens" / "services" / namespace / service


class World:
    """The clients the controllers share, and the objects of every kind as last seen."""

    def __init__(self, settings: OperatorSettings) -> None:
        """Prepare the clients; nothing is sent yet.

        Raises:
            MeedgeError: the kubeconfig cannot be used.
        """
        self.settings = settings
        self.api = ApiClient(settings.kubeconfig)
        self.publisher = Publisher(self.api)
        self.models, self.services, self.fleets, self.devices = (
            View(self.api, resource) for resource in (MODELS, SERVICES, FLEETS, DEVICES)
        )
        self.jobs = JobsClient(settings.dashboard_url, settings.token)
        self.serve = ServeClient(settings.dashboard_url, settings.token)
        self.sweeps = Sweeps()

    def close(self) -> None:
        """Close all connections."""
        for client in (self.api, self.jobs, self.serve):
            client.close()

    def watch(self, registry: kopf.OperatorRegistry) -> None:
        """Keep the views by the events that kopf sees."""
        for view in (self.models, self.services, self.fleets, self.devices):
            _watch(registry, view)


def _watch(registry: kopf.OperatorRegistry, view: View) -> None:
    resource = view.resource

    @kopf.on.event(resource.group, resource.version, resource.plural, registry=registry, id=f"view-{resource.plural}")
    async def see(event: kopf.RawEvent, **_: object) -> None:
        content = dict(event["object"])
        if event["type"] == "DELETED":
            view.forget(content)
        else:
            view.see(content)
