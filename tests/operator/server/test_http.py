"""The API over HTTP, as no client that behaves would use it."""

import json
import socket
import ssl
import threading
import time

import psutil
import pytest
from api_process import device

GROUP = "/apis/meedge.dev/v1alpha1"
MERGE = {"content-type": "application/merge-patch+json"}
APPLY = {"content-type": "application/apply-patch+yaml"}
TABLE = {"accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}


@pytest.fixture
def path(namespace):
    return f"{GROUP}/namespaces/{namespace}/edgedevices"


def status(response):
    content = response.json()
    assert (content["kind"], content["apiVersion"], content["status"]) == ("Status", "v1", "Failure")
    assert content["code"] == response.status_code
    return content["code"], content["reason"]


def merge(http, path, content, **query):
    return http.patch(path, content=json.dumps(content), headers=MERGE, params=query)


def test_without_a_token_only_health_is_answered(server):
    with server.client(headers={}) as nobody:
        assert [nobody.get(path).text for path in ("/healthz", "/livez", "/readyz")] == ["ok"] * 3
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {server.token}"}):
            for path in ("/version", "/api", "/nowhere", f"{GROUP}/edgedevices"):
                refused = nobody.get(path, headers=headers)
                assert status(refused) == (401, "Unauthorized")
                assert refused.headers["www-authenticate"] == "Bearer"


def test_further_tokens_count_while_their_files_are_there(own_server):
    own_server.start()
    tokens = own_server.home / "tokens"
    (tokens / "eve").write_text("short")
    (tokens / "bob").write_text("bob's very own token\n")

    def user(token):
        with own_server.client(headers={"authorization": f"Bearer {token}"}) as http:
            answer = http.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", json={})
            return answer.json()["status"]["userInfo"]["username"] if answer.is_success else answer.status_code

    until(lambda: user("bob's very own token") == "bob")
    assert user("short") == 401
    assert user(own_server.token) == "admin"
    (tokens / "bob").unlink()
    until(lambda: user("bob's very own token") == 401)


def until(holds):
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    "place",
    [
        "/",
        "/apis/meedge.dev/v2/edgedevices",
        "/apis/nobody.dev/v1/things",
        "/api/v1/pods",
        f"{GROUP}/edgedevices/pi-1",
        f"{GROUP}/namespaces/default/edgedevices/pi-1/scale",
        f"{GROUP}/namespaces//edgedevices",
        f"{GROUP}/namespaces/default/edgedevices/pi-1/status/more",
        "/api/v1/namespaces/default/status",
        "/api/v1/namespaces/a%2Fb/events/c",
        "/openapi/v3/nothing",
        "/%ff%fe",
    ],
)
def test_where_nothing_is_served_it_is_said_so(http, place):
    assert status(http.get(place)) == (404, "NotFound")


@pytest.mark.parametrize(
    ("method", "place"),
    [
        ("POST", f"{GROUP}/edgedevices"),
        ("DELETE", f"{GROUP}/edgedevices"),
        ("PUT", f"{GROUP}/namespaces/default/edgedevices"),
        ("POST", f"{GROUP}/namespaces/default/edgedevices/pi-1"),
        ("DELETE", f"{GROUP}/namespaces/default/edgedevices/pi-1/status"),
        ("DELETE", "/api/v1/namespaces"),
        ("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"),
        ("GET", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"),
        ("OPTIONS", "/api/v1/namespaces"),
    ],
)
def test_verbs_that_are_not_served_are_refused(http, method, place):
    assert status(http.request(method, place, json={})) == (405, "MethodNotAllowed")


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'"text"', "application/json", 400),
        (b'{"metadata": 5}', "application/json", 400),
        (b'{"kind": "Pod"}', "application/json", 400),
        (b'{"apiVersion": ["v1"]}', "application/json", 400),
        (b'{"spec": NaN}', "application/json", 400),
        (b'{"spec": 1e999}', "application/json", 400),
        (b'{"spec": 99999999999999999999}', "application/json", 400),
        (b'{"spec": "\\ud800"}', "application/json", 400),
        (b'{"spec": {}, "spec": {}}', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"a":' * 100_000, "application/json", 400),
        (b"[" * 100_000, "application/yaml", 400),
        (b"- " * 100_000, "application/yaml", 400),
        (b"a: &x [1]\nb: *x", "application/yaml", 400),
        (b"a: !!python/object/apply:os.system [id]", "application/yaml", 400),
        (b"a: b: c", "application/yaml", 400),
        (b"a: !!bool x", "application/yaml", 400),
        (b"a: 1\n---\nb: 2", "application/yaml", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "application/xml", 415),
        (b"k8s\x00\x0a", "application/vnd.kubernetes.protobuf", 400),
        (b"nothing", "application/vnd.kubernetes.protobuf", 400),
        (b'{"metadata": {}, "spec": {}}', "application/json", 422),
        (b" " * (3 * 2**20 + 1), "application/json", 413),
        (b"#" * (2**18 + 1), "application/yaml", 413),
    ],
)
def test_bad_bodies_are_refused_and_hurt_nobody(http, path, body, kind, code):
    assert status(http.post(path, content=body, headers={"content-type": kind}))[0] == code
    assert http.get("/readyz").text == "ok"


