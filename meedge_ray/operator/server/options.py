"""What a request asks for beside its body: query parameters, and the form of the answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.datastructures import QueryParams
from starlette.requests import Request

from meedge_ray.operator.server.errors import ApiError, bad_request
from meedge_ray.operator.server.tables import Include

Form = Literal["json", "table", "partial"]

_FORMS: dict[str, Form] = {
    "Table": "table",
    "PartialObjectMetadata": "partial",
    "PartialObjectMetadataList": "partial",
}
_INCLUDED: dict[str, Include] = {"": "Metadata", "None": "None", "Metadata": "Metadata", "Object": "Object"}
_TRUE, _FALSE = ("", "1", "t", "true"), ("0", "f", "false")
_MOST_ITEMS = 10_000
_MOST_SECONDS = 24 * 3600
_LONGEST_MANAGER = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How something is written."""

    manager: str
    named_manager: bool  # the request names it itself, as server-side apply must
    dry_run: bool
    strict: bool | None  # unknown fields are refused, or dropped; None: as is usual where they stand
    warns: bool  # and the client wants to know which
    force: bool
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """What is listed or watched."""

    label_selector: str
    field_selector: str
    limit: int | None
    continue_token: str | None
    version: int | None  # the resourceVersion asked for
    exact: bool  # exactly that version, or one not older
    timeout_s: float | None
    bookmarks: bool
    initial_events: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """How objects are answered; `include` says how much of each object comes with its row of a table."""

    form: Form
    include: Include


def write_options(request: Request) -> WriteOptions:
    """Read what a write says of itself.

    Raises:
        ApiError: 400, a parameter cannot be read.
    """
    query = request.query_params
    if any(value != "All" for value in query.getlist("dryRun")):
        raise bad_request("dryRun: Unsupported value: supported values: All")
    validation = query.get("fieldValidation", "")
    if validation not in ("", "Strict", "Warn", "Ignore"):
        raise bad_request("fieldValidation: Unsupported value: supported values: Ignore, Warn, Strict")
    manager = query.get("fieldManager", "")
    if len(manager) > _LONGEST_MANAGER or not manager.isprintable():
        raise bad_request(f"fieldManager: Invalid value: up to {_LONGEST_MANAGER} printable characters")
    agent = request.headers.get("user-agent", "").partition("/")[0].strip()[:_LONGEST_MANAGER]
    return WriteOptions(
        manager=manager or (agent if agent.isprintable() else "") or "unknown",
        named_manager=bool(manager),
        dry_run="dryRun" in query,
        strict=validation == "Strict" if validation else None,
        warns=validation != "Ignore",
        force=_flag(query, "force"),
    )


def list_options(query: QueryParams) -> ListOptions:
    """Read what a list or a watch is to hold.

    Raises:
        ApiError: 400, a parameter cannot be read.
    """
    match = query.get("resourceVersionMatch", "")
    if match not in ("", "Exact", "NotOlderThan"):
        raise bad_request("resourceVersionMatch: Unsupported value: supported values: Exact, NotOlderThan")
    timeout_s = _number(query, "timeoutSeconds", _MOST_SECONDS)
    return ListOptions(
        label_selector=query.get("labelSelector", ""),
        field_selector=query.get("fieldSelector", ""),
        limit=_number(query, "limit", _MOST_ITEMS) or None,
        continue_token=query.get("continue") or None,
        version=_version(query.get("resourceVersion", "")),
        exact=match == "Exact",
        timeout_s=timeout_s or None,
        bookmarks=_flag(query, "allowWatchBookmarks"),
        initial_events=_flag(query, "sendInitialEvents") if "sendInitialEvents" in query else None,
    )


def is_watch(query: QueryParams) -> bool:
    """Whether a list is to go on with what happens to it."""
    return _flag(query, "watch")


def answer_form(request: Request) -> AnswerForm:
    """Read which form of the answer the client would rather have, of those there are.

    Raises:
        ApiError: 406, none of them; 400, includeObject cannot be read.
    """
    include = _INCLUDED.get(request.query_params.get("includeObject", ""))
    if include is None:
        raise bad_request("includeObject: Unsupported value: supported values: None, Metadata, Object")
    for clause in request.headers.get("accept", "*/*").split(","):
        media_type, *parameters = (part.strip() for part in clause.split(";"))
        given = dict(part.partition("=")[::2] for part in parameters)
        if media_type in ("application/json", "application/*", "*/*", "") and (form := _form(given)):
            return AnswerForm(form=form, include=include)
    raise ApiError(406, "NotAcceptable", "only the following media types are accepted: application/json")


def delete_options(request: Request, body: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Return DeleteOptions as the body says them, or else the query.

    Raises:
        ApiError: 400, one cannot be read.
    """
    if not isinstance(body, Mapping):
        raise bad_request("DeleteOptions must be an object")
    options = {"propagationPolicy": request.query_params.get("propagationPolicy"), **body}
    if "dryRun" in request.query_params:
        options["dryRun"] = request.query_params.getlist("dryRun")
    return {name: value for name, value in options.items() if value is not None}


def _form(given: Mapping[str, str]) -> Form | None:
    wanted = given.get("as")
    if wanted is None:
        return "json"
    if given.get("g") != "meta.k8s.io" or given.get("v") != "v1":
        return None
    return _FORMS.get(wanted)


def _flag(query: QueryParams, name: str) -> bool:
    if name not in query:
        return False
    value = query[name].lower()
    if value not in _TRUE + _FALSE:
        raise bad_request(f"{name}: Invalid value: true or false")
    return value in _TRUE


def _number(query: QueryParams, name: str, most: int) -> int | None:
    if not (text := query.get(name, "")):
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        raise bad_request(f"{name}: Invalid value: a whole number from 0")
    return min(int(text), most)


def _version(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        raise bad_request("resourceVersion: Invalid value: not a version of this server")
    return int(text)
