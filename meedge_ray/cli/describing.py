"""`meedge describe` and `meedge events`: everything about an object, and what happened."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from meedge_ray.cli.objects import (
    AllNamespaces,
    Columns,
    Kubeconfig,
    Namespace,
    Objects,
    complain,
    connected,
    named,
    say,
    since,
    targets,
)
from meedge_ray.cli.showing import as_yaml
from meedge_ray.domain.errors import InvalidInputError, MeedgeError
from meedge_ray.operator.client.api_client import ApiClient, ExpiredError, Object, event_time
from meedge_ray.operator.client.resources import EVENTS

_INDENT = "  "
_EVENTS = ("Last seen", "Type", "Reason", "Object", "Message")
_CONDITIONS = ("type", "status", "reason", "lastTransitionTime", "message")


def describe(
    objects: Annotated[list[str], typer.Argument(metavar="KIND [NAME...]", help="such as em digits, or em/digits")],
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Tell everything about objects: what is declared, how it stands, and what happened.

    Example: meedge describe elasticmodel digits
    """
    errors: list[MeedgeError] = []
    with connected(kubeconfig, namespace) as (client, default):
        is_first = True
        for target in targets(objects):
            names = target.names or tuple(
                each["metadata"]["name"] for each in client.list(target.resource, default)["items"]
            )
            for name in names:
                try:
                    content = client.get(target.resource, default, name)
                    events = client.events(default, content["metadata"]["uid"])
                except MeedgeError as error:
                    errors.append(error)
                    continue
                if not is_first:
                    say("\n")
                is_first = False
                for line in _description(content, events):
                    say(line)
    complain(errors)


def events(
    objects: Objects = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="go on with what happens, until Ctrl-C")] = False,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Tell what happened, oldest first: to all objects, or to those named.

    Example: meedge events em/digits -w
    """
    chosen = {(resource.kind, name) for resource, name in named(objects)} if objects else set()
    if chosen and all_namespaces:
        raise InvalidInputError("a name is of one namespace", where="--all-namespaces", do="Say which with -n")
    with suppress(KeyboardInterrupt), connected(kubeconfig, namespace) as (client, default):
        space = None if all_namespaces else default
        columns = Columns(["Namespace", *_EVENTS] if all_namespaces else _EVENTS)
        is_first = True
        while True:
            listed = client.list(EVENTS, space)
            said = sorted((each for each in listed["items"] if _is_about(each, chosen)), key=event_time)
            for line in columns.lines((_event(each, all_namespaces) for each in said), header=is_first):
                say(line)
            if not watch:
                return
            is_first = False
            _follow(client, space, str(listed["metadata"]["resourceVersion"]), chosen, columns, all_namespaces)


def _follow(
    client: ApiClient,
    namespace: str | None,
    version: str,
    chosen: set[tuple[str, str]],
    columns: Columns,
    all_namespaces: bool,
) -> None:
    try:
        for change, content in client.watch(EVENTS, namespace, version):
            if change != "DELETED" and _is_about(content, chosen):
                for line in columns.lines([_event(content, all_namespaces)], header=False):
                    say(line)
    except ExpiredError:
        return  # and all is listed anew


def _is_about(event: Object, chosen: set[tuple[str, str]]) -> bool:
    involved = event.get("involvedObject") or {}
    return not chosen or (involved.get("kind"), involved.get("name")) in chosen


def _event(event: Object, with_namespace: bool) -> list[object]:
    involved = event.get("involvedObject") or {}
    about = f"{str(involved.get('kind', '')).lower()}/{involved.get('name', '')}"
    times = int(event.get("count") or (event.get("series") or {}).get("count") or 1)
    seen = since(event_time(event)) + (f" (x{times})" if times > 1 else "")
    cells = [seen, event.get("type"), event.get("reason"), about, str(event.get("message") or "").strip()]
    return [event["metadata"].get("namespace"), *cells] if with_namespace else cells


def _description(content: Object, events: Sequence[Object]) -> list[str]:
    metadata, status = content["metadata"], dict(content.get("status") or {})
    lines = [f"Name:         {metadata['name']}"]
    if metadata.get("namespace"):
        lines.append(f"Namespace:    {metadata['namespace']}")
    lines.append(f"Kind:         {content['kind']} ({content['apiVersion']})")
    for title, field in (("Labels", "labels"), ("Annotations", "annotations")):
        pairs = [f"{name}={value}" for name, value in sorted((metadata.get(field) or {}).items())]
        for index, pair in enumerate(pairs or ["<none>"]):
            lines.append(f"{f'{title}:' if index == 0 else '':14}{pair}")
    for owner in metadata.get("ownerReferences") or ():
        lines.append(f"Owner:        {owner['kind']}/{owner['name']}")
    lines.append(
        f"Created:      {metadata.get('creationTimestamp', '')} ({since(metadata.get('creationTimestamp'))} ago)"
    )
    if metadata.get("deletionTimestamp"):
        waits_for = ", ".join(metadata.get("finalizers") or ["what it owns"])
        lines.append(f"Deleted:      {since(metadata['deletionTimestamp'])} ago, waits for {waits_for}")
    lines.append(f"Generation:   {metadata.get('generation', '')}")
    others = {name: value for name, value in content.items() if name not in _SHOWN_ELSEWHERE}
    for name, value in others.items():
        lines += ["", f"{name.capitalize()}:", *_indented(as_yaml(value))]
    conditions = status.pop("conditions", None)
    tables = {name: status.pop(name) for name in [name for name, value in status.items() if _is_table(value)]}
    if status:
        lines += ["", "Status:", *_indented(as_yaml(status))]
    for name, rows in tables.items():
        fields = sorted(dict.fromkeys(field for row in rows for field in row), key=lambda field: field != "name")
        lines += ["", f"{name.capitalize()}:", *_table(fields, rows)]
    if conditions:
        lines += ["", "Conditions:", *_table(_CONDITIONS, conditions)]
    shown = Columns(["Age", "Type", "Reason", "Message"]).lines(
        [_event(each, False)[:3] + _event(each, False)[4:] for each in events]
    )
    lines += ["", "Events:", *[f"{_INDENT}{line}" for line in (shown if events else ["<none>"])]]
    return lines


_SHOWN_ELSEWHERE = ("apiVersion", "kind", "metadata", "status")


def _is_table(value: Any) -> bool:  # noqa: ANN401 - any JSON
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(row, dict) and not any(isinstance(cell, dict | list) for cell in row.values()) for row in value
        )
    )


def _table(fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = ([_cell(field, row.get(field)) for field in fields] for row in rows)
    return [f"{_INDENT}{line}" for line in Columns([_words(field) for field in fields]).lines(cells)]


def _cell(field: str, value: Any) -> object:  # noqa: ANN401 - any JSON
    is_time = isinstance(value, str) and field.endswith(("Time", "At")) and value[:1].isdigit()
    return f"{since(value)} ago" if is_time else value


def _words(field: str) -> str:
    return {"lastTransitionTime": "since"}.get(field, "".join(f" {each}" if each.isupper() else each for each in field))


def _indented(text: str) -> list[str]:
    return [f"{_INDENT}{line}" for line in text.splitlines()]
