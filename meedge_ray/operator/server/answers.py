"""Objects in the form that a client asked for: as they are, as rows of a table, or their metadata alone."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from meedge_ray.operator.server.errors import ApiError
from meedge_ray.operator.server.options import AnswerForm
from meedge_ray.operator.server.records import Object, Page, shared
from meedge_ray.operator.server.resource import Resource
from meedge_ray.operator.server.tables import partial_metadata, table


def encoded(content: Any) -> bytes:  # noqa: ANN401 - any JSON
    """Return JSON without spaces."""
    return json.dumps(content, separators=(",", ":")).encode()


def one(resource: Resource, content: Object, form: AnswerForm) -> bytes:
    """Return one object as the client wants it."""
    if form.form == "table":
        metadata = {"resourceVersion": content["metadata"].get("resourceVersion", "")}
        return encoded(_table(resource, [content], form, metadata))
    return encoded(partial_metadata(content) if form.form == "partial" else content)


def many(resource: Resource, page: Page, form: AnswerForm) -> bytes:
    """Return a page of objects as the client wants it."""
    metadata: Object = {"resourceVersion": str(page.version)}
    if page.continue_token:
        metadata["continue"] = page.continue_token
        if page.remaining is not None:
            metadata["remainingItemCount"] = page.remaining
    if form.form == "table":
        return encoded(_table(resource, page.items, form, metadata))
    if form.form == "partial":
        head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
        items = [encoded(partial_metadata(item)) for item in page.items]
    else:
        head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata}
        items = page.json
    return encoded(head)[:-1] + b',"items":[' + b",".join(items) + b"]}"


def line(resource: Resource, happened: str, content: bytes, form: AnswerForm) -> bytes:
    """Return one line of a watch: what happened to an object that is given as JSON."""
    if form.form != "json":
        content = _converted(resource, content, form, int(datetime.now(UTC).timestamp()))
    return b'{"type":"%s","object":%s}\n' % (happened.encode(), content)


def error_line(error: ApiError) -> bytes:
    """Return the line that ends a watch early."""
    return b'{"type":"ERROR","object":%s}\n' % encoded(error.status())


def bookmark(resource: Resource, version: int, form: AnswerForm, *, ends_initial_events: bool = False) -> bytes:
    """Return a line that says up to which version the watch has told everything."""
    metadata: Object = {"resourceVersion": str(version)}
    if ends_initial_events:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    content: Object = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
    if form.form == "table":
        content = {**_table(resource, [], form, metadata), "rows": [{"cells": [], "object": content}]}
    return b'{"type":"BOOKMARK","object":%s}\n' % encoded(content)


# A change is told to all watches within the second: its row is made for the first of them.
@lru_cache(maxsize=256)
def _converted(resource: Resource, content: bytes, form: AnswerForm, second: int) -> bytes:  # noqa: ARG001
    return one(resource, shared(content), form)


def _table(resource: Resource, items: Iterable[Object], form: AnswerForm, metadata: Object) -> Object:
    return table(
        resource.columns,
        items,
        now=datetime.now(UTC),
        include=form.include,
        view=resource.view,
        metadata=metadata,
    )