@pytest.mark.parametrize(
    "query",
    [
        "limit=x",
        "limit=-1",
        "timeoutSeconds=soon&watch=1",
        "watch=perhaps",
        "labelSelector=a in (",
        "fieldSelector=a",
        "continue=nonsense",
        "resourceVersion=abc",
        "resourceVersionMatch=Some&resourceVersion=1",
        "includeObject=All",
    ],
)
def test_bad_parameters_are_refused(http, path, query):
    assert status(http.get(f"{path}?{query}", headers=TABLE)) == (400, "BadRequest")


def test_what_is_wanted_in_no_known_form_is_refused(http, path):
    assert http.get(path, headers={"accept": "application/xml"}).status_code == 406
    assert http.get(path, headers={"accept": "application/vnd.kubernetes.protobuf"}).status_code == 406


def test_yaml_is_read_as_kubernetes_reads_it(http, path):
    text = "metadata: {name: y, labels: {on: 'yes'}, annotations: {when: 2024-01-01}}\n"
    text += "spec: {device: y, serviceRef: {name: s}, modelRef: {name: m}, memory: 64Mi}\n"

    made = http.post(path, content=text, headers={"content-type": "application/yaml"})

    assert made.status_code == 201
    assert made.json()["metadata"]["annotations"] == {"when": "2024-01-01"}


def test_unknown_fields_of_a_spec_are_refused_unless_the_client_asks_to_drop_them(http, path):
    wrong = device(memori="1Mi") | {"extra": 1}

    refused = http.post(path, json=wrong)
    warned = http.post(path, json=wrong, params={"fieldValidation": "Warn"})
    http.delete(f"{path}/pi-1")
    ignored = http.post(path, json=wrong, params={"fieldValidation": "Ignore"})

    assert status(refused) == (422, "Invalid")
    assert {cause["field"] for cause in refused.json()["details"]["causes"]} == {"extra", "spec.memori"}
    assert warned.json()["spec"] == device()["spec"]
    assert sorted(warned.headers.get_list("warning")) == [
        '299 - "unknown field \\"extra\\""',
        '299 - "unknown field \\"spec.memori\\""',
    ]
    assert ignored.status_code == 201
    assert "warning" not in ignored.headers


def test_unknown_fields_of_a_status_are_dropped_unless_the_client_is_strict(http, path):
    http.post(path, json=device())
    more = {"status": {"branches": 2, "kopf": {"progress": {}}}}

    dropped = merge(http, f"{path}/pi-1/status", more)
    strict = merge(http, f"{path}/pi-1/status", more, fieldValidation="Strict")
    wrong = merge(http, f"{path}/pi-1/status", {"status": {"branches": "two"}})

    assert dropped.json()["status"] == {"branches": 2}
    assert status(strict) == (422, "Invalid")
    assert wrong.json()["details"]["causes"][0]["field"] == "status.branches"


