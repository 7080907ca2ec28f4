"""The patches that clients send: JSON merge patch, JSON Patch, and as much of strategic merge as core objects need."""

import json
from collections.abc import Mapping
from typing import Any

from jsonpatch import JsonPatch, JsonPatchException, JsonPointer, JsonPointerException

from meedge_ray.operator.server.errors import ApiError, bad_request, too_large, unsupported_media_type

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"

_ENCODER = json.JSONEncoder(separators=(",", ":"))
_LARGEST_BYTES = 3 * 2**20
_LEVELS = 64
_MOST_OPERATIONS = 10_000
_SHOWN = 200  # characters of what went wrong
_MERGED_BY = {"ownerReferences": "uid", "conditions": "type"}
_SETS = ("finalizers",)


def patched(content: dict[str, Any], patch: Any, media_type: str) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Return the object with a patch applied; `content` stays as it is.

    Raises:
        ApiError: 415 for another media type, and for a strategic merge patch of anything but a core object; 400 for
            what is no patch, 422 for a patch that cannot be applied, 413 for one of too many operations or with too
            large a result.
    """
    result = _applied(content, patch, media_type)
    if not isinstance(result, dict):
        raise _unprocessable("the result is no object")
    if _size_bytes(result) > _LARGEST_BYTES:
        raise too_large(_LARGEST_BYTES)
    return result


def _applied(content: dict[str, Any], patch: Any, media_type: str) -> Any:  # noqa: ANN401
    if media_type == JSON_PATCH:
        return json_patch(content, patch)
    core = "/" not in str(content.get("apiVersion", ""))
    if media_type != MERGE and not (media_type == STRATEGIC and core):
        accepted = ", ".join((JSON_PATCH, MERGE, "application/apply-patch+yaml", *((STRATEGIC,) if core else ())))
        why = "the body of the request was in an unknown format - accepted media types include"
        raise unsupported_media_type(f"{why}: {accepted}")
    if not isinstance(patch, dict):
        raise bad_request("a merge patch is an object")
    return merge_patch(content, patch) if media_type == MERGE else strategic_merge_patch(content, patch)


def merge_patch(document: Any, patch: Any) -> Any:  # noqa: ANN401
    """RFC 7386. Returns a new document that shares with the old one what the patch leaves alone."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(document) if isinstance(document, Mapping) else {}
    for field, value in patch.items():
        if value is None:
            result.pop(field, None)
        else:
            result[field] = merge_patch(result.get(field), value)
    return result


def strategic_merge_patch(document: Any, patch: Any) -> Any:  # noqa: ANN401
    """Kubernetes' own merge, for what namespaces and events have.

    Like a merge patch, but finalizers, owner references and conditions are merged into the list that is there, and
    `$patch` and `$deleteFromPrimitiveList` take away. Orders of lists (`$setElementOrder`) are not kept.
    """
    if not isinstance(patch, Mapping):
        return patch
    if patch.get("$patch") == "replace":
        return {field: value for field, value in patch.items() if field != "$patch"}
    result = dict(document) if isinstance(document, Mapping) else {}
    for field, value in patch.items():
        directive, _, target = field.partition("/")
        if directive == "$deleteFromPrimitiveList":
            result[target] = [item for item in _items(result, target) if item not in _items(patch, field)]
        elif field.startswith("$"):
            continue
        elif value is None or (isinstance(value, Mapping) and value.get("$patch") == "delete"):
            result.pop(field, None)
        elif field in _SETS and isinstance(value, list):
            there = _items(result, field)
            result[field] = there + [item for item in value if item not in there]
        elif field in _MERGED_BY and isinstance(value, list):
            result[field] = _merged(_items(result, field), value, _MERGED_BY[field])
        else:
            result[field] = strategic_merge_patch(result.get(field), value)
    return result


def _items(document: Mapping[str, Any], field: str) -> list[Any]:
    value = document.get(field)
    return value if isinstance(value, list) else []


def _merged(there: list[Any], patch: list[Any], by: str) -> list[Any]:
    result = {_key(item, by): item for item in there}
    for item in patch:
        if isinstance(item, Mapping) and item.get("$patch") == "delete":
            result.pop(_key(item, by), None)
        else:
            result[_key(item, by)] = strategic_merge_patch(result.get(_key(item, by)), item)
    return list(result.values())


def _key(item: Any, by: str) -> str:  # noqa: ANN401
    if not isinstance(item, Mapping) or not isinstance(item.get(by), str):
        raise bad_request(f"an item of the list needs its {by}")
    return str(item[by])


def json_patch(document: dict[str, Any], operations: Any) -> Any:  # noqa: ANN401
    """RFC 6902. What `copy` and `move` carry is limited, so that no patch makes much of little.

    Raises:
        ApiError: 400 for what is no patch, 413 above 10,000 operations or 3 MiB carried, 422 where an operation fails.
    """
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise bad_request("a JSON patch is a list of operations")
    if len(operations) > _MOST_OPERATIONS:
        raise ApiError(
            413,
            "RequestEntityTooLarge",
            f"The allowed maximum operations in a JSON patch is {_MOST_OPERATIONS}, got {len(operations)}",
        )
    result: Any = json.loads(json.dumps(document))
    carried_bytes = 0
    for index, operation in enumerate(operations):
        try:
            carried_bytes += _carried_bytes(result, operation)
            if carried_bytes > _LARGEST_BYTES:
                raise too_large(_LARGEST_BYTES)
            result = JsonPatch([operation]).apply(result, in_place=True)
        except (JsonPatchException, JsonPointerException, LookupError, TypeError, ValueError) as error:
            raise _unprocessable(f"operation {index}: {str(error)[:_SHOWN]}") from None
    return result


def _carried_bytes(document: Any, operation: dict[str, Any]) -> int:  # noqa: ANN401
    levels = str(operation.get("path")).count("/")
    size_bytes = 0
    if operation.get("op") in ("copy", "move"):
        value = JsonPointer(operation["from"]).resolve(document)
        size_bytes = _size_bytes(value)
    else:
        value = operation.get("value")
    if levels + _levels(value) > _LEVELS:
        raise ValueError(f"the result would be nested deeper than {_LEVELS} levels")
    return size_bytes


def _levels(value: Any) -> int:  # noqa: ANN401
    count, level = 0, [value]
    while level:
        count += 1
        containers = [item for item in level if isinstance(item, (dict, list))]
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return count


def _size_bytes(value: Any) -> int:  # noqa: ANN401
    return len(_ENCODER.encode(value))


def _unprocessable(why: str) -> ApiError:
    message = f"the server rejected our request due to an error in our request: {why}"
    return ApiError(422, "Invalid", message)
