"""A service's registry as a detached actor on the head, and how its replicas and the operator speak with it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from meedge_ray.actors.cluster import NAMESPACE, detached_on_head
from meedge_ray.actors.service.credentials import Claims, beside
from meedge_ray.actors.service.registry import Changes, News, Presence, Record, Registry, Version
from meedge_ray.api.devices import Desired, Registration
from meedge_ray.domain.errors import MeedgeError, NotFoundError, UnavailableError

_PREFIX = "registry-"
_TIMEOUT_S = 5.0


class RegistryActor(Registry):
    """The registry of one service; started again by Ray it goes on as its file says."""

    def __init__(self, token_file: Path | None) -> None:
        """Keep the file beside the token's, which the head sees; without one, or where nothing can be written, none."""
        try:
            super().__init__(token_file and beside(token_file, "registry"))
        except OSError:
            super().__init__()


class ReplicaLink:
    """The registry of a service, for its replicas; it is started where it is not. Awaits, and never for long."""

    def __init__(self, service: str, token_file: Path | None) -> None:
        """Nothing is started before the first call.

        Args:
            service: the name of the Serve application.
            token_file: where its token is, if that is in a file.
        """
        self._service, self._token_file = service, token_file
        self._actor: Any = None

    async def register(self, device: str, registration: Registration, proof: Claims | None) -> Record:
        """See `Registry.register`."""
        record: Record = await self._call(lambda actor: actor.register.remote(device, registration, proof))
        return record

    async def renew(self, claims: Claims) -> Record:
        """See `Registry.renew`."""
        record: Record = await self._call(lambda actor: actor.renew.remote(claims))
        return record

    async def exchange(self, news: list[News], since: Version) -> Changes:
        """See `Registry.exchange`."""
        changes: Changes = await self._call(lambda actor: actor.exchange.remote(news, since))
        return changes

    async def presences(self) -> list[Presence]:
        """See `Registry.presences`."""
        presences: list[Presence] = await self._call(lambda actor: actor.presences.remote())
        return presences

    async def _call(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:  # noqa: ANN401 - as Ray's handles
        try:
            if self._actor is None:
                options = ray.remote(RegistryActor).options(**detached_on_head(_name(self._service)))
                self._actor = options.remote(self._token_file)
            return await asyncio.wait_for(ask(self._actor), _TIMEOUT_S)
        except RayTaskError as error:
            raise _cause(error) from None
        except TimeoutError as error:
            # It may be starting: to look for it again for every device that waits would hold up all other requests.
            raise _away(self._service) from error
        except RayError as error:
            self._actor = None
            raise _away(self._service) from error


class OperatorLink:
    """The registry of a service, for the operator. Every method raises UnavailableError where it does not answer."""

    def __init__(self, service: str) -> None:
        """Find the registry.

        Raises:
            NotFoundError: the service has none yet.
        """
        self._service = service
        try:
            self._actor = ray.get_actor(_name(service), NAMESPACE)
        except ValueError as error:
            raise NotFoundError("the service has no registry yet", where=service, do="Wait for its replicas") from error

    def presences(self) -> list[Presence]:
        """See `Registry.presences`."""
        presences: list[Presence] = self._get(self._actor.presences.remote())
        return presences

    def desire(self, desired: dict[str, Desired], declared_by: str) -> None:
        """See `Registry.desire`."""
        self._get(self._actor.desire.remote(desired, declared_by))

    def revoke(self, devices: list[str]) -> None:
        """See `Registry.revoke`."""
        self._get(self._actor.revoke.remote(devices))

    def _get(self, ref: Any) -> Any:  # noqa: ANN401 - as Ray's references
        try:
            return ray.get(ref, timeout=_TIMEOUT_S)
        except RayTaskError as error:
            raise _cause(error) from None
        except (RayError, GetTimeoutError) as error:
            raise _away(self._service) from error


def end_registry(service: str) -> None:
    """End the registry of a service that is gone, if it has one; its file stays."""
    try:
        ray.kill(ray.get_actor(_name(service), NAMESPACE))
    except ValueError:
        return


def services_with_registries() -> frozenset[str]:
    """Return the names of all Serve applications that have a registry."""
    return frozenset(
        actor["name"].removeprefix(_PREFIX)
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(_PREFIX)
    )


def _name(service: str) -> str:
    return f"{_PREFIX}{service}"


def _cause(error: RayTaskError) -> BaseException:
    return error.cause if isinstance(error.cause, MeedgeError) else error


def _away(service: str) -> UnavailableError:
    return UnavailableError(
        "the registry of devices does not answer", where=f"service {service}", do="Try again; it comes back by itself"
    )