def test_a_watch_begins_with_what_is_there_and_tells_what_happens(http, path):
    http.post(path, json=device())
    with http.stream("GET", path, params={"watch": "1", "timeoutSeconds": "30"}) as stream:
        lines = (json.loads(line) for line in stream.iter_lines())
        first = next(lines)
        merge(http, f"{path}/pi-1", {"spec": {"threads": 2}})
        second = next(lines)
        http.delete(f"{path}/pi-1")
        third = next(lines)

    assert [event["type"] for event in (first, second, third)] == ["ADDED", "MODIFIED", "DELETED"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in (first, second, third)]
    assert versions == sorted(set(versions))
    assert third["object"]["spec"]["threads"] == 2


def test_a_watch_of_a_selection_tells_what_enters_and_leaves_it(http, path):
    http.post(path, json=device())
    version = http.get(path).json()["metadata"]["resourceVersion"]
    query = {"watch": "1", "labelSelector": "room=hall", "resourceVersion": version, "timeoutSeconds": "30"}
    with http.stream("GET", path, params=query) as stream:
        lines = (json.loads(line) for line in stream.iter_lines())
        seen = []
        for labels, threads in (
            ({"room": "hall"}, 1),
            ({"room": "hall"}, 2),
            ({"room": None}, 2),
            ({"room": "attic"}, 3),
        ):
            merge(http, f"{path}/pi-1", {"metadata": {"labels": labels}, "spec": {"threads": threads}})
            if labels != {"room": "attic"}:
                seen.append(next(lines))

    assert [event["type"] for event in seen] == ["ADDED", "MODIFIED", "DELETED"]
    assert seen[2]["object"]["metadata"]["labels"] == {"room": "hall"}


