"""Ten thousand requests that make more or less sense: the server answers each of them, and stays of one piece."""

import asyncio
import json
import random
from collections import Counter
from copy import deepcopy
from urllib.parse import urlencode

import pytest
from sample_objects import SPECS, STATUSES

from meedge_ray.api.kinds import KINDS
from meedge_ray.operator.server.app import App
from meedge_ray.operator.server.collector import Collector
from meedge_ray.operator.server.resources import RESOURCES
from meedge_ray.operator.server.seeds import sow
from meedge_ray.operator.server.store import Store

REQUESTS = 10_000
NAMES, NAMESPACES = ("a", "b", "c"), ("default", "default", "default", "lab", "nope")
WRITTEN = [resource for resource in RESOURCES if "patch" in resource.verbs]
STORED = [resource for resource in RESOURCES if "list" in resource.verbs]
ODD = (
    *(None, True, False, 0, -1, 3, 2**62, 0.5, 1e300, "", "x", "64Mi", "Ready", "a" * 300, "\x00", "é", "../..", "%2F"),
    *(
        [],
        {},
        [None],
        [[]],
        {"": None},
        [{"uid": "1"}],
        [{"name": "x"}],
        {"a": {"b": {"c": []}}},
        {"matchLabels": {"a": "b"}},
    ),
    *([{}], "2026-01-31T12:00:00Z", ["example.com/hold"], ["orphan", "foregroundDeletion"], {"k:{}": {}}),
)
FIELDS = (
    *("metadata", "spec", "status", "name", "namespace", "labels", "annotations", "finalizers", "ownerReferences"),
    *(
        "managedFields",
        "resourceVersion",
        "uid",
        "generation",
        "deletionTimestamp",
        "generateName",
        "kind",
        "apiVersion",
    ),
    *(
        "conditions",
        "involvedObject",
        "lastTimestamp",
        "series",
        "memory",
        "modelRef",
        "device",
        "f:spec",
        "$patch",
        "x",
    ),
)
TYPES = (
    *("application/json", "application/yaml", "application/merge-patch+json", "application/json-patch+json"),
    *("application/apply-patch+yaml", "application/strategic-merge-patch+json", "text/plain", ""),
    "application/vnd.kubernetes.protobuf",
)
ACCEPTS = (
    *("application/json", "*/*", "", "text/html", "application/json;as=Table;v=v1;g=meta.k8s.io", ";;=,=;"),
    *("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", "application/json;as=Table;v=v9;g=meta.k8s.io"),
)
QUERIES = {
    "dryRun": ("All", "Some"),
    "fieldManager": ("me", "you", "m" * 200, "\x07"),
    "fieldValidation": ("Strict", "Warn", "Ignore", "no"),
    "force": ("true", "false", "2"),
    "limit": ("1", "2", "0", "x", "9" * 30),
    "continue": ("x", "eyJ2IjoxfQ==", "WzEsImEiLCJiIl0="),
    "labelSelector": ("a=b", "a in (b", "!a,b!=c", "a>1", "\x00", "é"),
    "fieldSelector": ("metadata.name=a", "a.b.c!=1", "=", "metadata=x"),
    "resourceVersion": ("0", "1", "5", "99999999", "x"),
    "resourceVersionMatch": ("Exact", "NotOlderThan", "x"),
    "watch": ("1", "true", "no", "0"),
    "timeoutSeconds": ("1", "x"),
    "allowWatchBookmarks": ("true",),
    "sendInitialEvents": ("true", "false"),
    "propagationPolicy": ("Orphan", "Foreground", "Background", "x"),
    "includeObject": ("None", "Object", "x"),
}


