import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from meedge_ray.domain.errors import InvalidInputError, NotFoundError
from meedge_ray.operator.client.kubeconfig import read_kubeconfig
from meedge_ray.operator.keeping.certificate import make_certificate


def write(
    path: Path, *, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **changes: Any
) -> Path:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443", **(cluster or {})}}],
        "users": [{"name": "u", "user": {"token": "secret", **(user or {})}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "mine"}}],
    }
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    make_certificate(tmp_path / "certificate.pem", tmp_path / "key.pem")
    return tmp_path / "certificate.pem"


def test_server_token_and_namespace_are_read(tmp_path: Path) -> None:
    found = read_kubeconfig(write(tmp_path / "config"))
    assert (found.server, found.token, found.namespace) == ("https://127.0.0.1:6443", "secret", "mine")
    assert found.tls is not None
    assert found.tls.verify_mode is ssl.CERT_REQUIRED
    assert "secret" not in repr(found)


def test_an_authority_comes_as_data_or_as_a_file_beside(tmp_path: Path, pem: Path) -> None:
    data = base64.b64encode(pem.read_bytes()).decode()
    for cluster in ({"certificate-authority-data": data}, {"certificate-authority": "certificate.pem"}):
        found = read_kubeconfig(write(tmp_path / "config", cluster=cluster))
        assert found.tls is not None
        assert len(found.tls.get_ca_certs()) == 1  # and none of the system's


def test_verification_can_be_left_out(tmp_path: Path) -> None:
    found = read_kubeconfig(write(tmp_path / "config", cluster={"insecure-skip-tls-verify": True}))
    assert found.tls is not None
    assert (found.tls.verify_mode, found.tls.check_hostname) == (ssl.CERT_NONE, False)


def test_a_client_certificate_is_loaded(tmp_path: Path, pem: Path) -> None:
    user = {"client-certificate": "certificate.pem", "client-key": "key.pem"}
    assert read_kubeconfig(write(tmp_path / "config", user=user)).tls is not None
    make_certificate(tmp_path / "other.pem", tmp_path / "key.pem")
    with pytest.raises(InvalidInputError, match="do not fit"):
        read_kubeconfig(write(tmp_path / "config", user=user))


def test_a_token_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    assert read_kubeconfig(write(tmp_path / "config", user={"token": None, "tokenFile": "token"})).token == "from-file"


def test_plain_http_needs_no_tls(tmp_path: Path) -> None:
    assert read_kubeconfig(write(tmp_path / "config", cluster={"server": "http://127.0.0.1:8001/"})).tls is None


def test_of_several_files_the_first_that_names_a_thing_counts(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.write_text("current-context: here\nusers: [{name: u, user: {token: first}}]")
    second = write(tmp_path / "second", **{"current-context": "elsewhere"})
    found = read_kubeconfig([tmp_path / "missing", first, second])
    assert (found.token, found.namespace) == ("first", "mine")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"current-context": "nowhere"}, "contexts: there is no context 'nowhere'"),
        ({"current-context": ""}, "current-context: no current context is set"),
        ({"clusters": [{"name": "c", "cluster": {}}]}, "clusters[0].cluster.server: must be text"),
        ({"clusters": [{"name": "c", "cluster": {"server": "ftp://x"}}]}, "'ftp://x' is no URL"),
        ({"clusters": {}}, "there is no cluster 'c'"),
        ({"clusters": "c"}, "clusters: must be a list"),
        ({"users": []}, "users: there is no user 'u'"),
        (
            {"users": [{"name": "u", "user": {"exec": {"command": "aws"}}}]},
            "users[0].user.exec: this is not",
        ),
        ({"users": [{"name": "u", "user": {"tokenFile": "missing"}}]}, "users[0].user.tokenFile: cannot read"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_field(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "config", **changes)
    with pytest.raises((InvalidInputError, NotFoundError)) as raised:
        read_kubeconfig(path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


@pytest.mark.parametrize("data", ["!", base64.b64encode(b"no certificate").decode()])
def test_a_certificate_that_is_none_is_refused(tmp_path: Path, data: str) -> None:
    with pytest.raises(InvalidInputError, match="certificate-authority"):
        read_kubeconfig(write(tmp_path / "config", cluster={"certificate-authority-data": data}))


def test_no_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="meedge up"):
        read_kubeconfig(tmp_path / "config")
    (tmp_path / "config").write_text("a: [")
    with pytest.raises(InvalidInputError, match="is no YAML"):
        read_kubeconfig(tmp_path / "config")