def test_a_watch_ends_in_time_and_marks_where_the_beginning_ends(http, path):
    http.post(path, json=device())
    query = {"watch": "1", "timeoutSeconds": "1", "allowWatchBookmarks": "true", "sendInitialEvents": "true"}

    lines = [json.loads(line) for line in http.get(path, params=query).text.splitlines()]

    assert [event["type"] for event in lines[:2]] == ["ADDED", "BOOKMARK"]
    assert lines[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    newest = int(http.get(path).json()["metadata"]["resourceVersion"])
    assert int(lines[-1]["object"]["metadata"]["resourceVersion"]) == newest


def test_a_watch_from_a_version_that_never_was_says_list_again(http, path):
    [line] = http.get(path, params={"watch": "1", "resourceVersion": "999999999"}).text.splitlines()

    event = json.loads(line)
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    assert status(http.get(path, params={"resourceVersion": "999999999"})) == (410, "Expired")


def test_a_watch_as_a_table_gives_rows(http, path):
    http.post(path, json=device())
    query = {"watch": "1", "timeoutSeconds": "1"}

    event = json.loads(http.get(path, params=query, headers=TABLE).text.splitlines()[0])

    assert event["object"]["kind"] == "Table"
    assert event["object"]["rows"][0]["cells"][:3] == ["pi-1", "pi-1", "64Mi"]


def test_metadata_alone_is_answered_where_it_is_asked_for(http, path):
    http.post(path, json=device())
    accept = {"accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}

    one, many = http.get(f"{path}/pi-1", headers=accept).json(), http.get(path, headers=accept).json()

    assert one["kind"] == "PartialObjectMetadata"
    assert "spec" not in one
    assert many["kind"] == "PartialObjectMetadataList"
    assert many["items"][0]["metadata"]["name"] == "pi-1"


def test_many_writers_of_one_object_lose_nothing_or_are_told(http, path, server):
    http.post(path, json=device())
    outcomes = []

    def count():
        with server.client() as own:
            for _ in range(10):
                content = own.get(f"{path}/pi-1").json()
                content["spec"]["threads"] = content["spec"].get("threads", 0) + 1
                outcomes.append(own.put(f"{path}/pi-1", json=content).status_code)

    writers = [threading.Thread(target=count) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert set(outcomes) <= {200, 409}
    assert http.get(f"{path}/pi-1").json()["spec"]["threads"] == outcomes.count(200)


def test_apply_over_http_creates_and_then_changes(http, path):
    query = {"fieldManager": "me"}
    body = json.dumps(device())

    nameless = http.patch(f"{path}/pi-1", content=body, headers=APPLY)
    other = http.patch(f"{path}/pi-2", content=body, headers=APPLY, params=query)
    made = http.patch(f"{path}/pi-1", content=body, headers=APPLY, params=query)
    again = http.patch(f"{path}/pi-1", content=body, headers=APPLY, params=query)

    assert status(nameless) == status(other) == (400, "BadRequest")
    assert (made.status_code, again.status_code) == (201, 200)
    assert made.json() == again.json()
    assert made.json()["metadata"]["managedFields"][0]["manager"] == "me"


def test_the_documents_are_asked_for_once(http):
    for path in ("/openapi/v3", "/openapi/v2", "/apis", "/api/v1", "/openapi/v3/apis/meedge.dev/v1alpha1"):
        answer = http.get(path)
        assert http.get(path, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    listed = http.get("/openapi/v3").json()["paths"]
    assert all(http.get(each["serverRelativeURL"]).is_success for each in listed.values())


def test_a_body_that_does_not_come_blocks_nobody(http, server, path):
    context = ssl.create_default_context(cafile=str(server.certificate))
    host, port = server.url.removeprefix("https://").split(":")
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\nContent-Length: 100\r\n\r\n{{"
    slow = [context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host) for _ in range(50)]
    for connection in slow:
        connection.sendall(head.encode())

    assert http.post(path, json=device()).status_code == 201
    for connection in slow:
        connection.close()
    assert http.get("/readyz").text == "ok"


def test_watchers_that_vanish_are_forgotten(http, server, path):
    process = psutil.Process(server.process.pid)
    http.post(path, json=device())
    before = process.num_fds()
    context = ssl.create_default_context(cafile=str(server.certificate))
    host, port = server.url.removeprefix("https://").split(":")
    ask = f"GET {path}?watch=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n\r\n"
    watchers = [
        context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host) for _ in range(30)
    ]
    for watcher in watchers:
        watcher.sendall(ask.encode())
        assert watcher.recv(100).startswith(b"HTTP/1.1 200")
    during = process.num_fds()
    for watcher in watchers:
        watcher.close()
    until(lambda: process.num_fds() <= before)

    assert during >= before + 30


def test_names_that_are_generated_differ(http, path):
    content = device() | {"metadata": {"generateName": "pi-"}}

    names = {http.post(path, json=content).json()["metadata"]["name"] for _ in range(20)}

    assert len(names) == 20
    assert all(name.startswith("pi-") for name in names)


def test_a_collection_is_deleted_by_selector(http, path):
    for name, room in (("a", "hall"), ("b", "hall"), ("c", "attic")):
        content = device(name)
        content["metadata"]["labels"] = {"room": room}
        http.post(path, json=content)

    dry = http.delete(path, params={"labelSelector": "room=hall", "dryRun": "All"})
    before = len(http.get(path).json()["items"])
    done = http.delete(path, params={"labelSelector": "room=hall"})

    assert (dry.status_code, done.status_code, before) == (200, 200, 3)
    assert [item["metadata"]["name"] for item in http.get(path).json()["items"]] == ["c"]


def test_a_deletion_holds_to_its_preconditions(http, path):
    uid = http.post(path, json=device()).json()["metadata"]["uid"]

    wrong = http.request("DELETE", f"{path}/pi-1", json={"preconditions": {"uid": "other"}})
    unknown = http.request("DELETE", f"{path}/pi-1", json={"propagationPolicy": "Sometimes"})
    right = http.request("DELETE", f"{path}/pi-1", json={"preconditions": {"uid": uid}})

    assert status(wrong) == (409, "Conflict")
    assert status(unknown) == (422, "Invalid")
    assert right.json()["details"]["uid"] == uid


def test_events_must_be_events(http, namespace):
    path = f"/api/v1/namespaces/{namespace}/events"
    about = {"kind": "EdgeDevice", "name": "pi-1", "namespace": namespace}

    fine = http.post(path, json={"metadata": {"generateName": "e-"}, "involvedObject": about, "reason": "Placed"})
    elsewhere = http.post(path, json={"metadata": {"name": "e"}, "involvedObject": {**about, "namespace": "other"}})
    wrong = http.post(path, json={"metadata": {"name": "e"}, "involvedObject": "pi-1", "count": "many"})

    assert fine.status_code == 201
    assert status(elsewhere) == (422, "Invalid")
    assert {cause["field"] for cause in wrong.json()["details"]["causes"]} == {"involvedObject", "count"}
