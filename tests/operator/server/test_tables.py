from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meedge_ray.api.kinds import KINDS, Column
from meedge_ray.operator.server.tables import (
    DEFINITIONS,
    EVENTS,
    NAMESPACES,
    age,
    event_view,
    json_path,
    partial_metadata,
    table,
)

NOW = datetime(2026, 1, 10, 12, 0, 0, tzinfo=UTC)
ITEM = {
    "apiVersion": "meedge.dev/v1alpha1",
    "kind": "EdgeDevice",
    "metadata": {"name": "pi-1", "namespace": "default", "creationTimestamp": "2026-01-10T11:56:55Z"},
    "spec": {"device": "pi-1", "a.b": 1},
    "status": {
        "branches": 3,
        "none": None,
        "yes": True,
        "list": [{"n": 1}, {"n": 2}],
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "Reachable", "status": "Unknown"}],
    },
}


def column(json_path: str, kind: Any = "string", name: str = "C") -> Column:
    return Column(name=name, type=kind, json_path=json_path, description="d")


def cells(*columns: Column, item: dict[str, Any] = ITEM, **options: Any) -> list[Any]:
    [row] = table(columns, [item], now=NOW, **options)["rows"]
    return row["cells"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((-2, "<invalid>"), (-1.5, "0s"), (-1, "0s"), (0, "0s"), (1.9, "1s"), (70, "70s"), (119, "119s")),
        *((120, "2m"), (185, "3m5s"), (599, "9m59s"), (600, "10m"), (179 * 60, "179m"), (180 * 60, "3h")),
        *((7 * 3600 + 59 * 60, "7h59m"), (8 * 3600 + 59 * 60, "8h"), (47 * 3600, "47h"), (48 * 3600, "2d")),
        *((49 * 3600, "2d1h"), (123 * 3600, "5d3h"), (8 * 86400 + 7200, "8d"), (367 * 86400, "367d")),
        *((730 * 86400, "2y"), (731 * 86400, "2y1d"), (8 * 365 * 86400 - 1, "7y364d"), (8 * 365 * 86400 + 1, "8y")),
    ],
)
def test_ages_are_written_as_kubectl_writes_them(seconds: float, text: str) -> None:
    assert age(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".spec.device", ["pi-1"]),
        (r".spec.a\.b", [1]),
        (".spec['a.b']", [1]),
        ('.spec["a.b"]', [1]),
        ('.status.conditions[?(@.type=="Ready")].status', ["True"]),
        (".status.conditions[?(@.type=='Reachable')].status", ["Unknown"]),
        ('.status.conditions[?(@.type!="Ready")].type', ["Reachable"]),
        ('.status.conditions[?(@.type=="Gone")].status', []),
        (".status.conditions[?(@.message)].status", []),
        (".status.conditions[?(@.type)].status", ["True", "Unknown"]),
        (".status.list[?(@.n>1)].n", [2]),
        (".status.list[?(@.n<=1)].n", [1]),
        (".status.list[0].n", [1]),
        (".status.list[-1].n", [2]),
        (".status.list[5].n", []),
        (".status.list[*].n", [1, 2]),
        (".status.yes.deeper", []),
        (".nothing", []),
        (".spec[0]", []),
    ],
)
def test_a_json_path_finds_what_is_there(path: str, found: list[Any]) -> None:
    assert json_path(path)(ITEM) == found


@pytest.mark.parametrize("path", ["spec", ".", ".a b", ".a[", ".a[x]", "..a", ".a[?(@.b==)]", "{.a}"])
def test_a_path_of_another_kind_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no JSONPath"):
        json_path(path)