class Fuzz:
    """Draws requests; the seed decides all."""

    def __init__(self, seed):
        self.draw = random.Random(seed)

    def some(self, share):
        return self.draw.random() < share

    def odd(self):
        return deepcopy(self.draw.choice(ODD))

    def path(self, method):
        draw = self.draw
        if self.some(0.03):
            return draw.choice(
                ("", "/", "/api", "/apis", "/version", "/openapi/v2", "/api/v1/x", "/apis/a/b/c/d", "/é")
            )
        resource = draw.choice(WRITTEN if self.some(0.95) else RESOURCES)
        path = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
        if resource.namespaced and self.some(0.97):
            path += f"/namespaces/{draw.choice(NAMESPACES)}"
        path += f"/{resource.plural}"
        if self.some({"POST": 0.03, "GET": 0.5}.get(method, 0.97)):
            path += "/" + (draw.choice(NAMES if resource.namespaced else NAMESPACES) if self.some(0.98) else "Ünfug")
            if self.some(0.3 if resource.custom else 0.02):
                path += "/status" if self.some(0.95) else "/scale"
        return path

    def content(self, path):
        """An object that fits the path, most often."""
        kind = next((kind for kind in KINDS if f"/{kind.plural}" in path), self.draw.choice(KINDS))
        parts = path.split("/")
        name = parts[-2] if parts[-1] == "status" else parts[-1]
        metadata = {"name": name if name in (*NAMES, *NAMESPACES) else self.draw.choice(NAMES)}
        if self.some(0.2):
            metadata["labels"] = {"a": self.draw.choice("bc")}
        if self.some(0.1):
            metadata["finalizers"] = ["example.com/hold"]
        content = {"metadata": metadata}
        if "/events" in path:
            content["involvedObject"] = {"kind": "EdgeDevice", "name": "a"}
        elif "/namespaces/" not in path or "meedge.dev" in path:
            content |= {
                "spec": json.loads(json.dumps(SPECS[kind.name])),
                "status": json.loads(json.dumps(STATUSES[kind.name])),
            }
        for _ in range(self.draw.choice((0, 0, 0, 1, 1, 2))):
            self.spoil(content)
        return content

    def spoil(self, content):
        node = content
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if keys and isinstance(node[key := self.draw.choice(keys)], dict | list) and self.some(0.7):
                node = node[key]
                continue
            if isinstance(node, list):
                node.append(self.odd())
            elif keys and self.some(0.3):
                del node[key]
            else:
                node[self.draw.choice([*keys, *FIELDS])] = self.odd()
            return

    def patch(self):
        draw = self.draw
        where = (
            "",
            "/",
            "/spec",
            "/spec/threads",
            "/metadata/labels",
            "/metadata/finalizers/-",
            "/status/x",
            "/metadata/name",
        )
        return [
            {
                "op": draw.choice(("add", "remove", "replace", "move", "copy", "test", "no")),
                "path": draw.choice((*where, "/a/b/c/0", "spec", "/spec/~2", "/metadata")),
                **({"value": self.odd()} if self.some(0.8) else {}),
                **({"from": draw.choice(where)} if self.some(0.5) else {}),
            }
            for _ in range(draw.randint(0, 3))
        ]

    def body(self, method, path, kind):
        if method in ("GET", "OPTIONS") or self.some(0.02):
            return b""
        if method == "DELETE":
            options = {"propagationPolicy": self.draw.choice(("Orphan", "Foreground", "Background"))}
            if self.some(0.2):
                self.spoil(options)
            return json.dumps(options).encode() if self.some(0.7) else b""
        content = self.patch() if "json-patch" in kind and self.some(0.9) else self.content(path)
        if "strategic" in kind or ("merge" in kind and self.some(0.5)):
            content = {self.draw.choice(FIELDS): self.odd()}
        body = json.dumps(content).encode()
        if self.some(0.02):
            place = self.draw.randrange(len(body))
            body = body[:place] + self.draw.randbytes(3) + body[place + self.draw.randint(0, 5) :]
        return body

    def request(self):
        draw = self.draw
        method = draw.choices(("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"), (15, 25, 20, 30, 9, 1))[0]
        path = self.path(method)
        likely = {"PATCH": TYPES[2:6]}.get(method, TYPES[:1])
        kind = draw.choice(likely if self.some(0.93) else TYPES)
        names = draw.sample(sorted(QUERIES), draw.choice((0, 0, 0, 1, 2, 3)))
        query = {name: draw.choice(QUERIES[name]) for name in names}
        if "apply" in kind and self.some(0.9):
            query |= {"fieldManager": draw.choice(("me", "you"))}
        return (
            method,
            path,
            query,
            kind,
            draw.choice(ACCEPTS if self.some(0.3) else ACCEPTS[:1]),
            self.body(method, path, kind),
        )


