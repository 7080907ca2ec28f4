from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.operator.server.errors import ApiError
from meedge_ray.operator.server.selectors import fields_match, labels_match, matching

KEYS, VALUES = ("a", "b.io/c-d", "in"), ("", "x", "y-1", "notin")


class Wanted(NamedTuple):
    key: str
    operator: str
    values: list[str]

    def text(self, space: str) -> str:
        if self.operator == "exists":
            return self.key
        if self.operator == "!":
            return f"!{space}{self.key}"
        if self.operator in ("in", "notin"):
            values = ["", ""] if self.values == [""] else self.values  # () holds no value, (,) the empty one
            inner = f"{space},{space}".join(values)
            return f"{self.key} {self.operator}{space}({inner}{space})"
        return f"{self.key}{space}{self.operator}{space}{self.values[0]}"

    def holds(self, labels: dict[str, str]) -> bool:
        match self.operator:
            case "exists":
                return self.key in labels
            case "!":
                return self.key not in labels
            case "=" | "==":
                return labels.get(self.key) == self.values[0]
            case "!=":
                return labels.get(self.key) != self.values[0]
            case "in":
                return self.key in labels and labels[self.key] in self.values
        return not (self.key in labels and labels[self.key] in self.values)


WANTED = st.builds(
    Wanted,
    st.sampled_from(KEYS),
    st.sampled_from(("exists", "!", "=", "==", "!=", "in", "notin")),
    st.lists(st.sampled_from(VALUES), min_size=1, max_size=3),
)
LABELS = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES))


def labelled(**labels: str) -> dict[str, Any]:
    return {"metadata": {"name": "n", "labels": labels}}


@given(wanted=st.lists(WANTED, max_size=4), labels=LABELS, space=st.sampled_from(("", " ", "\t ")))
def test_a_label_selector_matches_what_each_of_its_requirements_matches(
    wanted: list[Wanted], labels: dict[str, str], space: str
) -> None:
    text = f"{space},{space}".join(each.text(space) for each in wanted)
    assert labels_match(text)(labelled(**labels)) == all(each.holds(labels) for each in wanted)


@pytest.mark.parametrize(
    ("selector", "labels", "holds"),
    [
        ("a>3", {"a": "4"}, True),
        ("a > 3", {"a": "3"}, False),
        ("a<3", {"a": "-1"}, True),
        ("a<3", {"a": "many"}, False),
        ("a<3", {}, False),
        ("a=", {"a": ""}, True),
        ("a in (,x)", {"a": ""}, True),
        ("a!=x", {}, True),
        ("a notin (x)", {}, True),
        ("in in (in)", {"in": "in"}, True),
        ("", {}, True),
    ],
)
def test_label_selectors_by_example(selector: str, labels: dict[str, str], holds: bool) -> None:
    assert labels_match(selector)(labelled(**labels)) == holds


def test_an_object_without_labels_can_match() -> None:
    assert labels_match("!a")({"metadata": {"name": "n"}})
    assert labels_match("!a")({"metadata": {"name": "n", "labels": None}})


@pytest.mark.parametrize(
    "selector",
    [
        *("a in", "a in ()", "a in (b", "a in b", "a in (b c)", "a notin", "a,", ",a", "a,,b", "a b", "=a", "a=b=c"),
        *("!", "!!a", "!a=b", "a==!b", "a>b", "a>", "a (b)", "-a=b", "a=-b", "a/b/c", "/a", "A_/b", "a=b c", "a%=b"),
        *("x" * 64, "a=" + "x" * 64, "ä=b", "a in ((b))", "a<1<2"),
    ],
)
def test_a_malformed_label_selector_is_a_bad_request(selector: str) -> None:
    with pytest.raises(ApiError, match="unable to parse requirement") as raised:
        labels_match(selector)
    assert raised.value.code == 400


EVENT = {
    "metadata": {"name": "e1", "namespace": "default"},
    "involvedObject": {"kind": "EdgeDevice", "name": "pi,1=x\\"},
    "count": 3,
    "deep": {"is": True},
    "list": [1],
}


@pytest.mark.parametrize(
    ("selector", "holds"),
    [
        ("metadata.name=e1", True),
        ("metadata.name==e1,metadata.namespace=default", True),
        ("metadata.name=e1,metadata.namespace=other", False),
        ("metadata.name!=e1", False),
        ("involvedObject.kind=EdgeDevice", True),
        (r"involvedObject.name=pi\,1\=x\\", True),
        (r"involvedObject.name!=pi\,1\=x\\,count=3", False),
        (r"involvedObject.name!=pi\,1,count=3", True),
        ("count=3", True),
        ("deep.is=true", True),
        ("deep.is.deeper=", True),
        ("list=", True),
        ("nowhere=", True),
        ("nowhere!=", False),
        ("nowhere!=x", True),
        ("", True),
        (",", True),
    ],
)
def test_field_selectors_by_example(selector: str, holds: bool) -> None:
    assert fields_match(selector)(EVENT) == holds


@pytest.mark.parametrize("selector", ["a", "a.b,c=d", "=a", "!=a", r"a=\b", "a=b=c", "a=b\\", "a!b=c", r"a\,=b"])
def test_a_malformed_field_selector_is_a_bad_request(selector: str) -> None:
    with pytest.raises(ApiError, match="invalid selector") as raised:
        fields_match(selector)
    assert raised.value.code == 400


def test_both_selectors_must_match_and_none_is_none() -> None:
    assert matching("", " ") is None
    for labels, fields, holds in (("a", "", True), ("", "metadata.name=n", True), ("a", "metadata.name=m", False)):
        predicate = matching(labels, fields)
        assert predicate is not None
        assert predicate(labelled(a="x")) == holds
