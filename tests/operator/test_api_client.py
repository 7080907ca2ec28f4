"""The client against the real API server, over TLS."""

import base64
import itertools
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_process import ServerProcess, device, serving

from meedge_ray.domain.errors import InvalidInputError, NotFoundError, UnavailableError
from meedge_ray.operator.client.api_client import ApiClient, ConflictError, ExpiredError
from meedge_ray.operator.client.kubeconfig import read_kubeconfig
from meedge_ray.operator.client.resources import DEVICES, EVENTS, FLEETS, MODELS, NAMESPACES, find_resource

_SPACES = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[ApiClient]:
    with ApiClient(server.kubeconfig) as client:
        yield client


@pytest.fixture
def space(client: ApiClient) -> str:
    name = f"space-{next(_SPACES)}"
    client.create(NAMESPACES, "", {"metadata": {"name": name}}, manager="test")
    return name


def apply(client: ApiClient, space: str, content: dict[str, Any], **options: Any) -> dict[str, Any]:
    return client.apply(DEVICES, space, content, manager=options.pop("manager", "test"), **options)


def test_what_is_applied_is_got_listed_and_deleted(client: ApiClient, space: str) -> None:
    made = apply(client, space, device("pi-1"))
    assert client.get(DEVICES, space, "pi-1") == made
    assert [each["metadata"]["name"] for each in client.list(DEVICES, space)["items"]] == ["pi-1"]
    assert client.list(DEVICES)["items"]
    client.delete(DEVICES, space, "pi-1")
    with pytest.raises(NotFoundError, match='"pi-1" not found'):
        client.get(DEVICES, space, "pi-1")


def test_a_dry_run_changes_nothing(client: ApiClient, space: str) -> None:
    apply(client, space, device("pi-1"), dry_run=True)
    assert client.list(DEVICES, space)["items"] == []
    apply(client, space, device("pi-1"))
    client.delete(DEVICES, space, "pi-1", dry_run=True)
    assert client.list(DEVICES, space)["items"]


def test_fields_of_another_manager_are_a_conflict_unless_forced(client: ApiClient, space: str) -> None:
    apply(client, space, device("pi-1"), manager="other")
    with pytest.raises(ConflictError, match=r"spec\.memory"):
        apply(client, space, device("pi-1", memory="32Mi"))
    assert apply(client, space, device("pi-1", memory="32Mi"), force=True)["spec"]["memory"] == "32Mi"


def test_what_breaks_the_rules_names_its_fields(client: ApiClient, space: str) -> None:
    with pytest.raises(InvalidInputError, match=r"spec\.memory: .*no quantity"):
        apply(client, space, device("pi-1", memory="much"))


def test_status_is_patched_apart(client: ApiClient, space: str) -> None:
    apply(client, space, device("pi-1"))
    change = {"status": {"branches": 3}, "spec": {"memory": "1Mi"}}
    after = client.patch(DEVICES, space, "pi-1", change, manager="test", subresource="status")
    assert (after["status"]["branches"], after["spec"]["memory"]) == (3, "64Mi")
    after = client.patch(DEVICES, space, "pi-1", {"metadata": {"labels": {"a": "b"}}}, manager="test")
    assert after["metadata"]["labels"] == {"a": "b"}


def test_tables_and_selectors(client: ApiClient, space: str) -> None:
    for name in ("pi-1", "pi-2"):
        apply(client, space, {**device(name), "metadata": {"name": name, "labels": {"name": name}}})
    table = client.list(DEVICES, space, label_selector="name=pi-2", as_table=True)
    assert (table["kind"], [row["cells"][0] for row in table["rows"]]) == ("Table", ["pi-2"])
    assert client.get(DEVICES, space, "pi-1", as_table=True)["rows"][0]["cells"][0] == "pi-1"
    assert len(client.list(DEVICES, space, field_selector="metadata.name=pi-1")["items"]) == 1


