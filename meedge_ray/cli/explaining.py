"""`meedge explain`: what a manifest's fields mean. Needs no server."""

import textwrap
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from meedge_ray.api.kinds import KINDS
from meedge_ray.cli.objects import say
from meedge_ray.domain.errors import InvalidInputError
from meedge_ray.operator.client.resources import find_resource

_WIDTH = 120


def explain(
    field: Annotated[str, typer.Argument(metavar="KIND[.FIELD...]", help="such as elasticmodel, or em.spec.zoo")],
) -> None:
    """Tell what a field of a manifest means, and which fields it has.

    Example: meedge explain devicefleet.spec.template
    """
    first, *path = field.split(".")
    resource = find_resource(first)
    kind = next((each for each in KINDS if each.name == resource.kind), None)
    if kind is None:
        raise InvalidInputError("is Kubernetes' own", where=first, do="See `kubectl explain`")
    schema: Mapping[str, Any] = kind.schema()
    walked = kind.name
    for name in path:
        fields = _fields(schema)
        if name not in fields:
            known = ", ".join(fields) or "none: it is a plain value"
            raise InvalidInputError(f"there is no field {name!r}", where=walked, do=f"There are: {known}")
        schema = fields[name]
        walked += f".{name}"
    say(f"KIND:     {kind.name}")
    say(f"VERSION:  {resource.api_version}")
    if path:
        say(f"FIELD:    {walked.partition('.')[2]} <{_type(schema)}>")
    _paragraph("DESCRIPTION:", _description(schema))
    fields = _fields(schema)
    if not fields:
        return
    required = (_items(schema)).get("required", ())
    say("\nFIELDS:")
    for name, each in fields.items():
        say(f"  {name} <{_type(each)}>{' -required-' if name in required else ''}")
        for line in textwrap.wrap(_description(each), _WIDTH - 4):
            say(f"    {line}")


def _paragraph(title: str, text: str) -> None:
    if text:
        say(f"\n{title}")
        for line in textwrap.wrap(text, _WIDTH - 2):
            say(f"  {line}")


def _description(schema: Mapping[str, Any]) -> str:
    said = [str(schema.get("description", ""))]
    if values := schema.get("enum") or _items(schema).get("enum"):
        said.append(f"One of: {', '.join(str(value) for value in values)}")
    return ". ".join(part.removesuffix(".") for part in said if part)


def _fields(schema: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    fields: Mapping[str, Mapping[str, Any]] = _items(schema).get("properties", {})
    return fields


def _items(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    while "items" in schema:
        schema = schema["items"]
    return schema


def _type(schema: Mapping[str, Any]) -> str:
    if "items" in schema:
        return f"[]{_type(schema['items'])}"
    values = schema.get("additionalProperties")
    if isinstance(values, Mapping):
        return f"map[string]{_type(values)}"
    return f"{schema.get('type', 'any')}{'|null' if schema.get('nullable') else ''}"
