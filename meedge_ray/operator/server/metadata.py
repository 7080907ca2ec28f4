"""The life of an object: what the server writes into its metadata when it is created, changed and deleted."""

import re
import secrets
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from meedge_ray.operator.server.errors import ApiError, Cause, Key, bad_request, conflict, invalid
from meedge_ray.operator.server.selectors import key_problem, value_problem

ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LONGEST_NAME, _LONGEST_LABEL = 253, 63
_SUFFIX_LETTERS, _SUFFIX_LENGTH = "bcdfghjklmnpqrstvwxz2456789", 5  # no vowels: no words by chance
_ANNOTATIONS_BYTES = 256 * 2**10
_USERS = ("name", "namespace", "labels", "annotations", "finalizers", "ownerReferences", "managedFields")
_SERVERS = ("generateName", "uid", "resourceVersion", "generation", "creationTimestamp")
_DELETION = ("deletionTimestamp", "deletionGracePeriodSeconds")
_KNOWN = frozenset((*_USERS, *_SERVERS, *_DELETION, "selfLink"))
_OWNER = ("apiVersion", "kind", "name", "uid")
_POLICIES = ("Background", "Foreground", "Orphan")


def rfc3339(moment: datetime) -> str:
    """Return the moment as Kubernetes writes it, in whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def created(content: dict[str, Any], *, namespace: str, now: datetime, custom: bool) -> dict[str, Any]:
    """Return a new object as it is stored. `content` stays as it is, and says its apiVersion and kind.

    Args:
        content: what the client sent. Its status is dropped: it is written through /status.
        namespace: of the request, "" for what has none.
        now: the time of creation.
        custom: whether it is of one of our kinds, which count generations, and not one of the core's.

    Raises:
        ApiError: 400 for another namespace than the request's or a resourceVersion, 422 for wrong metadata.
    """
    given = _given(content)
    if given.get("resourceVersion"):
        raise bad_request("resourceVersion should not be set on objects to be created")
    _check_namespace(given, namespace)
    name, prefix = given.get("name"), given.get("generateName")
    if not name and isinstance(prefix, str) and prefix:
        suffix = "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(_SUFFIX_LENGTH))
        name = prefix[: _LONGEST_LABEL - _SUFFIX_LENGTH] + suffix
    metadata = {field: given[field] for field in (*_USERS, "generateName") if given.get(field)}
    metadata |= {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": rfc3339(now)}
    metadata |= ({"namespace": namespace} if namespace else {}) | ({"generation": 1} if custom else {})
    result = {**content, "metadata": metadata}
    result.pop("status", None)
    _raise(result, [*_unknown(given), *_name_problems(metadata, custom), *_problems(metadata)])
    return result


def updated(
    key: Key, before: dict[str, Any], content: dict[str, Any], *, subresource: str = "", needs_version: bool = False
) -> dict[str, Any]:
    """Return what a change of an object stores; neither argument is changed.

    Args:
        key: names the object.
        before: the object as it is stored.
        content: what it is to become. Without resourceVersion or uid, those stored are meant.
        subresource: "status" changes the status alone, "" everything but the status.
        needs_version: refuse content without resourceVersion, as for a PUT of one of our kinds.

    Raises:
        ApiError: 409 where resourceVersion or uid are not those stored, 400 for another name or namespace, 422 for
            wrong metadata, a change of what cannot change, and new finalizers while it is being deleted.
    """
    given, old = _given(content), before["metadata"]
    _check_same(key, given, old)
    if needs_version and not given.get("resourceVersion"):
        cause = Cause(
            "metadata.resourceVersion", "FieldValueInvalid", "Invalid value: 0x0: must be specified for an update"
        )
        _raise(before, [cause])
    if subresource == "status":
        managers = {"managedFields": given["managedFields"]} if given.get("managedFields") else {}
        return _with_status({**before, "metadata": {**old, **managers}}, content)
    metadata = {field: given[field] for field in _USERS if given.get(field)}
    metadata |= {field: old[field] for field in (*_SERVERS, *_DELETION, "name", "namespace") if field in old}
    result = _with_status({**content, "metadata": metadata}, before)
    _raise(result, [*_unknown(given), *_immutable(given, old), *_new_finalizers(metadata, old), *_problems(metadata)])
    if "generation" in old and _desired(result) != _desired(before):
        metadata["generation"] = old["generation"] + 1
    return result


def finished(content: Mapping[str, Any]) -> bool:
    """Return whether the object was being deleted and nothing holds it any longer: the change deletes it."""
    return "deletionTimestamp" in content["metadata"] and not content["metadata"].get("finalizers")


def deleted(
    key: Key, before: dict[str, Any], *, now: datetime, options: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Return the object marked for deletion, or None: nothing holds it, and it is gone at once.

    Args:
        key: names the object.
        before: the object as it is stored; it stays as it is.
        now: the time of deletion.
        options: a DeleteOptions body, of which preconditions, propagationPolicy and orphanDependents count. Foreground
            and Orphan hold the object with a finalizer until the garbage collector has done its part.

    Raises:
        ApiError: 409 where a precondition does not hold, 422 for an unknown policy.
    """
    options = options or {}
    old = before["metadata"]
    _check_preconditions(key, old, options)
    finalizers = [name for name in old.get("finalizers") or () if name not in (ORPHAN, FOREGROUND)]
    finalizers += _policy_finalizers(old, options)
    if not finalizers:
        return None
    metadata = {**old, "finalizers": finalizers}
    if "deletionTimestamp" not in old:
        metadata |= {"deletionTimestamp": rfc3339(now), "deletionGracePeriodSeconds": 0}
        if "generation" in old:
            metadata["generation"] = old["generation"] + 1  # so does Kubernetes: what is desired has changed
    return {**before, "metadata": metadata}


