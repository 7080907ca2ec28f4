"""Whatever bytes come, they are read as JSON says, or refused."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from meedge_ray.operator.server.bodies import parse
from meedge_ray.operator.server.errors import ApiError
from meedge_ray.operator.server.protobuf import MEDIA_TYPE, decoded

TYPES = ("application/json", "application/yaml", MEDIA_TYPE)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_json_is_read_as_it_was_written(content):
    assert parse(json.dumps(content).encode(), "application/json") == content
    assert parse(json.dumps(content, ensure_ascii=False).encode(), "application/merge-patch+json") == content


@given(st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), JSON, max_size=4))
def test_yaml_is_read_as_it_was_written(content):
    class Plain(yaml.SafeDumper):
        """Writes out what is there twice: aliases are not read."""

        def ignore_aliases(self, data):
            return True

    assert parse(yaml.dump(content, Dumper=Plain).encode(), "application/yaml") == content


def unless_refused(read):
    try:
        return read()
    except ApiError as error:
        return {"code": error.code}


@given(st.binary(max_size=200), st.sampled_from(TYPES))
def test_any_bytes_are_read_or_refused(body, media_type):
    content = unless_refused(lambda: parse(body, media_type))

    assert json.loads(json.dumps(content, allow_nan=False)) == content


@given(st.binary(max_size=100), st.sampled_from(["Namespace", "SelfSubjectAccessReview", "Pod", ""]))
def test_any_protobuf_is_read_or_refused(raw, kind):
    content = unless_refused(lambda: decoded(protobuf(kind, raw)))

    assert json.loads(json.dumps(content)) == content


def test_a_namespace_is_read_from_protobuf():
    metadata = b"\x0a\x03lab" + b"\x12\x02g-" + b"\x5a\x06\x0a\x01a\x12\x01b" + b"\x72\x03x/y" + b"\x38\x05"

    assert decoded(protobuf("Namespace", b"\x0a" + bytes([len(metadata)]) + metadata)) == {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "lab", "generateName": "g-", "labels": {"a": "b"}, "finalizers": ["x/y"]},
    }


def protobuf(kind, raw):
    """As Kubernetes wraps its messages (runtime.Unknown)."""
    of_type = b"\x0a\x02v1\x12" + bytes([len(kind)]) + kind.encode()
    return b"k8s\x00\x0a" + bytes([len(of_type)]) + of_type + b"\x12" + bytes([len(raw)]) + raw


@pytest.mark.parametrize("levels", [63, 66, 900, 100_000])
def test_depth_is_limited(levels):
    for body, media_type in (
        (b"[" * levels + b"]" * levels, "application/json"),
        (b'{"a":' * levels + b"1" + b"}" * levels, "application/json"),
        (b"[" * levels + b"]" * levels, "application/yaml"),
    ):
        if levels == 63:
            parse(body, media_type)
        else:
            with pytest.raises(ApiError, match="nested deeper"):
                parse(body, media_type)


def test_a_field_given_twice_is_found_among_many():
    names = [f'"{index}": 1' for index in range(200_000)]

    with pytest.raises(ApiError, match="'199999' is given twice"):
        parse(("{" + ",".join([*names, names[-1]]) + "}").encode(), "application/json")
