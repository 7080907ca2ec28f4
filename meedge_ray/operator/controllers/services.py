"""Keeps ElasticServices true: renders all of them into one configuration of Ray Serve, and asks each what it serves."""

import secrets
import ssl
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import kopf
from pydantic import ValidationError

from meedge_ray.actors.service.serve_options import proxy_environment
from meedge_ray.api.serving import ModelList
from meedge_ray.bundle.files import write_atomically
from meedge_ray.domain.errors import InvalidInputError, MeedgeError
from meedge_ray.operator.client.api_client import Object
from meedge_ray.operator.controllers.rendering import (
    Plan,
    Seen,
    application_name,
    configuration,
    plan_service,
    url_of,
)
from meedge_ray.operator.keeping.home import private_folder
from meedge_ray.operator.publishing import Condition
from meedge_ray.operator.view import name_of
from meedge_ray.operator.world import World

_PERIOD_S = 2.0
_ANSWER_TIMEOUT_S = 3.0
_STOPPED_AFTER_S = 60.0
_ANYWHERE = "0.0.0.0"  # noqa: S104 - HAProxy reaches the replicas behind it over loopback


def register(_registry: kopf.OperatorRegistry, world: World) -> None:
    """Add the controller to those of the operator."""
    world.sweeps.every(_PERIOD_S, ServiceController(world).sweep)


class ServiceController:
    """The one owner of Ray Serve's configuration."""

    def __init__(self, world: World) -> None:
        self._world = world
        settings = world.settings
        # HAProxy speaks no TLS here.
        is_proxied = settings.serve_tls is None and proxy_environment(settings.serve_host)
        self._listen_at = _ANYWHERE if is_proxied else settings.serve_host
        verify = settings.serve_tls is None or _trusting(settings.serve_tls[0])
        self._http = httpx.Client(timeout=_ANSWER_TIMEOUT_S, trust_env=False, verify=verify)
        self._deployed: frozenset[str] | None = None
        self._is_idle, self._used_at_s = False, time.monotonic()

    def sweep(self) -> None:
        """Make Ray Serve do what is declared, and say how it does.

        Raises:
            UnavailableError: the API server or the cluster is away.
        """
        services = [each for each in self._world.services.objects() if "deletionTimestamp" not in each["metadata"]]
        if not services and self._is_idle:
            return
        token_files = {application_name(service): self._token_file(service) for service in services}
        # Who answers is asked before Ray: so what it counts is not older than the answer.
        answers = self._answers(services, token_files)
        details = self._world.serve.details()
        self._deployed = frozenset(details["applications"])
        models, now = self._world.models.by_name(), datetime.now(UTC)
        plans = []
        for service in services:
            name = application_name(service)
            served, problem = answers.get(name, (None, ""))
            seen = Seen(application=details["applications"].get(name, {}), served=served, problem=problem)
            url, now_s = self._url(service), now.timestamp()
            plans.append(plan_service(service, models, token_files[name], seen, url=url, now_s=now_s))
        self._deploy(plans, details)
        for plan in plans:
            self._world.publisher.publish(self._world.services, plan.service, plan.status, plan.conditions, now)

    def _deploy(self, plans: list[Plan], details: Mapping[str, Any]) -> None:
        wanted = {plan.application["name"]: plan.application for plan in plans if plan.application is not None}
        # Those that somebody runs from a program of theirs are none of ours, and stay.
        deployed = {
            name: application.get("deployed_app_config")
            for name, application in details["applications"].items()
            if application["source"] == "declarative" and application["status"] != "DELETING"
        }
        if wanted != deployed:
            settings, host = self._world.settings, self._listen_at
            applications = list(wanted.values())
            self._world.serve.deploy(
                configuration(applications, host=host, port=settings.serve_port, tls=settings.serve_tls)
            )
        if wanted or details["applications"]:
            self._is_idle, self._used_at_s = False, time.monotonic()
        elif not details["proxies"]:
            self._is_idle = True
        elif time.monotonic() - self._used_at_s > _STOPPED_AFTER_S:
            # It takes half a gigabyte; but whoever deletes a service often makes another one.
            self._world.serve.stop()

    def _token_file(self, service: Object) -> Path | Condition:
        named = service["spec"].get("auth", {}).get("tokenFile")
        if named is None:
            return self._own_token_file(service)
        path = self._world.settings.path(named)
        try:
            problem = "" if path.read_text().strip() else "it is empty"
        except (OSError, UnicodeDecodeError) as error:
            problem = str(error)
        if not problem:
            return path
        message = f"spec.auth.tokenFile: {path} cannot be read ({problem})"
        return Condition(type="Ready", status="False", reason="TokenFileUnusable", message=message, warning=True)

    def _own_token_file(self, service: Object) -> Path | Condition:
        path = self._world.settings.service_token_file(*name_of(service))
        if not path.exists():
            try:
                private_folder(path.parent)
                write_atomically(path, secrets.token_urlsafe(32).encode(), private=True)
            except (MeedgeError, OSError) as error:
                return Condition(
                    type="Ready", status="False", reason="TokenFileUnusable", message=str(error), warning=True
                )
        return path

    def _url(self, service: Object) -> str:
        settings = self._world.settings
        scheme = "https" if settings.serve_tls else "http"
        return url_of(service, host=settings.serve_host, port=settings.serve_port, scheme=scheme)

    def _answers(
        self, services: Sequence[Object], token_files: Mapping[str, Path | Condition]
    ) -> dict[str, tuple[Mapping[str, str] | None, str]]:
        """Return what each deployed service serves; of one that does not answer None, and why."""
        if self._deployed is None:
            self._deployed = frozenset(self._world.serve.details()["applications"])
        answers = {}
        for service in services:
            name = application_name(service)
            token_file = token_files[name]
            if name in self._deployed and isinstance(token_file, Path):
                answers[name] = self._ask(self._url(service), token_file)
        return answers

    def _ask(self, url: str, token_file: Path) -> tuple[Mapping[str, str] | None, str]:
        try:
            headers = {"Authorization": f"Bearer {token_file.read_text().strip()}"}
            response = self._http.get(f"{url}/v1/models", headers=headers).raise_for_status()
            listed = ModelList.model_validate_json(response.content)
        except (httpx.HTTPError, ValidationError, OSError) as error:
            return None, str(error) or type(error).__name__
        return {model.name: model.bundle_sha256 for model in listed.models}, ""


def _trusting(certificate: Path) -> ssl.SSLContext:
    # Beside public authorities this very certificate, whoever has signed it.
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(certificate)
    except OSError as error:
        raise InvalidInputError(
            f"the services' certificate cannot be read ({error})", where=str(certificate), do="Give a PEM file"
        ) from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
