"""`meedge wait`: until objects are as they should be."""

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from meedge_ray.cli.objects import Kubeconfig, Namespace, Selector, connected, say, seconds, targets
from meedge_ray.domain.errors import InvalidInputError, NotFoundError, UnavailableError
from meedge_ray.operator.client.api_client import ApiClient, Object
from meedge_ray.operator.client.resources import Resource

_POLL_S = 0.5


def wait(
    objects: Annotated[list[str], typer.Argument(metavar="KIND [NAME...]", help="such as em digits, or em/digits")],
    what: Annotated[
        str, typer.Option("--for", metavar="WHAT", help="condition=NAME, condition=NAME=False, create or delete")
    ] = "condition=Ready",
    timeout: Annotated[str, typer.Option(help="how long to wait, such as 30s, 5m or 1h")] = "30s",
    selector: Selector = "",
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Wait until every object meets a condition, is there, or is gone; end with 1 when the time is over before.

    Example: meedge wait em/digits --for condition=Ready --timeout 10m
    """
    holds, done = _goal(what)
    timeout_s = seconds(timeout, "--timeout")
    deadline = time.monotonic() + timeout_s
    with connected(kubeconfig, namespace) as (client, default):
        for resource, name in _chosen(client, default, objects, selector):
            while not holds(content := _found(client, resource, default, name)):
                if what != "create" and content is None:
                    raise NotFoundError("there is no such object", where=f"{resource.title}/{name}")
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"not {what} after {timeout_s:g} s{_how_it_stands(content)}", where=f"{resource.title}/{name}"
                    )
                time.sleep(_POLL_S)
            say(f"{resource.title}/{name} {done}")


_Holds = Callable[[Object | None], bool]


def _goal(what: str) -> tuple[_Holds, str]:
    if what == "delete":
        return (lambda content: content is None), "deleted"
    if what == "create":
        return (lambda content: content is not None), "created"
    kind, _, condition = what.partition("=")
    name, _, status = condition.partition("=")
    if kind != "condition" or not name:
        raise InvalidInputError(
            f"{what!r} is nothing to wait for", where="--for", do="Write condition=Ready, or delete"
        )
    wanted = (status or "True").lower()
    return (lambda content: content is not None and _status(content, name) == wanted), "condition met"


def _status(content: Object, name: str) -> str:
    condition = _condition(content, name)
    # What was found out about an older generation says nothing about this one.
    if condition.get("observedGeneration", content["metadata"].get("generation")) != content["metadata"].get(
        "generation"
    ):
        return ""
    return str(condition.get("status", "")).lower()


def _condition(content: Object, name: str) -> dict[str, Any]:
    conditions = (content.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type", "").lower() == name.lower()), {})


def _how_it_stands(content: Object | None) -> str:
    ready = _condition(content, "Ready") if content else {}
    said = ": ".join(part for part in (ready.get("reason"), ready.get("message")) if part)
    return f" ({said})" if said else ""


def _chosen(client: ApiClient, namespace: str, objects: list[str], selector: str) -> list[tuple[Resource, str]]:
    found = []
    for target in targets(objects):
        names = target.names
        if not names:
            listed = client.list(target.resource, namespace, label_selector=selector)["items"]
            names = tuple(each["metadata"]["name"] for each in listed)
        elif selector:
            raise InvalidInputError("choose objects by name or by label", where="--selector", do="Leave one out")
        found += [(target.resource, name) for name in names]
    if not found:
        raise NotFoundError("there are none of them", where=", ".join(objects))
    return found


def _found(client: ApiClient, resource: Resource, namespace: str, name: str) -> Object | None:
    try:
        return client.get(resource, namespace, name)
    except NotFoundError:
        return None
