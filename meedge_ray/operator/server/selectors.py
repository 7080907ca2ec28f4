"""Selectors of labels and fields, as `kubectl -l` and `--field-selector` write them."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from meedge_ray.operator.server.errors import ApiError, bad_request

Predicate = Callable[[Mapping[str, Any]], bool]

_TOKEN = re.compile(r"\s*(==|!=|[=!(),<>]|[^\s=!(),<>]+)")
_SYMBOLS = frozenset(("==", "!=", "=", "!", "(", ")", ",", "<", ">", ""))
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_TERMS = re.compile(r"(?:\\.?|[^\\,])+", re.DOTALL)  # a backslash keeps a comma inside
_TERM = re.compile(r"(?P<path>[^=!\\]+)(?P<operator>!=|==|=)(?P<value>(?:\\[\\,=]|[^\\=])*)", re.DOTALL)
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_LONGEST_NAME, _LONGEST_SUBDOMAIN = 63, 253


class _Requirement(NamedTuple):
    key: str
    operator: str  # exists, !, in, notin, <, >
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        if value is None:
            return self.operator in ("!", "notin")
        if self.operator in ("<", ">"):
            [limit] = self.values
            if not _INTEGER.fullmatch(value):
                return False
            return int(value) < int(limit) if self.operator == "<" else int(value) > int(limit)
        if self.operator in ("exists", "!"):
            return self.operator == "exists"
        return (value in self.values) == (self.operator == "in")


def matching(label_selector: str, field_selector: str) -> Predicate | None:
    """Return whether an object matches both selectors; None where neither says anything.

    Raises:
        ApiError: 400, a selector is malformed.
    """
    predicates = []
    if label_selector.strip():
        predicates.append(labels_match(label_selector))
    if field_selector.strip():
        predicates.append(fields_match(field_selector))
    if len(predicates) < 2:
        return predicates[0] if predicates else None
    return lambda content: all(predicate(content) for predicate in predicates)


def labels_match(selector: str) -> Predicate:
    """Return whether an object's labels match: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>3`.

    Raises:
        ApiError: 400, it is malformed.
    """
    requirements = _Parser(selector).requirements()

    def matches(content: Mapping[str, Any]) -> bool:
        labels = content["metadata"].get("labels") or {}
        return all(requirement.matches(labels) for requirement in requirements)

    return matches


def key_problem(key: str) -> str | None:
    """Return why this cannot be the key of a label, an annotation or a finalizer; None: it can."""
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > _LONGEST_SUBDOMAIN or not _SUBDOMAIN.fullmatch(prefix)):
        return "prefix part must be a DNS name in lower case, such as example.com"
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        return (
            "name part must consist of 1 to 63 alphanumeric characters, '-', '_' or '.', and must start and end with "
            "an alphanumeric character"
        )
    return None


def value_problem(value: str) -> str | None:
    """Return why this cannot be the value of a label; None: it can."""
    if value and (len(value) > _LONGEST_NAME or not _NAME.fullmatch(value)):
        return (
            "must be empty or up to 63 alphanumeric characters, '-', '_' or '.', and must start and end with an "
            "alphanumeric character"
        )
    return None


class _Parser:
    def __init__(self, selector: str) -> None:
        self._tokens: list[str] = [*_TOKEN.findall(selector), ""]
        self._at = 0

    def requirements(self) -> list[_Requirement]:
        found: list[_Requirement] = []
        while self._next() != "":
            found.append(self._requirement())
            if self._next() == "":
                break
            self._expect(",", "',' or 'end of string'")
            if self._next() in _SYMBOLS - {"!"}:
                raise self._unexpected("identifier after ','")
        return found

    def _requirement(self) -> _Requirement:
        absent = self._skip("!")
        key = self._identifier()
        if problem := key_problem(key):
            raise self._error(f"key {key!r}: {problem}")
        if absent:
            return _Requirement(key, "!")
        if self._next() in ("", ","):
            return _Requirement(key, "exists")
        operator = self._take()
        if operator in ("=", "==", "!="):
            return self._checked(key, "notin" if operator == "!=" else "in", [self._value()])
        if operator in ("in", "notin"):
            return self._checked(key, operator, self._values())
        if operator in ("<", ">"):
            limit = self._identifier()
            if not _INTEGER.fullmatch(limit):
                raise self._error(f"{limit!r}: for 'Gt', 'Lt' operators, the value must be an integer")
            return _Requirement(key, operator, frozenset((limit,)))
        self._at -= 1
        raise self._unexpected("in, notin, =, ==, !=, <, >")

    def _checked(self, key: str, operator: str, values: list[str]) -> _Requirement:
        for value in values:
            if problem := value_problem(value):
                raise self._error(f"value {value!r}: {problem}")
        return _Requirement(key, operator, frozenset(values))

    def _values(self) -> list[str]:
        self._expect("(", "'('")
        if self._next() == ")":
            raise self._error("for 'in', 'notin' operators, values set can't be empty")
        values = [self._value()]
        while self._skip(","):
            values.append(self._value())
        self._expect(")", "',' or ')'")
        return values

    def _value(self) -> str:
        return "" if self._next() in ("", ",", ")") else self._identifier()

    def _identifier(self) -> str:
        if self._next() in _SYMBOLS:
            raise self._unexpected("identifier")
        return self._take()

    def _next(self) -> str:
        return self._tokens[self._at]

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _skip(self, token: str) -> bool:
        there = self._next() == token
        self._at += there
        return there

    def _expect(self, token: str, in_words: str) -> None:
        if not self._skip(token):
            raise self._unexpected(in_words)

    def _unexpected(self, expected: str) -> ApiError:
        return self._error(f"found '{self._next()}', expected: {expected}")

    def _error(self, why: str) -> ApiError:
        return bad_request(f"unable to parse requirement: {why}")


def fields_match(selector: str) -> Predicate:
    """Return whether an object's fields match: dotted paths with `=`, `==` or `!=`; a field not there is empty.

    Raises:
        ApiError: 400, it is malformed.
    """
    terms = [_term(term, selector) for term in _TERMS.findall(selector)]

    def matches(content: Mapping[str, Any]) -> bool:
        return all((_text(content, path) == value) == equal for path, value, equal in terms)

    return matches


def _term(term: str, selector: str) -> tuple[tuple[str, ...], str, bool]:
    split = _TERM.fullmatch(term)
    if split is None:
        raise bad_request(f"invalid selector: '{selector}'; can't understand '{term}'")
    value = re.sub(r"\\(.)", r"\1", split["value"])
    return tuple(split["path"].strip().split(".")), value, split["operator"] != "!="


def _text(content: Any, path: tuple[str, ...]) -> str:  # noqa: ANN401 - any JSON
    for field in path:
        content = content.get(field) if isinstance(content, Mapping) else None
    if isinstance(content, bool):
        return str(content).lower()
    return str(content) if isinstance(content, (str, int, float)) else ""
