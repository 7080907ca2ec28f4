"""Bearer tokens: one file a user in the home's `tokens/` folder; the file's name is the user's."""

import hashlib
import hmac
import secrets
import time
from pathlib import Path

from meedge_ray.bundle.files import TEMPORARY_PREFIX, write_atomically
from meedge_ray.domain.errors import InvalidInputError

ADMIN = "admin"
_REREAD_SECONDS = 1.0
_LEAST_CHARACTERS = 16


class Tokens:
    """The tokens of a folder. A file put there or taken away counts within a second; one too short never counts."""

    def __init__(self, folder: Path) -> None:
        """Read the folder; on the first start it is made, with a token for `admin`.

        Raises:
            InvalidInputError: the administrator's token is too short to keep anyone out.
            UnavailableError: the folder cannot be written.
        """
        self._folder = folder
        path = folder / ADMIN
        if not path.exists():
            write_atomically(path, f"{secrets.token_urlsafe(32)}\n".encode(), private=True)
        self.admin = _token(path)
        if len(self.admin) < _LEAST_CHARACTERS:
            raise InvalidInputError(
                f"the token has under {_LEAST_CHARACTERS} characters",
                where=str(path),
                do="Delete the file: the next start makes a new one",
            )
        self._digests = self._read()
        self._read_at = time.monotonic()

    def user(self, authorization: str) -> str | None:
        """Return whose token an Authorization header holds, None if nobody's."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        if time.monotonic() - self._read_at > _REREAD_SECONDS:
            self._digests = self._read()
            self._read_at = time.monotonic()
        digest = _digest(token.strip())
        found = None
        for user, expected in self._digests.items():  # every one, so that the time taken tells nothing
            if hmac.compare_digest(digest, expected):
                found = user
        return found

    def _read(self) -> dict[str, bytes]:
        try:
            users = [path for path in self._folder.iterdir() if not path.name.startswith(TEMPORARY_PREFIX)]
        except OSError:
            return {}  # the folder was taken away: nobody comes in
        tokens = {path.name: _token(path) for path in users if path.is_file()}
        return {user: _digest(token) for user, token in tokens.items() if len(token) >= _LEAST_CHARACTERS}


def _token(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace").strip()
    except OSError:
        return ""  # unreadable, or just taken away


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
