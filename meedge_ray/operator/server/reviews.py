"""What clients ask of themselves: who they are, and what they may do, which is everything."""

from datetime import UTC, datetime
from typing import Any

from meedge_ray.operator.server.errors import bad_request
from meedge_ray.operator.server.metadata import rfc3339
from meedge_ray.operator.server.resource import Object, Resource

_GROUPS = ["system:masters", "system:authenticated"]
_EVERYTHING = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
_EVERYWHERE = [{"verbs": ["*"], "nonResourceURLs": ["*"]}]


def answer(resource: Resource, body: Any, user: str) -> Object:  # noqa: ANN401 - any JSON
    """Answer a review; it is not stored.

    Raises:
        ApiError: the body is no object.
    """
    if not isinstance(body, dict):
        raise bad_request("the body must be an object")
    answers: dict[str, Object] = {
        "SelfSubjectReview": {"userInfo": {"username": user, "groups": _GROUPS}},
        "SelfSubjectAccessReview": {"allowed": True, "reason": "whoever has a token may do everything"},
        "SelfSubjectRulesReview": {
            "resourceRules": _EVERYTHING,
            "nonResourceRules": _EVERYWHERE,
            "incomplete": False,
        },
    }
    metadata = {"creationTimestamp": rfc3339(datetime.now(UTC))}
    review: Object = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
    return {**review, **({"spec": body["spec"]} if "spec" in body else {}), "status": answers[resource.kind]}