async def ask(app, method, path, query, kind, accept, body):
    """One request straight to the application; a client that goes as soon as it has asked."""
    asked, answer = [{"type": "http.request", "body": body, "more_body": False}], []

    async def receive():
        return asked.pop() if asked else {"type": "http.disconnect"}

    async def send(message):
        answer.append(message)

    headers = [(b"content-type", kind.encode()), (b"accept", accept.encode())]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": headers,
        "query_string": urlencode(query).encode(),
    }
    await app(scope, receive, send)
    return answer[0]["status"], b"".join(part.get("body", b"") for part in answer[1:])


def contents(store):
    return {resource.stored: store.list(resource.stored, None).json for resource in STORED}


async def settle(store):
    """Until nothing is written any more."""
    version = -1
    while version != store.version:
        version = store.version
        await asyncio.sleep(1.5)


async def fuzz(folder, seed):
    codes = Counter()
    store = Store(folder / "state.db", history=10 * REQUESTS)
    await sow(store)
    start = contents(store)
    watches = {resource.stored: store.watch(resource.stored, None, store.version) for resource in STORED}
    collecting = asyncio.create_task(Collector(store, event_ttl_s=3600).run())
    app, draw = App(store, lambda _: "admin"), Fuzz(seed)
    for _ in range(REQUESTS):
        request = draw.request()
        code, body = await ask(app, *request)
        codes[code] += 1
        assert code < 500, (request, body)
        if code >= 400:
            status = json.loads(body)
            assert (status["kind"], status["code"]) == ("Status", code), (request, body)
    await settle(store)
    assert not collecting.done()
    collecting.cancel()
    await asyncio.gather(collecting, return_exceptions=True)
    ends = contents(store)
    for resource in STORED:
        assert await replayed(start[resource.stored], watches[resource.stored]) == sorted(ends[resource.stored])
    store.close()
    return codes, ends


async def replayed(items, watch):
    """What one who listed and then watched believes to be there."""
    there = {identity(json.loads(item)): item for item in items}
    while changes := await watch.next(0):
        for change in changes:
            if change.type == "DELETED":
                del there[identity(change.object)]
            else:
                assert (identity(change.object) in there) == (change.type == "MODIFIED")
                there[identity(change.object)] = change.json
    return sorted(there.values())


def identity(content):
    return content["metadata"].get("namespace"), content["metadata"]["name"]


@pytest.mark.parametrize("seed", [1])
def test_no_request_breaks_the_server(tmp_path, seed):
    codes, ends = asyncio.run(fuzz(tmp_path, seed))

    assert {200, 201, 400, 404, 405, 406, 409, 410, 415, 422} <= set(codes)
    objects = [json.loads(item) for items in ends.values() for item in items]
    uids = [content["metadata"]["uid"] for content in objects]
    assert len(uids) == len(set(uids))
    kinds = {kind.name: kind for kind in KINDS}
    namespaces = {content["metadata"]["name"] for content in objects if content["kind"] == "Namespace"}
    for content in objects:
        if kind := kinds.get(content["kind"]):
            assert kind.problems(content) == []
            assert kind.status_problems(content.get("status", {})) == []
            assert content["metadata"]["namespace"] in namespaces
    store = Store(tmp_path / "state.db")
    assert contents(store) == ends
    store.close()
