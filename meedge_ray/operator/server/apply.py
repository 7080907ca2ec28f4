"""Server-side apply, and who manages which field: `metadata.managedFields` as Kubernetes keeps it."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from meedge_ray.operator.server.errors import ApiError, bad_request
from meedge_ray.operator.server.fieldsets import Fields, difference, intersection, paths, union, well_formed
from meedge_ray.operator.server.merging import (
    Schema,
    difference_of,
    fields_of,
    merged,
    with_parents,
    without,
)
from meedge_ray.operator.server.metadata import rfc3339

Entry = dict[str, Any]

_MANAGED = ("labels", "annotations", "finalizers", "ownerReferences", "generateName")
_IDENTITY = ("name", "namespace", "uid", "resourceVersion")
_MOST_UPDATERS, _OLD_UPDATERS = 10, "ancient-changes"
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_BEFORE_APPLY = "before-first-apply"
_LONGEST_MANAGER = 128
_NOTHING: Mapping[str, Any] = {"metadata": {}}
_TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA: Schema = {
    "type": "object",
    "properties": {
        "labels": _TEXTS,
        "annotations": _TEXTS,
        "finalizers": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "generateName": {"type": "string"},
        "ownerReferences": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["uid"],
            "items": {"type": "object", "x-kubernetes-map-type": "atomic"},
        },
    },
}


def recorded(
    before: Mapping[str, Any] | None,
    after: dict[str, Any],
    *,
    schema: Schema,
    manager: str,
    now: datetime,
    subresource: str = "",
) -> dict[str, Any]:
    """Return `after` with managedFields that say what this manager has changed, other than by applying.

    Args:
        before: the object as it is stored, None where it is created.
        after: as it is to be stored. Where it brings managedFields of its own these are taken instead of those stored,
            and `[{}]` forgets them, as Kubernetes has it; but not with a subresource.
        schema: of the whole object.
        manager: who writes.
        now: when.
        subresource: through which it is written, "" for none.
    """
    entries = _entries(before or _NOTHING, after, subresource)
    changed, removed = difference_of(_managed(before or _NOTHING), _managed(after), _typed(schema))
    if changed or removed:
        own = _identity(manager, "Update", after, subresource)
        entries = [
            {**entry, "fieldsV1": _reduced(entry, removed if _is(entry, own) else union(changed, removed))}
            for entry in entries
        ]
        if changed:
            entries = _with_fields(entries, own, changed, now)
    return _with_entries(after, _capped(entries))


def applied(
    live: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    *,
    schema: Schema,
    manager: str,
    now: datetime,
    force: bool = False,
    subresource: str = "",
) -> dict[str, Any]:
    """Return the live object with an applied configuration merged into it, and managedFields that say so.

    What the manager applied before and leaves out now is removed, unless others manage it as well.

    Args:
        live: the object as it is stored, None where applying creates it.
        config: what is applied.
        schema: of the whole object.
        manager: who applies.
        now: when.
        force: take fields from other managers.
        subresource: "status" applies the status alone, "" everything but the status.

    Raises:
        ApiError: 409 for fields that other managers hold another value of, unless forced, 400 for managedFields in the
            configuration and for lists with items that lack their keys or are there twice.
    """
    config, typed = _within(config, subresource), _typed(schema)
    fields = {step: node for step, node in fields_of(_managed(config), typed).items() if step != "f:metadata" or node}
    own = _identity(manager, "Apply", config, subresource)
    entries: list[Entry] = (live or _NOTHING)["metadata"].get("managedFields") or []
    if live and not entries:
        entries = [_first(live, typed, now)]
    others = [entry for entry in entries if not _is(entry, own)]
    last: Fields = next((entry["fieldsV1"] for entry in entries if _is(entry, own)), {})
    result = merged(live or {}, config, typed)
    result = without(result, _abandoned(last, [fields, *(entry["fieldsV1"] for entry in others)], typed), typed)
    changed, removed = difference_of(_managed(live or _NOTHING), _managed(result), typed)
    conflicts = [(entry, both) for entry in others if (both := intersection(entry["fieldsV1"], changed))]
    if conflicts and not force:
        raise _conflict(conflicts)
    kept = [{**entry, "fieldsV1": _reduced(entry, union(changed, removed))} for entry in others]
    mine = [entry for entry in entries if _is(entry, own)]
    if changed or removed or last != fields:
        mine = [_entry(own, fields, now)]
    return _with_entries(_synced(result, config, manager), _capped([*kept, *mine]))


def _synced(result: dict[str, Any], config: dict[str, Any], manager: str) -> dict[str, Any]:
    """Keep what client-side `kubectl apply` compares with up to date, so that users can go back to it."""
    annotations = result["metadata"].get("annotations")
    if manager != "kubectl" or not isinstance(annotations, dict) or _LAST_APPLIED not in annotations:
        return result
    metadata = dict(config["metadata"])
    metadata["annotations"] = {
        name: value for name, value in (metadata.get("annotations") or {}).items() if name != _LAST_APPLIED
    }
    text = json.dumps({**config, "metadata": metadata}, sort_keys=True, separators=(",", ":")) + "\n"
    return {**result, "metadata": {**result["metadata"], "annotations": {**annotations, _LAST_APPLIED: text}}}


def _typed(schema: Schema) -> Schema:
    return {**schema, "properties": {**schema.get("properties", {}), "metadata": _METADATA}}


def _managed(content: Mapping[str, Any]) -> dict[str, Any]:
    """What of an object is managed: not what names it, and not what the server writes."""
    metadata = content.get("metadata") or {}
    result = {name: value for name, value in content.items() if name not in ("apiVersion", "kind", "metadata")}
    return {**result, "metadata": {name: metadata[name] for name in _MANAGED if name in metadata}}


def _within(config: Mapping[str, Any], subresource: str) -> dict[str, Any]:
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise bad_request("metadata must be an object")
    if metadata.get("managedFields"):
        raise bad_request("metadata.managedFields must be nil")
    if subresource == "status":
        metadata = {name: metadata[name] for name in _IDENTITY if name in metadata}
        config = {name: config[name] for name in ("apiVersion", "kind", "status") if name in config}
    else:
        config = {name: value for name, value in config.items() if name != "status"}
    return {**config, "metadata": metadata}


def _abandoned(last: Fields, held: list[Fields], schema: Schema) -> Fields:
    everything: Fields = {"f:metadata": {}}  # it names the object, whoever manages what else is in it
    for fields in held:
        everything = union(everything, fields)
    return difference(with_parents(last, schema), with_parents(everything, schema))


def _entries(live: Mapping[str, Any], after: Mapping[str, Any], subresource: str) -> list[Entry]:
    stored: list[Entry] = live["metadata"].get("managedFields") or []
    given = after["metadata"].get("managedFields")
    if subresource or not given or given == stored:
        return stored
    if given == [{}]:
        return []
    return given if isinstance(given, list) and all(_is_entry(entry) for entry in given) else stored


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("manager"), str)
        and len(entry["manager"]) <= _LONGEST_MANAGER
        and entry.get("operation") in ("Apply", "Update")
        and entry.get("fieldsType", "FieldsV1") == "FieldsV1"
        and isinstance(entry.get("apiVersion"), str)
        and isinstance(entry.get("time", ""), str)
        and isinstance(entry.get("subresource", ""), str)
        and well_formed(entry.get("fieldsV1"))
    )


def _identity(manager: str, operation: str, content: Mapping[str, Any], subresource: str) -> Entry:
    identity = {"manager": manager, "operation": operation, "apiVersion": content["apiVersion"]}
    return identity | ({"subresource": subresource} if subresource else {})


def _is(entry: Entry, own: Entry) -> bool:
    same = all(entry.get(name) == own.get(name) for name in ("manager", "operation", "subresource"))
    return same and (own["operation"] == "Apply" or entry["apiVersion"] == own["apiVersion"])


def _entry(own: Entry, fields: Fields, now: datetime) -> Entry:
    return {**own, "time": rfc3339(now), "fieldsType": "FieldsV1", "fieldsV1": fields}


def _first(live: Mapping[str, Any], schema: Schema, now: datetime) -> Entry:
    everything, _ = difference_of(_managed(_NOTHING), _managed(live), schema)
    return _entry(_identity(_BEFORE_APPLY, "Update", live, ""), everything, now)


def _reduced(entry: Entry, lost: Fields) -> Fields:
    return difference(entry["fieldsV1"], lost)


def _with_fields(entries: list[Entry], own: Entry, changed: Fields, now: datetime) -> list[Entry]:
    fields = changed
    for entry in entries:
        if _is(entry, own):
            fields = union(entry["fieldsV1"], changed)
    return [*(entry for entry in entries if not _is(entry, own)), _entry(own, fields, now)]


def _capped(entries: list[Entry]) -> list[Entry]:
    """The oldest of too many managers that update become one."""
    entries = sorted((entry for entry in entries if entry["fieldsV1"]), key=_order)
    updaters = [entry for entry in entries if entry["operation"] == "Update"]
    if len(updaters) <= _MOST_UPDATERS:
        return entries
    old = updaters[: len(updaters) - _MOST_UPDATERS + 1]
    fields: Fields = {}
    for entry in old:
        fields = union(fields, entry["fieldsV1"])
    bucket = {name: value for name, value in old[-1].items() if name != "subresource"}
    bucket |= {"manager": _OLD_UPDATERS, "fieldsV1": fields}
    return sorted([bucket, *(entry for entry in entries if entry not in old)], key=_order)


def _order(entry: Entry) -> tuple[str, ...]:
    return tuple(entry.get(name, "") for name in ("operation", "time", "manager", "apiVersion", "subresource"))


def _with_entries(content: Mapping[str, Any], entries: list[Entry]) -> dict[str, Any]:
    metadata = {name: value for name, value in content["metadata"].items() if name != "managedFields"}
    return {**content, "metadata": {**metadata, "managedFields": entries} if entries else metadata}


def _conflict(conflicts: list[tuple[Entry, Fields]]) -> ApiError:
    named = sorted((_in_words(entry), list(paths(fields))) for entry, fields in conflicts)
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {manager}", "field": path}
        for manager, fields in named
        for path in fields
    ]
    if len(causes) == 1:
        message = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        lines = [
            f"conflicts with {manager}:\n" + "\n".join(f"- {path}" for path in fields) for manager, fields in named
        ]
        message = f"Apply failed with {len(causes)} conflicts: " + "\n".join(lines)
    return ApiError(409, "Conflict", message, {"causes": causes})


def _in_words(entry: Entry) -> str:
    through = f' with subresource "{entry["subresource"]}"' if entry.get("subresource") else ""
    how = f" using {entry['apiVersion']}" if entry["operation"] == "Update" else ""
    return f'"{entry["manager"]}"{through}{how}'