def _given(content: Mapping[str, Any]) -> dict[str, Any]:
    metadata = content.get("metadata")
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise bad_request("metadata must be an object")
    return metadata


def _check_namespace(given: Mapping[str, Any], namespace: str) -> None:
    if given.get("namespace") not in (None, "", namespace):
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")


def _check_same(key: Key, given: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    _check_namespace(given, key.namespace)
    if given.get("name") not in (None, "", key.name):
        raise bad_request(f"the name of the object ({given['name']}) does not match the name on the URL ({key.name})")
    if given.get("uid") not in (None, "", old["uid"]):
        raise _precondition_failed(key, "UID", given["uid"], old["uid"])
    if given.get("resourceVersion") not in (None, "", old.get("resourceVersion")):
        raise conflict(key)


def _check_preconditions(key: Key, old: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    preconditions = options.get("preconditions") or {}
    if not isinstance(preconditions, Mapping):
        raise bad_request("preconditions must be an object")
    for name, field in (("UID", "uid"), ("ResourceVersion", "resourceVersion")):
        if preconditions.get(field) not in (None, "", old.get(field)):
            raise _precondition_failed(key, name, preconditions[field], old.get(field))


def _precondition_failed(key: Key, name: str, given: object, there: object) -> ApiError:
    return conflict(key, f"Precondition failed: {name} in precondition: {given}, {name} in object meta: {there}")


def _policy_finalizers(old: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    policy, orphan = options.get("propagationPolicy"), options.get("orphanDependents")
    if policy is not None and orphan is not None:
        raise _wrong_option("orphanDependents and deletionPropagation cannot be both set", policy)
    if policy is None and orphan is None:
        return [name for name in old.get("finalizers") or () if name in (ORPHAN, FOREGROUND)]
    if policy is not None and policy not in _POLICIES:
        raise _wrong_option('supported values: "Foreground", "Background", "Orphan"', policy)
    return {"Orphan": [ORPHAN], "Foreground": [FOREGROUND]}.get("Orphan" if orphan else str(policy), [])


def _wrong_option(why: str, value: object) -> ApiError:
    cause = Cause("propagationPolicy", "FieldValueInvalid", f"Invalid value: {value!r}: {why}")
    return invalid("DeleteOptions", "meta.k8s.io", "", [cause])


def _with_status(content: dict[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    result = {field: value for field, value in content.items() if field != "status"}
    return {**result, "status": source["status"]} if source.get("status") is not None else result


def _desired(content: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in content.items() if field not in ("metadata", "status")}


def _raise(content: Mapping[str, Any], causes: list[Cause]) -> None:
    if causes:
        group = str(content.get("apiVersion", "")).rpartition("/")[0]
        name = str(content["metadata"].get("name") or "")
        raise invalid(str(content.get("kind", "")), group, name, causes)


def _wrong(field: str, why: str) -> Cause:
    return Cause(f"metadata.{field}", "FieldValueInvalid", f"Invalid value: {why}")


def _unknown(given: Mapping[str, Any]) -> list[Cause]:
    fields = [field for field in given if field not in _KNOWN]
    return [Cause(f"metadata.{field}", "FieldValueForbidden", "Forbidden: unknown field") for field in fields]


def _immutable(given: Mapping[str, Any], old: Mapping[str, Any]) -> list[Cause]:
    fields = ("creationTimestamp", *_DELETION)
    changed = [field for field in fields if given.get(field) is not None and given[field] != old.get(field)]
    return [_wrong(field, f"{given[field]!r}: field is immutable") for field in changed]


def _new_finalizers(metadata: Mapping[str, Any], old: Mapping[str, Any]) -> list[Cause]:
    finalizers = metadata.get("finalizers")
    if "deletionTimestamp" not in old or not isinstance(finalizers, list):
        return []
    new = [name for name in finalizers if name not in (old.get("finalizers") or ())]
    why = "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers"
    return [Cause("metadata.finalizers", "FieldValueForbidden", f"{why} {new}")] if new else []


def _name_problems(metadata: Mapping[str, Any], custom: bool) -> list[Cause]:
    name = metadata.get("name")
    if not name:
        return [Cause("metadata.name", "FieldValueRequired", "Required value: name or generateName is required")]
    longest = _LONGEST_LABEL if custom or "namespace" not in metadata else _LONGEST_NAME
    if not isinstance(name, str) or len(name) > longest or not _NAME.fullmatch(name) or ".." in name:
        why = (
            f"must be at most {longest} lower case alphanumeric characters, '-' or '.', and must start and end with an "
            "alphanumeric character"
        )
        return [_wrong("name", f"{str(name)[:_LONGEST_NAME]!r}: {why}")]
    return []


def _problems(metadata: Mapping[str, Any]) -> list[Cause]:
    return [
        *_text_problems(metadata),
        *_finalizer_problems(metadata.get("finalizers", [])),
        *_owner_problems(metadata.get("ownerReferences", [])),
    ]


def _text_problems(metadata: Mapping[str, Any]) -> list[Cause]:
    causes = []
    for field in ("labels", "annotations"):
        entries = metadata.get(field, {})
        if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
            causes.append(_wrong(field, "must be an object of texts; write other values in quotes"))
            continue
        causes += [_wrong(field, f"{key!r}: {why}") for key in entries if (why := key_problem(key))]
        if field == "labels":
            causes += [
                _wrong(field, f"{value!r}: {why}") for value in entries.values() if (why := value_problem(value))
            ]
        elif sum(len(key.encode()) + len(value.encode()) for key, value in entries.items()) > _ANNOTATIONS_BYTES:
            why = f"Too long: may not be more than {_ANNOTATIONS_BYTES} bytes"
            causes.append(Cause("metadata.annotations", "FieldValueTooLong", why))
    return causes


def _finalizer_problems(finalizers: object) -> list[Cause]:
    if not isinstance(finalizers, list) or not all(isinstance(name, str) for name in finalizers):
        return [_wrong("finalizers", "must be a list of texts")]
    causes = [_wrong("finalizers", f"{name!r}: {why}") for name in finalizers if (why := key_problem(name))]
    if ORPHAN in finalizers and FOREGROUND in finalizers:
        causes.append(_wrong("finalizers", f"finalizer {ORPHAN} and {FOREGROUND} cannot be both set"))
    return causes


def _owner_problems(owners: object) -> list[Cause]:
    if not isinstance(owners, list) or not all(isinstance(owner, dict) for owner in owners):
        return [_wrong("ownerReferences", "must be a list of objects")]
    causes = [
        _wrong(f"ownerReferences[{index}].{field}", f"{field} must not be empty")
        for index, owner in enumerate(owners)
        for field in _OWNER
        if not isinstance(owner.get(field), str) or not owner[field]
    ]
    controllers = [f"{owner.get('kind')}/{owner.get('name')}" for owner in owners if owner.get("controller") is True]
    if len(controllers) > 1:
        why = 'Only one reference can have Controller set to true. Found "true" in references for '
        causes.append(_wrong("ownerReferences", f"{why}{controllers[0]} and {controllers[1]}"))
    return causes
