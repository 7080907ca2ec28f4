"""Conditions of an object's status, as lists of plain JSON objects."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal


def with_condition(
    conditions: Iterable[Mapping[str, Any]],
    type: str,
    status: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> list[dict[str, Any]]:
    """Return the conditions with one of them as said; its lastTransitionTime moves only when its status changes.

    Args:
        conditions: those there are, in any order, which is kept; a new one comes last.
        type: which one, such as Ready.
        status: whether it is so.
        reason: why, one word in CamelCase.
        message: why, for people.
        generation: the metadata.generation of the object this is said of.
        now: the time, with its zone.
    """
    kept = [dict(condition) for condition in conditions]
    before = next((condition for condition in kept if condition.get("type") == type), None)
    since = before.get("lastTransitionTime") if before and before.get("status") == status else None
    said = {
        "type": type,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": since or now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "observedGeneration": generation,
    }
    return [said if condition is before else condition for condition in kept] + ([] if before else [said])