def test_events_of_an_object_come_oldest_first(client: ApiClient, space: str) -> None:
    made = apply(client, space, device("pi-1"))
    about = {"kind": "EdgeDevice", "name": "pi-1", "namespace": space, "uid": made["metadata"]["uid"]}
    for name, time in (("late", "2026-01-02T00:00:00Z"), ("early", "2026-01-01T00:00:00Z")):
        event = {
            "metadata": {"name": name},
            "involvedObject": about,
            "reason": name,
            "type": "Normal",
            "lastTimestamp": time,
        }
        client.create(EVENTS, space, event, manager="test")
    assert [each["reason"] for each in client.events(space, about["uid"])] == ["early", "late"]


def test_a_watch_gives_what_happens_after_its_version(client: ApiClient, space: str) -> None:
    since = client.list(DEVICES, space)["metadata"]["resourceVersion"]
    apply(client, space, device("pi-1"))
    apply(client, space, device("pi-1", memory="32Mi"))
    client.delete(DEVICES, space, "pi-1")
    changes = client.watch(DEVICES, space, since)
    assert [next(changes)[0] for _ in range(3)] == ["ADDED", "MODIFIED", "DELETED"]
    changes.close()


def test_a_watch_of_a_version_that_never_was_is_refused(client: ApiClient) -> None:
    with pytest.raises((ExpiredError, InvalidInputError)):
        next(client.watch(DEVICES, None, "nonsense"))


def test_a_watch_goes_on_over_a_restart_of_the_server(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "home")
    server.start()
    try:
        with ApiClient(server.kubeconfig) as client:
            since = client.list(DEVICES, "default")["metadata"]["resourceVersion"]
            changes = client.watch(DEVICES, "default", since, as_table=True)
            apply(client, "default", device("pi-1"))
            assert next(changes)[1]["rows"][0]["cells"][0] == "pi-1"
            seen: list[Any] = []
            watching = threading.Thread(target=lambda: seen.append(next(changes)))
            watching.start()
            server.stop(signal.SIGKILL)
            server.start()
            apply(client, "default", device("pi-2"))
            watching.join(30)
            assert [content["rows"][0]["cells"][0] for _, content in seen] == ["pi-2"]
    finally:
        server.stop(signal.SIGKILL)


def test_who_has_no_token_is_told_so(server: ServerProcess, tmp_path: Path) -> None:
    text = server.kubeconfig.read_text().replace(server.token, "x" * 40)
    (tmp_path / "config").write_text(text)
    with ApiClient(tmp_path / "config") as client, pytest.raises(InvalidInputError, match="does not know you"):
        client.list(DEVICES)


def test_a_server_that_is_away_is_unavailable(server: ServerProcess, tmp_path: Path) -> None:
    text = server.kubeconfig.read_text().replace(server.url, "https://127.0.0.1:1")
    (tmp_path / "config").write_text(text)
    with ApiClient(tmp_path / "config") as client, pytest.raises(UnavailableError, match="does not answer"):
        client.get(DEVICES, "default", "pi-1")


def test_another_servers_certificate_is_not_trusted(server: ServerProcess, tmp_path: Path) -> None:
    other = ServerProcess(tmp_path / "other")
    connection = read_kubeconfig(server.kubeconfig)
    assert connection.tls is not None
    text = server.kubeconfig.read_text()
    data = base64.b64encode(other.certificate.read_bytes()).decode()
    lines = [
        f"    certificate-authority-data: {data}" if "certificate-authority-data" in line else line
        for line in text.splitlines()
    ]
    (tmp_path / "config").write_text("\n".join(lines))
    with ApiClient(tmp_path / "config") as client, pytest.raises(UnavailableError, match="certificate"):
        client.list(DEVICES)


@pytest.mark.parametrize("name", ["elasticmodels", "elasticmodel", "em", "ElasticModel", "elasticmodels.meedge.dev"])
def test_a_kind_has_many_names(name: str) -> None:
    assert find_resource(name) == MODELS


def test_a_kind_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(InvalidInputError, match="devicefleets/df"):
        find_resource("pods")
    assert FLEETS.path("a b", "c/d") == "/apis/meedge.dev/v1alpha1/namespaces/a%20b/devicefleets/c%2Fd"
    assert EVENTS.path(None) == "/api/v1/events"
    assert NAMESPACES.path("x", "y") == "/api/v1/namespaces/y"
