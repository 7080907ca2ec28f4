"""What one replica knows of the thin devices: a copy of the registry's records, and news for it, sent by the batch."""

import asyncio
import logging
import time
from typing import Protocol

from meedge_ray.actors.service.credentials import Claims
from meedge_ray.actors.service.registry import Changes, News, Presence, Record, Registry, Version
from meedge_ray.actors.service.rhythm import HEARTBEAT_S
from meedge_ray.api.devices import Registration
from meedge_ray.domain.errors import CredentialError, UnavailableError

_FRESH_S = 1.0  # so soon a revocation reaches every replica
_BATCH_S = 0.15
_PATIENCE_S = 5.0  # with a registry that is away, before it is asked again

_log = logging.getLogger(__name__)


class RegistryLink(Protocol):
    """The registry, wherever it is; see `Registry`. UnavailableError where it does not answer."""

    async def register(self, device: str, registration: Registration, proof: Claims | None) -> Record: ...  # noqa: D102
    async def renew(self, claims: Claims) -> Record: ...  # noqa: D102
    async def exchange(self, news: list[News], since: Version) -> Changes: ...  # noqa: D102
    async def presences(self) -> list[Presence]: ...  # noqa: D102


class InProcess:
    """A registry in this very process, for a service that is one."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def register(self, device: str, registration: Registration, proof: Claims | None) -> Record:
        """See `Registry.register`."""
        return self._registry.register(device, registration, proof)

    async def renew(self, claims: Claims) -> Record:
        """See `Registry.renew`."""
        return self._registry.renew(claims)

    async def exchange(self, news: list[News], since: Version) -> Changes:
        """See `Registry.exchange`."""
        return self._registry.exchange(news, since)

    async def presences(self) -> list[Presence]:
        """See `Registry.presences`."""
        return self._registry.presences()


class Roster:
    """Decides whose credential counts, and passes on what devices say. For one event loop.

    While the registry is away devices are told what was known last, and what they said last is passed on afterwards.
    """

    def __init__(self, registry: RegistryLink) -> None:
        """Nothing is asked before the first device comes."""
        self.heartbeat_s = HEARTBEAT_S
        self._registry = registry
        self._records: dict[str, Record] = {}
        self._version = Version()
        self._known_at = -_FRESH_S  # monotonic; after a failure a time to come
        self._news: dict[str, News] = {}
        self._exchanging = asyncio.Lock()
        self._sending: asyncio.Task[None] | None = None

    async def admit(self, claims: Claims) -> None:
        """Let a device in.

        Raises:
            CredentialError: its credential was replaced or revoked.
        """
        if time.monotonic() > self._known_at + _FRESH_S:
            await self._exchange()
        record = self._records.get(claims.device)
        refusal = record.refusal(claims.generation, time.time()) if record else ""
        if refusal:
            raise CredentialError(
                refusal, where="header Authorization", do="Send the newest one, or register with the enrolment token"
            )
        if record is None or claims.generation > record.current:
            self._note(News(claims, None))

    def heard(self, claims: Claims, status: str) -> Record | None:
        """Take note of how a device is (JSON of a Heartbeat), and return what is known of it.

        It is told to say so again every `heartbeat_s`.
        """
        self._note(News(claims, status, self.heartbeat_s))
        return self._records.get(claims.device)

    async def register(self, device: str, registration: Registration, proof: Claims | None) -> Record:
        """See `Registry.register`."""
        return await self._registry.register(device, registration, proof)

    async def renew(self, claims: Claims) -> Record:
        """See `Registry.renew`."""
        return await self._registry.renew(claims)

    async def presences(self) -> list[Presence]:
        """See `Registry.presences`; what this replica has heard is among it."""
        await self._exchange()
        return await self._registry.presences()

    def _note(self, news: News) -> None:
        before = self._news.get(news.claims.device)
        if before is not None:
            said = before if news.status is None else news
            claims = max(news.claims, before.claims, key=lambda each: each.generation)
            news = News(claims, said.status, said.told_s)
        self._news[news.claims.device] = news
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while self._news:
            await asyncio.sleep(max(_BATCH_S, self._known_at - time.monotonic()))
            await self._exchange()

    async def _exchange(self) -> None:
        asked_at = time.monotonic()
        async with self._exchanging:
            if asked_at < self._known_at:
                return  # somebody else has, meanwhile
            news, self._news = self._news, {}
            try:
                changes = await self._registry.exchange(list(news.values()), self._version)
            except UnavailableError as error:
                _log.warning("devices are answered by what was known last: %s", error)
                self._news = news | self._news
                self._known_at = time.monotonic() + _PATIENCE_S
                return
            if changes.version.life != self._version.life:
                self._records = {}
            self._records |= {record.device: record for record in changes.records}
            self._version, self.heartbeat_s = changes.version, changes.heartbeat_s
            self._known_at = time.monotonic()
