"""What thin devices ask of their service: to be registered, a new credential, and to be heard."""

import time
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as InPath

from meedge_ray.actors.service.admission import Served, bearer_of
from meedge_ray.actors.service.credentials import LIFETIME_S, Claims
from meedge_ray.actors.service.registry import Presence, Record
from meedge_ray.actors.service.roster import Roster
from meedge_ray.api.devices import (
    CredentialBody,
    Desired,
    DeviceEntry,
    DeviceList,
    DeviceName,
    Heartbeat,
    HeartbeatAnswer,
    Registration,
)
from meedge_ray.domain.errors import InvalidInputError, NotFoundError

_Device = Annotated[DeviceName, InPath(description="the device's name")]


def device_routes(served: Served, roster: Roster) -> APIRouter:
    """Return the routes of devices, below /v1."""
    router = APIRouter(prefix="/devices", tags=["devices"])

    @router.get("")
    async def devices() -> DeviceList:
        """List the registered devices."""
        return DeviceList(devices=[_entry(served, presence) for presence in await roster.presences()])

    @router.post("/{device}")
    async def register(request: Request, device: _Device, body: Registration) -> CredentialBody:
        """Register a device by the enrolment token, or anew by its own credential, and give it a credential."""
        served.catalog.model(body.model)
        return _issued(served, await roster.register(device, body, bearer_of(request.scope).claims))

    @router.post("/{device}/credential")
    async def renew(request: Request, device: _Device) -> CredentialBody:
        """Give a device a new credential for the one it bears, which counts until shortly after this is first used."""
        return _issued(served, await roster.renew(bearer_of(request.scope).device(device)))

    @router.put("/{device}/status")
    async def report(request: Request, device: _Device, body: Heartbeat) -> HeartbeatAnswer:
        """Take note of how a device is, and tell it what is desired."""
        claims = bearer_of(request.scope).device(device)
        if body.device != device:
            raise InvalidInputError(
                f"that is how device {body.device!r} is", where="body.device", do=f"Say how {device!r} is"
            )
        desired = _desired(served, roster.heard(claims, body.model_dump_json()), claims.model)
        renew = claims.is_to_be_renewed(time.time()) or claims.model != desired.model
        return HeartbeatAnswer(desired=desired, renew=renew, heartbeat_s=roster.heartbeat_s)

    return router


def _issued(served: Served, record: Record) -> CredentialBody:
    model = record.desired.model if record.desired else record.model
    expires_at = time.time() + LIFETIME_S
    claims = Claims(device=record.device, model=model, generation=record.newest, expires_at=expires_at)
    credential = served.signer.credential(claims)
    return CredentialBody(credential=credential, expires_in_s=LIFETIME_S, heartbeat_s=record.heartbeat_s)


def _desired(served: Served, record: Record | None, model: str) -> Desired:
    desired = record.desired if record is not None and record.desired else Desired(model=model)
    try:
        sha256 = served.catalog.model(desired.model).sha256
    except NotFoundError:
        sha256 = None
    return desired.model_copy(update={"bundle_sha256": sha256})


def _entry(served: Served, presence: Presence) -> DeviceEntry:
    record, status = presence.record, presence.status
    return DeviceEntry(
        device=record.device,
        model=record.model,
        device_type=record.device_type,
        memory_bytes=record.memory_bytes,
        version=record.version,
        silent_s=presence.silent_s,
        is_silent=presence.is_silent,
        status=Heartbeat.model_validate_json(status) if status else None,
        desired=_desired(served, record, record.model),
    )
