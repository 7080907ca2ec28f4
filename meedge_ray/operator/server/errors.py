"""What the API server refuses, in Kubernetes' words: code, reason, message and details of a Status object."""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Key(NamedTuple):
    """Names one object: the resource is `plural.group`, `plural` alone in the core group, both in the plural."""

    resource: str
    namespace: str  # "" where the resource knows no namespaces
    name: str


class Cause(NamedTuple):
    """One field that is wrong; what `Kind.problems` gives has the same three fields and serves as well."""

    field: str
    reason: str
    message: str


class ApiError(Exception):
    """An answer other than success."""

    def __init__(self, code: int, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details or {}

    def status(self) -> dict[str, Any]:
        """The error as a Kubernetes Status object."""
        status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        status |= {"message": self.message, "reason": self.reason, "code": self.code}
        return status | ({"details": self.details} if self.details else {})


class NotFoundError(ApiError):
    """There is no such object."""


class AlreadyExistsError(ApiError):
    """There is such an object already."""


class ExpiredError(ApiError):
    """What happened since a version is no longer known: list again."""


def not_found(key: Key) -> NotFoundError:
    """The object is not there."""
    return NotFoundError(404, "NotFound", f'{key.resource} "{key.name}" not found', _details(key))


def no_such_path() -> NotFoundError:
    """Nothing is served at this path."""
    return NotFoundError(404, "NotFound", "the server could not find the requested resource")


def already_exists(key: Key) -> AlreadyExistsError:
    """The object is there already."""
    return AlreadyExistsError(409, "AlreadyExists", f'{key.resource} "{key.name}" already exists', _details(key))


def conflict(
    key: Key,
    why: str = "the object has been modified; please apply your changes to the latest version and try again",
) -> ApiError:
    """Somebody else changed the object first."""
    message = f'Operation cannot be fulfilled on {key.resource} "{key.name}": {why}'
    return ApiError(409, "Conflict", message, _details(key))


def apply_conflict(causes: Iterable[tuple[str, str, str]]) -> ApiError:
    """Server-side apply meets fields of other managers: one cause a field, as `Cause`, reason FieldManagerConflict."""
    causes = list(causes)
    few = f"{len(causes)} conflict{'s' if len(causes) > 1 else ''}"
    listed = "; ".join(f"{message}: {field}" for field, _, message in causes)
    return ApiError(409, "Conflict", f"Apply failed with {few}: {listed}", {"causes": _causes(causes)})


def invalid(kind: str, group: str, name: str, causes: Iterable[tuple[str, str, str]]) -> ApiError:
    """The content breaks rules of its kind: one cause a field, as `Cause` or `FieldProblem`."""
    causes = list(causes)
    listed = [f"{field}: {message}" if field else message for field, _, message in causes]
    what = listed[0] if len(listed) == 1 else f"[{', '.join(listed)}]"
    message = f'{kind}{"." + group if group else ""} "{name}" is invalid: {what}'
    details = {"name": name, "group": group, "kind": kind, "causes": _causes(causes)}
    return ApiError(422, "Invalid", message, details)


def expired(message: str = "too old resource version") -> ExpiredError:
    """A version that watches and lists can no longer start from."""
    return ExpiredError(410, "Expired", message)


def forbidden(key: Key, why: str) -> ApiError:
    """Known who asks, and not allowed."""
    return ApiError(403, "Forbidden", f'{key.resource} "{key.name}" is forbidden: {why}', _details(key))


def unauthorized() -> ApiError:
    """No token, or a wrong one."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def bad_request(message: str) -> ApiError:
    """The request makes no sense whatever the state of the server."""
    return ApiError(400, "BadRequest", message)


def method_not_allowed() -> ApiError:
    """The resource is served, and not with this verb."""
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message)


def unsupported_media_type(message: str) -> ApiError:
    """The body has a content type that nobody reads here."""
    return ApiError(415, "UnsupportedMediaType", message)


def too_large(limit_bytes: int) -> ApiError:
    """The body is longer than the server reads."""
    return ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {limit_bytes}")


def internal(message: str) -> ApiError:
    """The server itself failed."""
    return ApiError(500, "InternalError", f"Internal error occurred: {message}")


def unavailable(message: str) -> ApiError:
    """The server is not there for this now, and may be later."""
    return ApiError(503, "ServiceUnavailable", message)


def _details(key: Key) -> dict[str, Any]:
    plural, _, group = key.resource.partition(".")
    details = {"name": key.name, "kind": plural}
    return details | ({"group": group} if group else {})


def _causes(causes: Iterable[tuple[str, str, str]]) -> list[dict[str, str]]:
    return [{"reason": reason, "message": message, "field": field} for field, reason, message in causes]
