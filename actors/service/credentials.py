"""Credentials of thin devices: signed, so that every replica can tell them by the service's secret alone."""

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from meedge_ray.bundle.files import write_atomically
from meedge_ray.domain.errors import CredentialError, UnavailableError

LIFETIME_S = 7 * 86_400.0
RENEWED_AFTER_S = 86_400.0

_PREFIX = "mdc1"
_ENROL = "mde1"
_LONGEST = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a credential says: whose it is, what for, its generation, and until when it counts (Unix seconds).

    Of a device's credentials each has a greater generation than those before it.
    """

    device: str
    model: str
    generation: int
    expires_at: float

    def is_to_be_renewed(self, now: float) -> bool:
        """Whether it is old enough to be replaced."""
        return now > self.expires_at - LIFETIME_S + RENEWED_AFTER_S


class Signer:
    """Issues credentials and tells its own from others. Each purpose has a key of its own, derived from the secret."""

    def __init__(self, secret: bytes) -> None:
        """Derive the keys; see `device_secret`."""
        self._key = hmac.digest(secret, b"meedge device credential v1", hashlib.sha256)
        enrolment = hmac.digest(secret, b"meedge enrolment v1", hashlib.sha256)
        self.enrolment_token = f"{_ENROL}.{_text(enrolment)}"

    def credential(self, claims: Claims) -> str:
        """Return the credential that says this."""
        content = [claims.device, claims.model, claims.generation, claims.expires_at]
        payload = f"{_PREFIX}.{_text(json.dumps(content).encode())}"
        return f"{payload}.{self._signature(payload)}"

    def claims(self, credential: str, now: float) -> Claims:
        """Return what a credential says.

        Raises:
            CredentialError: it is none of this signer's, or has expired.
        """
        payload, _, signature = credential.rpartition(".")
        is_ours = hmac.compare_digest(signature.encode(), self._signature(payload).encode())
        if len(credential) > _LONGEST or not is_ours:
            raise CredentialError(
                "the credential is forged, damaged, or of another service",
                where="header Authorization",
                do="Register with this service's enrolment token",
            )
        device, model, generation, expires_at = json.loads(_bytes(payload.partition(".")[2]))
        if now >= expires_at:
            raise CredentialError(
                "the credential has expired",
                where="header Authorization",
                do="Register again with the enrolment token; check the clock of the service if that is wrong",
            )
        return Claims(device=device, model=model, generation=generation, expires_at=expires_at)

    def _signature(self, payload: str) -> str:
        return _text(hmac.digest(self._key, payload.encode(), hashlib.sha256))


def is_credential(bearer: str) -> bool:
    """Return whether that is meant to be a device's credential."""
    return bearer.startswith(f"{_PREFIX}.")


def device_secret(token: str | Path) -> bytes:
    """Return the secret that a service's devices are known by.

    It lies beside the token's file, under its name with `.devices`, made at the first call, so that a new token
    throws no device out. Where there is no file, or nothing can be written beside it, the token itself is the secret.
    """
    if isinstance(token, str):
        return token.encode()
    path = beside(token, "devices")
    if not path.exists():
        with suppress(UnavailableError):
            _write_once(path, secrets.token_hex(32).encode())
    return (path if path.exists() else token).read_bytes().strip()


def enrolment_token(token: str | Path) -> str:
    """Return what lets devices register with the service of that token, or token's file, and do nothing else."""
    return Signer(device_secret(token)).enrolment_token


def beside(token_file: Path, kind: str) -> Path:
    """Return where a service keeps something of its devices."""
    return token_file.with_name(f"{token_file.name}.{kind}")


def _write_once(path: Path, data: bytes) -> None:
    # Of several replicas that come at once one makes it, and all have the same.
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    write_atomically(draft, data, private=True)
    with suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return binascii.a2b_base64(text.translate(str.maketrans("-_", "+/")) + "=" * (-len(text) % 4))
