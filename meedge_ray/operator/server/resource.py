"""One kind of object at its place in the API."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from meedge_ray.api.kinds import Column, FieldProblem
from meedge_ray.operator.server.errors import Key

Object = dict[str, Any]

READ = ("get", "list", "watch")
ALL = ("create", "delete", "deletecollection", *READ, "patch", "update")


def _fine(content: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[FieldProblem]:  # noqa: ARG001
    return []


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resource:
    """What clients find at `/apis/GROUP/VERSION/PLURAL`."""

    group: str  # "" for the core group
    version: str
    plural: str
    singular: str
    kind: str
    schema: Object  # structural OpenAPI v3
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    namespaced: bool = True
    verbs: tuple[str, ...] = ALL
    custom: bool = False  # one of this project's: it has a status subresource, and counts generations
    columns: tuple[Column, ...] = ()
    view: Callable[[Object], Object] = dict  # what the columns are read from
    problems: Callable[[Mapping[str, Any], Mapping[str, Any] | None], list[FieldProblem]] = _fine
    status_problems: Callable[[Mapping[str, Any]], list[FieldProblem]] = _fine

    @property
    def stored(self) -> str:
        """Its name in the store and in messages, such as `elasticmodels.meedge.dev`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        """As its objects write it, such as `meedge.dev/v1alpha1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def key(self, namespace: str, name: str) -> Key:
        """Name one of its objects; the namespace counts only where it has some."""
        return Key(self.stored, namespace if self.namespaced else "", name)
