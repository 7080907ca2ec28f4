"""The registry of a service's thin devices: how each is, which credential counts, and what it is to do.

What must not be forgotten is in a file: the generations of credentials, and whose were revoked. How the devices are
is in memory alone: after a restart they say so again within seconds. Should the file be lost, a credential that was
signed stands for itself: the newest one that comes counts, and replaces those before it.
"""

import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from meedge_ray.actors.service.credentials import Claims
from meedge_ray.actors.service.rhythm import HEARTBEAT_S, heartbeat_s, silent_after_s
from meedge_ray.api.devices import Desired, Registration
from meedge_ray.domain.errors import CredentialError, InvalidInputError, UnavailableError

OVERLAP_S = 30.0  # that requests under way may take after a credential was replaced
_MOST_DEVICES = 20_000


class TakenError(InvalidInputError):
    """Another device has that name."""

    http_status = 409


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is kept of a device.

    Of its credentials' generations `newest` was issued last, `current` used last, and `former` counts until
    `former_until` (Unix seconds). `declared_by` is the uid of the service whose EdgeDevice stands for it, or empty.
    `heartbeat_s` is how often it was last told to say how it is.
    """

    device: str
    model: str
    device_type: str | None = None
    memory_bytes: int | None = None
    version: str = ""
    newest: int
    current: int
    former: int = 0
    former_until: float = 0.0
    is_revoked: bool = False
    heartbeat_s: float = HEARTBEAT_S
    declared_by: str = ""
    desired: Desired | None = None

    def refusal(self, generation: int, now: float) -> str:
        """Return what is the matter with a credential of that generation, empty if nothing is.

        One that is newer than all that is known of was issued all the same: it is signed.
        """
        if generation > self.newest:
            return ""
        if self.is_revoked:
            return "the credential was revoked"
        is_former = generation == self.former and now < self.former_until
        counts = generation in (self.newest, self.current) or is_former
        return "" if counts else "the credential was replaced by another"


@dataclass(frozen=True, slots=True)
class News:
    """What a replica has heard from a device, and told it.

    Which credential it bears, how it is (JSON of a Heartbeat), and how often it is to say so.
    """

    claims: Claims
    status: str | None
    told_s: float | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """How much of a registry is known: of which of its lives, and of how many of its changes."""

    life: int = 0
    changes: int = 0


@dataclass(frozen=True, slots=True)
class Changes:
    """The records that changed since a version, and how often devices are to be told to say how they are."""

    version: Version
    heartbeat_s: float
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Presence:
    """A device: what is kept of it, for how long it has been silent, and what it said last (JSON of a Heartbeat)."""

    record: Record
    silent_s: float
    status: str | None

    @property
    def is_silent(self) -> bool:
        """Whether it has missed what it was told to say."""
        return self.silent_s > silent_after_s(self.record.heartbeat_s)


_ROW = TypeAdapter(Record)


class Registry:
    """Every method is quick, and called by one thread at a time."""

    def __init__(self, path: Path | None = None) -> None:
        """Go on as the file says; without one nothing outlives the process."""
        self._database = _opened(path)
        self._life = time.time_ns()
        rows = self._database.execute("SELECT content FROM devices")
        self._records = {record.device: record for record in (_ROW.validate_json(content) for (content,) in rows)}
        # What they were told since they were written is not known any more, but why they were.
        for device, record in self._records.items():
            self._records[device] = replace(record, heartbeat_s=max(record.heartbeat_s, self.heartbeat_s))
        self._since = dict.fromkeys(self._records, time.monotonic())
        self._said: dict[str, str] = {}
        self._unused: set[str] = set()
        self._changes = 0
        self._changed: dict[str, int] = dict.fromkeys(self._records, 0)  # the last change comes last

    @property
    def heartbeat_s(self) -> float:
        """How often a device is to say how it is, by how many there are that were not revoked."""
        return heartbeat_s(sum(not record.is_revoked for record in self._records.values()))

    def register(self, device: str, registration: Registration, proof: Claims | None) -> Record:
        """Note a device and return its record, whose newest generation is for it to have.

        Args:
            device: its name.
            registration: what it says it is.
            proof: the credential of that name it bears, if it does.

        Raises:
            TakenError: a device of that name is at work, and this one does not prove to be it.
            UnavailableError: there are too many.
        """
        before = self._records.get(device)
        if before is None and len(self._records) >= _MOST_DEVICES:
            raise UnavailableError(
                f"the service has {_MOST_DEVICES} devices already", where=f"device {device}", do="Take another service"
            )
        if before is not None and proof is None and self._is_at_work(before):
            raise TakenError(
                "a device of that name is at work",
                where=f"device {device}",
                do="Take another name; if it is this one, send its credential instead of the enrolment token, or wait "
                f"until the service has not heard of it for {silent_after_s(before.heartbeat_s):g} s",
            )
        if before is None or before.is_revoked:
            generation = _next(before)
            record = Record(device=device, model=registration.model, newest=generation, current=generation)
        else:
            record = replace(before, newest=_next(before))
        if before is None or proof is None:
            self._unused.add(device)
            self._since[device] = time.monotonic()
        said = {name: getattr(registration, name) for name in ("model", "device_type", "memory_bytes", "version")}
        self._keep([replace(record, **said, heartbeat_s=self.heartbeat_s)])
        return self._records[device]

    def renew(self, claims: Claims) -> Record:
        """Return the record of a device, whose newest generation is for it to have.

        The one it bears counts until the new one was used: an answer may be lost on its way.

        Raises:
            CredentialError: the one it bears does not count any more.
        """
        self._hear([News(claims, None)])
        record = self._records[claims.device]
        if refusal := record.refusal(claims.generation, time.time()):
            raise CredentialError(refusal, where="header Authorization", do="Register with the enrolment token")
        self._keep([replace(record, newest=_next(record), heartbeat_s=self.heartbeat_s)])
        return self._records[claims.device]

    def exchange(self, news: list[News], since: Version) -> Changes:
        """Take in what a replica has heard, and return what it does not know yet."""
        self._hear(news)
        known = since.changes if since.life == self._life else -1
        records = []
        for device, change in reversed(self._changed.items()):
            if change <= known:
                break
            records.append(self._records[device])
        return Changes(Version(self._life, self._changes), self.heartbeat_s, tuple(records))

    def presences(self) -> list[Presence]:
        """Return every device that was not revoked, by name."""
        return [self._presence(record) for _, record in sorted(self._records.items()) if not record.is_revoked]

    def desire(self, desired: dict[str, Desired], declared_by: str) -> None:
        """Note what devices are to do, and the uid of the service whose EdgeDevices say so."""
        self._keep(
            replace(self._records[device], desired=what, declared_by=declared_by)
            for device, what in desired.items()
            if device in self._records
        )

    def revoke(self, devices: list[str]) -> None:
        """Let none of the devices' credentials count any more; to come back they must register."""
        self._keep(replace(self._records[device], is_revoked=True) for device in devices if device in self._records)

    def _hear(self, news: Iterable[News]) -> None:
        now, changed = time.time(), []
        for each in news:
            claims, device = each.claims, each.claims.device
            before = self._records.get(device)
            if before is not None and before.refusal(claims.generation, now):
                continue  # revoked or replaced meanwhile
            self._since[device] = time.monotonic()
            self._unused.discard(device)
            if each.status is not None:
                self._said[device] = each.status
            generation = claims.generation
            record = before or Record(device=device, model=claims.model, newest=generation, current=generation)
            if each.told_s is not None:
                record = replace(record, heartbeat_s=each.told_s)
            if before is None:
                changed.append(record)
            elif generation > before.current:
                changed.append(
                    replace(
                        record,
                        newest=max(before.newest, generation),
                        current=generation,
                        former=before.current,
                        former_until=now + OVERLAP_S,
                        is_revoked=False,
                    )
                )
            else:
                self._records[device] = record  # not worth writing: the next heartbeat says it again
        self._keep(changed)

    def _is_at_work(self, record: Record) -> bool:
        is_used = not record.is_revoked and record.device not in self._unused
        return is_used and not self._presence(record).is_silent

    def _presence(self, record: Record) -> Presence:
        silent_s = time.monotonic() - self._since[record.device]
        return Presence(record, silent_s, self._said.get(record.device))

    def _keep(self, records: Iterable[Record]) -> None:
        records = list(records)
        if not records:
            return
        rows = [(record.device, _ROW.dump_json(record).decode()) for record in records]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO devices VALUES (?, ?)", rows)
        for record in records:
            self._changes += 1
            self._records[record.device] = record
            self._changed.pop(record.device, None)
            self._changed[record.device] = self._changes


def _next(record: Record | None) -> int:
    # By the clock, so that it is above all before it even where those are forgotten.
    return max(time.time_ns() // 1000, 0 if record is None else record.newest + 1)


def _opened(path: Path | None) -> Any:  # noqa: ANN401
    if path is not None:
        path.touch(mode=0o600)
    # Ray may call an actor from any thread, one at a time.
    database = sqlite3.connect(path or ":memory:", check_same_thread=False)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE IF NOT EXISTS devices (device TEXT PRIMARY KEY, content TEXT NOT NULL)")
    return database
