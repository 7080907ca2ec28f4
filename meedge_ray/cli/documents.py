"""Manifests from files: one or several documents each, with errors that name file, document and field."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from meedge_ray.api.kinds import KINDS
from meedge_ray.domain.errors import InvalidInputError, MeedgeError, NotFoundError
from meedge_ray.operator.client.resources import RESOURCES, Resource

_SUFFIXES = (".yaml", ".yml", ".json")
_STDIN = "-"
_MOST_BYTES = 10 * 2**20
_KINDS = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True, slots=True)
class Document:
    """One object as it stands in a file; `where` names file and document."""

    resource: Resource
    content: dict[str, Any]
    where: str

    @property
    def name(self) -> str:
        """The object's name."""
        return str(self.content["metadata"]["name"])

    def namespace(self, default: str, given: str | None) -> str:
        """Return the namespace it belongs to: its own, or the default one.

        Raises:
            InvalidInputError: it names one, and another is `given` on the command line.
        """
        own = self.content["metadata"].get("namespace")
        if own and given and own != given:
            raise InvalidInputError(
                f"is {own!r}, and --namespace says {given!r}", where=f"{self.where}, metadata.namespace"
            )
        return str(own or default)


def read_documents(sources: Sequence[str]) -> tuple[list[Document], list[MeedgeError]]:
    """Return all objects of files, folders and standard input (`-`) in order, and all that is wrong with them.

    A folder's own files are read by name: *.yaml, *.yml and *.json; not those of folders in it.
    """
    documents: list[Document] = []
    errors: list[MeedgeError] = []
    for source in sources:
        try:
            files = _files(source)
        except MeedgeError as error:
            errors.append(error)
            continue
        for file in files:
            found, problems = _read(file)
            documents += found
            errors += problems
    if not documents and not errors:
        errors.append(
            InvalidInputError("no manifest is there", where=", ".join(sources) or "-f", do="Name one with -f")
        )
    return documents, errors


def _files(source: str) -> list[str]:
    if source == _STDIN:
        return [source]
    path = Path(source)
    if path.is_dir():
        return sorted(str(file) for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if not path.is_file():
        raise NotFoundError("no such file", where=source, do="Name a manifest, a folder of them, or - for stdin")
    return [source]


def _read(file: str) -> tuple[list[Document], list[MeedgeError]]:
    name = "standard input" if file == _STDIN else file
    try:
        text = sys.stdin.read() if file == _STDIN else Path(file).read_text()
        if len(text) > _MOST_BYTES:
            raise InvalidInputError(f"is larger than {_MOST_BYTES >> 20} MiB", where=name)
        contents = [content for content in yaml.load_all(text, Loader=_Loader) if content is not None]
    except (OSError, UnicodeDecodeError) as error:
        return [], [InvalidInputError(f"cannot be read ({error})", where=name)]
    except yaml.YAMLError as error:
        return [], [InvalidInputError(f"is no YAML ({' '.join(str(error).split())})", where=name)]
    except MeedgeError as error:
        return [], [error]
    documents: list[Document] = []
    errors: list[MeedgeError] = []
    for number, content in enumerate(contents, 1):
        where = name if len(contents) == 1 else f"{name}, document {number}"
        for item, at in _items(content, where):
            try:
                documents.append(_checked(item, at))
            except _ProblemsError as problems:
                errors += problems.errors
    return documents, errors


def _items(content: Any, where: str) -> list[tuple[Any, str]]:  # noqa: ANN401 - any YAML
    if isinstance(content, Mapping) and content.get("kind") == "List" and isinstance(content.get("items"), list):
        return [(item, f"{where}, items[{index}]") for index, item in enumerate(content["items"])]
    return [(content, where)]


class _ProblemsError(Exception):
    def __init__(self, *errors: MeedgeError) -> None:
        self.errors = errors


def _checked(content: Any, where: str) -> Document:  # noqa: ANN401 - any YAML
    if not isinstance(content, dict):
        raise _ProblemsError(InvalidInputError("is no object", where=where, do="Begin with apiVersion, kind, metadata"))
    try:
        json.dumps(content, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise _ProblemsError(InvalidInputError(f"cannot be written as JSON ({error})", where=where)) from None
    version, kind = content.get("apiVersion"), content.get("kind")
    resource = next((each for each in RESOURCES if (each.api_version, each.kind) == (version, kind)), None)
    if resource is None:
        raise _ProblemsError(_unknown(version, kind, where))
    if kind in _KINDS:
        problems = _KINDS[str(kind)].problems(content)
        if problems:
            do = f"`meedge explain {resource.singular}` tells all fields"
            errors = [InvalidInputError(each.message, where=f"{where}, {each.field}") for each in problems[:-1]]
            last = problems[-1]
            raise _ProblemsError(*errors, InvalidInputError(last.message, where=f"{where}, {last.field}", do=do))
    elif not isinstance(content.get("metadata"), dict) or not content["metadata"].get("name"):
        raise _ProblemsError(InvalidInputError("Required value", where=f"{where}, metadata.name"))
    return Document(resource, content, where)


def _unknown(version: Any, kind: Any, where: str) -> InvalidInputError:  # noqa: ANN401 - any YAML
    same = next((each for each in RESOURCES if each.kind == kind), None)
    if same is not None:
        return InvalidInputError(
            f"{json.dumps(version)} has no {kind}", where=f"{where}, apiVersion", do=f"Write {same.api_version}"
        )
    known = ", ".join(each.kind for each in RESOURCES)
    what = "Required value" if kind is None else f"there is no kind {json.dumps(kind)}"
    return InvalidInputError(what, where=f"{where}, kind", do=f"There are: {known}")


class _Loader(yaml.SafeLoader):
    """YAML with JSON's types: a date stays text, and so does a field's name, be it `on`; none is given twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    names = [_name(key) for key, _ in node.value]
    for name in names:
        if names.count(name) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"field {name!r} is given twice", node.start_mark)
    loader.flatten_mapping(node)
    return {_name(key): loader.construct_object(value, deep=True) for key, value in node.value}


def _name(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.constructor.ConstructorError(None, None, "a field's name must be text", node.start_mark)
    return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
