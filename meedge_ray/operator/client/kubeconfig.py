"""Kubeconfig files: where an API server is, and how to get in."""

import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from meedge_ray.domain.errors import InvalidInputError, NotFoundError

_DEFAULT_NAMESPACE = "default"
# What would change how the server is reached or who asks, and is not done here: silence would mislead.
_NOT_READ = {
    "cluster": ("proxy-url", "tls-server-name"),
    "user": ("exec", "auth-provider", "username", "as"),
}
_WORDS = {"dict": "an object", "list": "a list", "str": "text"}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One context of a kubeconfig. `tls` is None where the server speaks plain HTTP."""

    server: str
    namespace: str = _DEFAULT_NAMESPACE
    token: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None


def read_kubeconfig(paths: Path | Sequence[Path]) -> Connection:
    """Return what the current context says. Of several files the first that names a thing counts, as in Kubernetes.

    Raises:
        NotFoundError: none of the files is there, or a file they name is not.
        InvalidInputError: they cannot be understood; the field is named.
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    there = [path for path in paths if path.is_file()]
    if not there:
        raise NotFoundError(
            "no such file",
            where=f"kubeconfig {os.pathsep.join(map(str, paths))}",
            do="Run `meedge up`, or name another with --kubeconfig or KUBECONFIG",
        )
    config = _Merged([(path, _load(path)) for path in there])
    context, where = config.named("contexts", "context", config.current())
    cluster, cluster_at = config.named("clusters", "cluster", _text(context, "cluster", where))
    user: _Found = ({}, where)
    if context.get("user"):
        user = config.named("users", "user", _text(context, "user", where))
    for kind, (entry, at) in (("cluster", (cluster, cluster_at)), ("user", user)):
        for name in _NOT_READ[kind]:
            if name in entry:
                raise InvalidInputError("this is not understood here", where=f"{at}.{name}", do="Use a token")
    server = _text(cluster, "server", cluster_at)
    if not server.startswith(("http://", "https://")):
        raise InvalidInputError(f"{server!r} is no URL", where=f"{cluster_at}.server", do="Write https://HOST:PORT")
    return Connection(
        server=server.rstrip("/"),
        namespace=context.get("namespace") or _DEFAULT_NAMESPACE,
        token=_token(*user),
        tls=_tls(cluster, cluster_at, *user) if server.startswith("https://") else None,
    )


_Found = tuple[dict[str, Any], "_At"]


@dataclass(frozen=True, slots=True)
class _At:
    """A place in a file, for messages; paths inside the file start at the file's folder."""

    file: Path
    place: str

    def __str__(self) -> str:
        return f"{self.file}: {self.place}"


class _Merged:
    def __init__(self, files: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
        self._files = files

    def current(self) -> str:
        for path, content in self._files:
            if name := content.get("current-context"):
                return _checked(name, str, f"{path}: current-context")
        raise InvalidInputError("no current context is set", where=f"{self._files[0][0]}: current-context")

    def named(self, section: str, kind: str, name: str) -> _Found:
        for path, content in self._files:
            entries = _checked(content.get(section) or [], list, f"{path}: {section}")
            for index, entry in enumerate(entries):
                where = f"{path}: {section}[{index}]"
                if _checked(entry, dict, where).get("name") == name:
                    return _checked(entry.get(kind) or {}, dict, f"{where}.{kind}"), _At(
                        path, f"{section}[{index}].{kind}"
                    )
        raise InvalidInputError(f"there is no {kind} {name!r}", where=f"{self._files[0][0]}: {section}")


def _load(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot be read ({error})", where=str(path)) from error
    except yaml.YAMLError as error:
        raise InvalidInputError(f"is no YAML ({' '.join(str(error).split())})", where=str(path)) from error
    return _checked(content or {}, dict, str(path))


def _checked(value: Any, kind: type[_T], where: str) -> _T:  # noqa: ANN401 - any YAML
    if not isinstance(value, kind):
        raise InvalidInputError(f"must be {_WORDS[kind.__name__]}", where=where)
    return value


def _text(entry: Mapping[str, Any], name: str, at: _At) -> str:
    return _checked(entry.get(name), str, f"{at}.{name}")


def _token(user: Mapping[str, Any], at: _At) -> str:
    if user.get("token"):
        return _text(user, "token", at).strip()
    if user.get("tokenFile"):
        return _read(user, "tokenFile", at).decode("utf-8", "replace").strip()
    return ""


def _tls(cluster: Mapping[str, Any], cluster_at: _At, user: Mapping[str, Any], user_at: _At) -> ssl.SSLContext:
    authority = _pem(cluster, "certificate-authority", cluster_at)
    certificate, key = _pem(user, "client-certificate", user_at), _pem(user, "client-key", user_at)
    try:
        context = ssl.create_default_context(cadata=authority.decode("ascii", "replace") if authority else None)
    except ssl.SSLError as error:
        raise InvalidInputError("is no certificate", where=f"{cluster_at}.certificate-authority") from error
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate and key:
        # The one way in is through a file; only this user can read it, and it is gone at once.
        with tempfile.NamedTemporaryFile() as file:
            file.write(certificate + b"\n" + key)
            file.flush()
            try:
                context.load_cert_chain(file.name)
            except ssl.SSLError as error:
                raise InvalidInputError(
                    "certificate and key do not fit", where=f"{user_at}.client-certificate"
                ) from error
    return context


def _pem(entry: Mapping[str, Any], name: str, at: _At) -> bytes | None:
    if entry.get(f"{name}-data"):
        try:
            return base64.b64decode(_text(entry, f"{name}-data", at), validate=True)
        except binascii.Error as error:
            raise InvalidInputError("is no base64", where=f"{at}.{name}-data") from error
    return _read(entry, name, at) if entry.get(name) else None


def _read(entry: Mapping[str, Any], name: str, at: _At) -> bytes:
    path = at.file.parent / _text(entry, name, at)
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"cannot read {path} ({error.strerror})", where=f"{at}.{name}") from error