def test_the_name_comes_before_the_columns_of_a_kind() -> None:
    shown = table([column(".spec.device", name="Device")], [ITEM], now=NOW, metadata={"resourceVersion": "7"})
    assert [each["name"] for each in shown["columnDefinitions"]] == ["Name", "Device"]
    assert shown["columnDefinitions"][0]["format"] == "name"
    assert shown["rows"][0]["cells"] == ["pi-1", "pi-1"]
    assert (shown["kind"], shown["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    assert shown["metadata"] == {"resourceVersion": "7"}


def test_a_kind_without_columns_shows_name_and_age() -> None:
    shown = table([], [ITEM], now=NOW)
    assert [each["name"] for each in shown["columnDefinitions"]] == ["Name", "Age"]
    assert shown["rows"][0]["cells"] == ["pi-1", "3m5s"]


def test_rows_carry_as_much_of_the_object_as_is_asked_for() -> None:
    rows = {
        include: table([], [ITEM], now=NOW, include=include)["rows"][0] for include in ("None", "Metadata", "Object")
    }
    assert "object" not in rows["None"]
    assert rows["Object"]["object"] == ITEM
    assert rows["Metadata"]["object"] == partial_metadata(ITEM)
    assert rows["Metadata"]["object"] == {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": ITEM["metadata"],
    }


@pytest.mark.parametrize(
    ("path", "kind", "cell"),
    [
        (".status.branches", "integer", 3),
        (".status.branches", "string", "3"),
        (".status.branches", "boolean", None),
        (".status.yes", "boolean", True),
        (".status.yes", "string", "true"),
        (".status.yes", "integer", None),
        (".status.none", "string", None),
        (".status.gone", "string", None),
        (".status.list", "string", '[{"n":1},{"n":2}]'),
        (".status.list[*].n", "string", "1"),
        (".metadata.creationTimestamp", "date", "3m5s"),
        (".metadata.name", "date", "<invalid>"),
        (".status.branches", "date", "<invalid>"),
    ],
)
def test_a_cell_has_the_type_of_its_column(path: str, kind: str, cell: Any) -> None:
    assert cells(column(path, kind))[1] == cell


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_columns_of_our_kinds_can_be_read_from_an_empty_object(kind: Any) -> None:
    shown = table(kind.columns, [{"metadata": {"name": "n"}}], now=NOW)
    assert shown["rows"][0]["cells"] == ["n"] + [None] * len(kind.columns)


def test_namespaces_show_their_status() -> None:
    namespace = {"metadata": {"name": "n", "creationTimestamp": "2026-01-10T12:00:00Z"}, "status": {"phase": "Active"}}
    assert cells(*NAMESPACES, item=namespace) == ["n", "Active", "0s"]


def test_definitions_show_when_they_were_made() -> None:
    assert cells(*DEFINITIONS) == ["pi-1", "2026-01-10T11:56:55Z"]


EVENT: dict[str, Any] = {
    "metadata": {"name": "e"},
    "involvedObject": {"kind": "EdgeDevice", "name": "pi-1", "fieldPath": "spec"},
    "type": "Normal",
    "reason": "Started",
    "message": " it runs\n",
    "firstTimestamp": "2026-01-10T11:00:00Z",
    "lastTimestamp": "2026-01-10T11:59:00Z",
    "count": 3,
    "source": {"component": "me", "host": "here"},
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"Last Seen": "60s", "First Seen": "60m", "Count": 3, "Source": "me, here"}),
        ({"lastTimestamp": None}, {"Last Seen": "60m"}),
        (
            {"firstTimestamp": None, "lastTimestamp": None, "eventTime": "2026-01-10T11:58:00.123456Z", "count": None},
            {"Last Seen": "119s", "First Seen": "119s", "Count": 1},
        ),
        ({"series": {"count": 9, "lastObservedTime": "2026-01-10T11:59:30.5Z"}}, {"Last Seen": "29s", "Count": 9}),
        ({"source": None, "reportingComponent": "it", "reportingInstance": "it-0"}, {"Source": "it, it-0"}),
        ({"involvedObject": {"kind": "Namespace"}}, {"Object": "namespace", "Subobject": None}),
        ({"involvedObject": None, "message": None}, {"Object": "", "Message": ""}),
    ],
)
def test_events_show_when_what_happened_to_whom(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    shown = table(EVENTS, [{**EVENT, **changes}], now=NOW, view=event_view)
    names = [each["name"] for each in shown["columnDefinitions"]]
    row = dict(zip(names, shown["rows"][0]["cells"], strict=True))
    assert {name: row[name] for name in expected} == expected
    assert names[:4] == ["Last Seen", "Type", "Reason", "Object"]
    assert [each["name"] for each in shown["columnDefinitions"] if not each["priority"]][-1] == "Message"
