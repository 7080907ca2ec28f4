import asyncio
import contextlib
import json
import shutil
import socket
import threading

import pytest
import uvicorn

from meedge_ray.api.serving import PlacementRequest
from meedge_ray.bundle.manifest import bundle_units
from meedge_ray.domain.errors import (
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from meedge_ray.operator.keeping.certificate import make_certificate
from meedge_ray.runtime import client as client_module
from meedge_ray.runtime.client import ServiceClient
from meedge_ray.runtime.downloads import Download


@pytest.fixture
def unit(world):
    return world.branch("exit2-large").units[0]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(client_module, "BACK_OFF_S", (0.0, 0.0, 0.0))


def error_json(what, where="", do=""):
    return json.dumps({"what": what, "where": where, "do": do}).encode()


def fetch(client, unit):
    download = Download(unit.sha256, unit.size_bytes)
    client.receive([download], arrived=lambda _: None, whole=lambda _: None)
    return download.data()


def test_the_bundle_and_the_units_arrive_as_they_are(client, world, unit):
    assert client.models().models == []
    assert client.bundle("tiny") == world.bundle
    assert fetch(client, unit) == world.units[unit.sha256]


def test_a_placement_is_asked_for(client, world, whole_bytes):
    response = client.place("tiny", PlacementRequest(memory_bytes=whole_bytes))
    assert response.branches
    assert response.size_bytes <= whole_bytes


def test_a_broken_transmission_goes_on_where_it_broke(client, service, world, unit):
    service.break_after[unit.sha256] = [100, 250]
    assert fetch(client, unit) == world.units[unit.sha256]
    assert service.asked() == [[(unit.sha256, offset)] for offset in (0, 100, 350)]


def test_a_transmission_that_breaks_every_time_is_given_up(client, service, unit):
    service.break_after[unit.sha256] = [10] * 10
    with pytest.raises(UnavailableError, match="received 10 bytes"):
        fetch(client, unit)
    assert service.asked() == [[(unit.sha256, offset)] for offset in (0, 10, 20, 30)]


def test_as_long_as_units_become_whole_a_transmission_that_breaks_is_not_given_up(client, service, world):
    units = bundle_units(world.bundle)
    for unit in units:
        service.break_after[unit.sha256] = [10, 10, 10]
    whole = []
    downloads = [Download(unit.sha256, unit.size_bytes) for unit in units]
    client.receive(downloads, arrived=lambda _: None, whole=whole.append)
    assert whole == downloads
    assert all(download.data() == world.units[download.sha256] for download in downloads)


def test_other_bytes_than_named_are_refused(client, service, world, unit):
    data = world.units[unit.sha256]
    for sent in (data[:-1] + b"x", data + b"x"):
        service.swapped[unit.sha256] = sent
        with pytest.raises(IntegrityError, match=unit.sha256):
            fetch(client, unit)


def test_a_unit_shorter_than_said_is_given_up(client, service, world, unit):
    service.swapped[unit.sha256] = world.units[unit.sha256][:100]
    with pytest.raises((UnavailableError, InvalidInputError)):
        fetch(client, unit)


def test_a_bundle_other_than_its_hash_is_refused(client, service):
    service.answers["/v1/models/tiny/bundle"] = (200, b"{}")
    with pytest.raises(IntegrityError, match="does not have the SHA-256"):
        client.bundle("tiny")


def test_a_wrong_token_is_said(service):
    with (
        ServiceClient(service.url, "guess") as stranger,
        pytest.raises(InvalidInputError, match="token") as error,
    ):
        stranger.models()
    assert error.value.do == "Send the token"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, NotFoundError),
        (422, InvalidInputError),
        (413, InvalidInputError),
        (500, UnavailableError),
        (503, UnavailableError),
        (429, UnavailableError),
        (302, UnavailableError),
    ],
)
def test_an_error_arrives_as_the_service_said_it(client, service, status, kind):
    service.answers["/v1/models"] = (status, error_json("too late", "models", "Come back"))
    with pytest.raises(kind, match=r"models: too late\. Come back"):
        client.models()
    service.answers["/v1/models"] = (status, b"<html>")
    with pytest.raises(kind, match=str(status)) as error:
        client.models()
    assert error.value.where == f"{service.url}/v1/models"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"models": 1}', b'{"models": [], "more": 1}', b"\xff"])
def test_nonsense_is_no_answer(client, service, body):
    service.answers["/v1/models"] = (200, body)
    with pytest.raises(UnavailableError, match="is no ModelList"):
        client.models()


