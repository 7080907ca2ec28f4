"""What the commands that speak with the API server share: where it is, which objects, and tables of them."""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from meedge_ray.domain.errors import InvalidInputError, MeedgeError
from meedge_ray.operator.client.api_client import ApiClient
from meedge_ray.operator.client.kubeconfig import read_kubeconfig
from meedge_ray.operator.client.resources import Resource, find_resource
from meedge_ray.operator.keeping.home import home_path
from meedge_ray.operator.server.tables import age

MANAGER = "meedge"
_GAP = "   "
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}

Kubeconfig = Annotated[
    Path | None,
    typer.Option(help="which API server [default: that of KUBECONFIG, else of the home that `meedge up` keeps]"),
]
Namespace = Annotated[str | None, typer.Option("-n", "--namespace", help="[default: that of the kubeconfig]")]
AllNamespaces = Annotated[bool, typer.Option("-A", "--all-namespaces", help="in every namespace")]
Selector = Annotated[
    str, typer.Option("-l", "--selector", metavar="LABELS", help="only with these labels, such as site=roof,tier!=test")
]
Files = Annotated[
    list[str] | None,
    typer.Option("-f", "--filename", metavar="FILE|DIR|-", help="manifests, all of a folder, or standard input"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="let the server check it, and change nothing")]
Objects = Annotated[
    list[str] | None, typer.Argument(metavar="KIND NAME... | KIND/NAME...", help="such as em digits, or em/digits")
]


class ObjectFormat(StrEnum):
    """How objects are printed."""

    WIDE = "wide"
    NAME = "name"
    YAML = "yaml"
    JSON = "json"


Output = Annotated[ObjectFormat | None, typer.Option("-o", "--output", help="instead of a table")]


@dataclass(frozen=True, slots=True)
class Target:
    """Objects of one kind that are named on the command line; no names mean all."""

    resource: Resource
    names: tuple[str, ...] = ()


def targets(arguments: Sequence[str]) -> list[Target]:
    """Read `KIND[,KIND]`, `KIND NAME...` and `KIND/NAME...`.

    Raises:
        InvalidInputError: they are none of these.
    """
    if not arguments:
        raise InvalidInputError("is missing", where="KIND", do="Write it like: elasticmodels, em digits, or em/digits")
    if any("/" in each for each in arguments):
        pairs = [each.partition("/") for each in arguments]
        for each, (kind, _, name) in zip(arguments, pairs, strict=True):
            if not kind or not name or "/" in name:
                raise InvalidInputError("is no KIND/NAME", where=each, do="Name all objects so, or none")
        return [Target(find_resource(kind), (name,)) for kind, _, name in pairs]
    kinds, names = arguments[0].split(","), tuple(arguments[1:])
    if len(kinds) > 1 and names:
        raise InvalidInputError("names belong to one kind", where=arguments[0], do="Write KIND/NAME for each object")
    return [Target(find_resource(kind), names) for kind in kinds]


def named(arguments: Sequence[str]) -> list[tuple[Resource, str]]:
    """Read objects that must be named one by one.

    Raises:
        InvalidInputError: a kind without names.
    """
    found = targets(arguments)
    for target in found:
        if not target.names:
            raise InvalidInputError("no object is named", where=target.resource.plural, do="Write KIND NAME")
    return [(target.resource, name) for target in found for name in target.names]


@contextmanager
def connected(kubeconfig: Path | None, namespace: str | None) -> Iterator[tuple[ApiClient, str]]:
    """Give a client of the API server, and the namespace to work in.

    Raises:
        NotFoundError: no kubeconfig is there.
        InvalidInputError: it cannot be understood.
    """
    given = os.environ.get("KUBECONFIG")
    if kubeconfig is not None:
        paths = [kubeconfig]
    elif given:
        paths = [Path(part).expanduser() for part in given.split(os.pathsep) if part]
    else:
        paths = [home_path() / "kubeconfig"]
    with ApiClient(read_kubeconfig(paths)) as client:
        yield client, namespace or client.namespace


def seconds(text: str, where: str) -> float:
    """Return a duration such as 90, 30s, 5m or 1h in seconds.

    Raises:
        InvalidInputError: it is none.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh]?)", text)
    if match is None:
        raise InvalidInputError(f"{text!r} is no duration", where=where, do="Write it like 30s, 5m or 1h")
    return float(match[1]) * _UNITS_S[match[2]]


def since(time: str | None) -> str:
    """Return how long ago a time of RFC 3339 was, as kubectl writes it."""
    if not time:
        return ""
    return age(datetime.now(UTC) - datetime.fromisoformat(time))


class Columns:
    """Aligned columns whose rows may come one after the other; wider cells widen those after them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = [name.upper() for name in names]
        self._widths = [0] * len(names)

    def lines(self, rows: Iterable[Sequence[object]], *, header: bool = True) -> list[str]:
        """Return rows as lines, under the columns' names if these are to be shown."""
        texts = [[_one_line(cell) for cell in row] for row in rows]
        if header:
            texts.insert(0, self._names)
        for row in texts:
            self._widths = [max(width, len(text)) for width, text in zip(self._widths, row, strict=True)]
        return [
            _GAP.join(text.ljust(width) for text, width in zip(row, self._widths, strict=True)).rstrip()
            for row in texts
        ]


def say(line: str) -> None:
    """Print a line at once: programs read along."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def complain(errors: Sequence[MeedgeError]) -> None:
    """Say all that went wrong, and end the command if anything did."""
    for error in errors:
        sys.stderr.write(f"error: {error}\n")
    if errors:
        raise typer.Exit(max(error.exit_code for error in errors))


def without_managers(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object as people want to see it: without who wrote which field."""
    metadata = {name: value for name, value in content.get("metadata", {}).items() if name != "managedFields"}
    return {**content, "metadata": metadata}


def _one_line(cell: object) -> str:
    if cell is None:
        return ""
    first, *rest = str(cell).splitlines() or [""]
    return f"{first}..." if rest else first
