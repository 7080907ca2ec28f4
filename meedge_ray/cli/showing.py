"""`meedge get`: objects as the server's table, as YAML or JSON, or by name; and as they change."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
import yaml

from meedge_ray.cli.objects import (
    AllNamespaces,
    Columns,
    Kubeconfig,
    Namespace,
    ObjectFormat,
    Output,
    Selector,
    Target,
    complain,
    connected,
    say,
    targets,
    without_managers,
)
from meedge_ray.domain.errors import InvalidInputError, MeedgeError
from meedge_ray.operator.client.api_client import ApiClient, ExpiredError, Object
from meedge_ray.operator.client.resources import RESOURCES, Resource


def get(
    objects: Annotated[
        list[str],
        typer.Argument(
            metavar="KIND [NAME...]", help="such as elasticmodels, em digits, em/digits es/digits, or em,es,df,ed"
        ),
    ],
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    selector: Selector = "",
    watch: Annotated[bool, typer.Option("-w", "--watch", help="go on with what changes, until Ctrl-C")] = False,
    form: Output = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show objects: elasticmodels (em), elasticservices (es), devicefleets (df), edgedevices (ed), events, namespaces.

    Example: meedge get edgedevices -A -w
    """
    chosen = targets(objects)
    if selector and any(target.names for target in chosen):
        raise InvalidInputError("choose objects by name or by label", where="--selector", do="Leave one out")
    if watch and len(chosen) > 1:
        raise InvalidInputError("one kind at a time can be watched", where="--watch", do="Name one kind")
    with connected(kubeconfig, namespace) as (client, default):
        view = _View(client, None if all_namespaces else default, selector, form)
        errors = view.show(chosen)
        complain(errors)
        if watch:
            with suppress(KeyboardInterrupt):
                view.follow(chosen[0])


class _View:
    """What is shown of one server: which namespace (None: all), which labels, in which form."""

    def __init__(self, client: ApiClient, namespace: str | None, selector: str, form: ObjectFormat | None) -> None:
        self._client, self._namespace, self._selector, self._form = client, namespace, selector, form
        self._is_table = form in (None, ObjectFormat.WIDE)
        self._columns: Columns | None = None
        self._shown: list[int] = []
        self._version = ""

    def show(self, chosen: Sequence[Target]) -> list[MeedgeError]:
        """Print what there is now; returns what could not be had."""
        errors: list[MeedgeError] = []
        objects: list[Object] = []
        tables: list[tuple[Resource, Object]] = []
        for target in chosen:
            listed, problems = self._listed(target)
            errors += problems
            self._version = str(listed.get("metadata", {}).get("resourceVersion", ""))
            if self._is_table:
                tables.append((target.resource, listed))
            else:
                objects += [_typed(target.resource, each) for each in listed["items"]]
        if self._is_table:
            self._print_tables(tables, several=len(chosen) > 1)
            if not errors and not any(table["rows"] for _, table in tables):
                where = f" in {self._namespace} namespace" if self._namespace else ""
                sys.stderr.write(f"No resources found{where}.\n")
        elif self._form is not None:
            is_one = len(chosen) == 1 and len(chosen[0].names) == 1
            show_objects(objects, self._form, as_list=not is_one)
        return errors

    def follow(self, target: Target) -> None:
        """Print every object of a kind, or those named, whenever one changes."""
        while True:
            try:
                for content in self._changes(target.resource):
                    self._print_change(target, content)
            except ExpiredError:
                self.show([target])

    def _listed(self, target: Target) -> tuple[Object, list[MeedgeError]]:
        resource = target.resource
        if not target.names:
            return self._client.list(
                resource, self._namespace, label_selector=self._selector, as_table=self._is_table
            ), []
        if self._namespace is None and resource.namespaced:
            raise InvalidInputError("a name is of one namespace", where="--all-namespaces", do="Say which with -n")
        whole: Object = {}
        errors: list[MeedgeError] = []
        for name in target.names:
            try:
                found = self._client.get(resource, self._namespace or "", name, as_table=self._is_table)
            except MeedgeError as error:
                errors.append(error)
                continue
            if not self._is_table:
                found = {"metadata": found["metadata"], "items": [found]}
            part = "rows" if self._is_table else "items"
            whole = {**found, part: [*whole.get(part, []), *found[part]]}
        return whole or {"rows": [], "items": [], "columnDefinitions": []}, errors

    def _changes(self, resource: Resource) -> Iterator[Object]:
        changes = self._client.watch(
            resource, self._namespace, self._version, label_selector=self._selector, as_table=self._is_table
        )
        for _, content in changes:
            yield content

    def _print_tables(self, tables: Sequence[tuple[Resource, Object]], *, several: bool) -> None:
        is_first = True
        for resource, table in tables:
            if not table["rows"]:
                continue
            if not is_first:
                say("")
            is_first = False
            self._shown = _shown(table, wide=self._form is ObjectFormat.WIDE)
            names = [table["columnDefinitions"][index]["name"] for index in self._shown]
            self._columns = Columns(["namespace", *names] if self._with_namespace(resource) else names)
            prefix = f"{resource.title}/" if several else ""
            for line in self._columns.lines(self._cells(resource, row, prefix) for row in table["rows"]):
                say(line)

    def _print_change(self, target: Target, content: Object) -> None:
        if not self._is_table:
            if self._form is not None and (not target.names or content["metadata"]["name"] in target.names):
                show_objects([_typed(target.resource, content)], self._form, as_list=False)
            return
        rows = [
            row
            for row in content["rows"]
            if not target.names or row.get("object", {}).get("metadata", {}).get("name") in target.names
        ]
        if self._columns is None:
            self._print_tables([(target.resource, {**content, "rows": rows})], several=False)
            return
        for line in self._columns.lines((self._cells(target.resource, row, "") for row in rows), header=False):
            say(line)

    def _cells(self, resource: Resource, row: Object, prefix: str) -> list[object]:
        cells: list[Any] = [row["cells"][index] for index in self._shown]
        cells[0] = f"{prefix}{cells[0]}"
        return [row["object"]["metadata"].get("namespace"), *cells] if self._with_namespace(resource) else cells

    def _with_namespace(self, resource: Resource) -> bool:
        return self._namespace is None and resource.namespaced


def show_objects(objects: Sequence[Object], form: ObjectFormat, *, as_list: bool) -> None:
    """Print objects in one of the forms that is no table; several as one List."""
    if form in (ObjectFormat.NAME, ObjectFormat.WIDE):
        titles = {(each.api_version, each.kind): each.title for each in RESOURCES}
        for each in objects:
            say(f"{titles[each['apiVersion'], each['kind']]}/{each['metadata']['name']}")
        return
    items = [without_managers(each) for each in objects]
    content: Object | None = {"apiVersion": "v1", "kind": "List", "items": items} if as_list else None
    for each in [content] if content else items:
        if form is ObjectFormat.JSON:
            say(json.dumps(each, indent=4, ensure_ascii=False))
        else:
            say(as_yaml(each).rstrip())


def as_yaml(content: object) -> str:
    """Return any JSON as YAML for people: fields in their order, long lines whole."""
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10_000))


def _typed(resource: Resource, content: Object) -> Object:
    # Items of a list need not say what they are.
    return {"apiVersion": resource.api_version, "kind": resource.kind, **content}


def _shown(table: Object, *, wide: bool) -> list[int]:
    return [index for index, column in enumerate(table["columnDefinitions"]) if wide or not column.get("priority")]