def test_a_server_away_is_named_with_what_to_do(unit):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with ServiceClient(url, timeout_s=1) as client:
            for call in (client.models, lambda: client.bundle("tiny"), lambda: fetch(client, unit)):
                with pytest.raises(UnavailableError, match=url) as error:
                    call()
                assert error.value.do


def test_a_server_that_hangs_up_or_never_answers_is_away(client, service):
    service.away = True
    with pytest.raises(UnavailableError, match="does not answer"):
        client.models()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with ServiceClient(url, timeout_s=0.05) as client, pytest.raises(UnavailableError, match="timed out"):
            client.models()


@pytest.mark.parametrize("url", ["", "host:8000", "ftp://host", "http://", "http://host:port"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(InvalidInputError, match="no HTTP URL"):
        ServiceClient(url)


def test_a_model_name_cannot_reach_another_path(client, service):
    with pytest.raises(NotFoundError):
        client.bundle("../units/x")
    assert service.requests[-1][1] == "/v1/models/..%2Funits%2Fx/bundle"


def test_a_renewed_token_is_sent_from_the_next_request_on(service):
    with ServiceClient(service.url, "old") as client:
        with pytest.raises(InvalidInputError, match="token"):
            client.models()
        client.renew_token(service.token)
        assert client.models().models == []
        service.token = "rotated"
        client.renew_token("rotated")
        assert client.models().models == []


@pytest.mark.parametrize("token", ["two words", "line\n", "\u00fcmlaut", "\x00", "a\r\nHost: b"])
def test_a_token_that_no_header_takes_is_refused(client, service, token):
    with pytest.raises(InvalidInputError, match="token"):
        ServiceClient(service.url, token)
    with pytest.raises(InvalidInputError, match="token"):
        client.renew_token(token)
    assert client.models().models == []


@contextlib.contextmanager
def https_server(certificate, key, address="127.0.0.1"):
    """A real HTTPS server that knows one path: yields its URL."""

    async def app(scope, receive, send):
        known = scope["path"] == "/v1/models" and (b"authorization", b"Bearer secret") in scope["headers"]
        await send({"type": "http.response.start", "status": 200 if known else 401, "headers": []})
        await send({"type": "http.response.body", "body": b'{"models": []}' if known else b""})

    config = uvicorn.Config(
        app, log_level="critical", lifespan="off", ws="none", ssl_certfile=certificate, ssl_keyfile=key
    )
    server = uvicorn.Server(config)
    with socket.create_server((address, 0)) as listening:
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listening]),))
        thread.start()
        try:
            yield f"https://{address}:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def certificate(tmp_path):
    """A server's certificate with its authority's, and its key."""
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    make_certificate(certificate, key)
    return certificate, key


def test_an_https_service_is_verified_by_the_authority_given(certificate):
    with https_server(*certificate) as url, ServiceClient(url, "secret", ca_file=certificate[0]) as client:
        assert client.models().models == []


def test_a_service_that_another_authority_vouches_for_gets_no_token(certificate, tmp_path):
    make_certificate(tmp_path / "other.pem", tmp_path / "other.key")
    with https_server(*certificate) as url:
        for trusted in (tmp_path / "other.pem", None):
            with (
                ServiceClient(url, "secret", ca_file=trusted) as client,
                pytest.raises(UnavailableError, match="certificate is refused") as error,
            ):
                client.models()
            assert error.value.where == f"{url}/v1/models"
            assert "as the CA file" in error.value.do


def test_a_certificate_of_another_name_is_refused(certificate):
    with (
        https_server(*certificate, address="127.0.0.2") as url,
        ServiceClient(url, "secret", ca_file=certificate[0]) as client,
        pytest.raises(UnavailableError, match="certificate is refused") as error,
    ):
        client.models()
    assert "a name that the certificate has" in error.value.do


def test_https_where_none_is_spoken_is_said(service, certificate):
    url = service.url.replace("http", "https")
    with (
        ServiceClient(url, "secret", ca_file=certificate[0], timeout_s=5) as client,
        pytest.raises(UnavailableError, match="no TLS connection") as error,
    ):
        client.models()
    assert "HTTPS" in error.value.do


def test_a_ca_file_that_cannot_be_used_is_said(certificate, tmp_path):
    missing, empty, key = tmp_path / "missing.pem", tmp_path / "empty.pem", tmp_path / "key.pem"
    empty.write_bytes(b"")
    shutil.copy(certificate[1], key)
    for path in (missing, empty, key, tmp_path):
        with pytest.raises(InvalidInputError, match="CA file") as error:
            ServiceClient("https://host:1", ca_file=path)
        assert error.value.where == str(path)
        assert error.value.do
    with pytest.raises(InvalidInputError, match="nothing is encrypted"):
        ServiceClient("http://host:1", ca_file=certificate[0])
