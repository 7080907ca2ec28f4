"""A placement service on a real port, which can misbehave."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from worlds import World

from meedge_ray.bundle.manifest import bundle_json, bundle_sha256
from meedge_ray.bundle.store import sha256_of
from meedge_ray.domain.errors import MeedgeError
from meedge_ray.runtime.placing import Placer


@dataclass
class Service:
    """A placement service on a real port, with faults to switch on."""

    world: World
    token: str = "secret"
    url: str = ""
    requests: list = field(
        default_factory=list
    )  # (method, path, the units' names and offsets where some are asked for)
    break_after: dict = field(default_factory=dict)  # unit -> bytes of it sent before each of the next breaks
    swapped: dict = field(default_factory=dict)  # unit -> bytes sent instead
    answers: dict = field(default_factory=dict)  # path prefix -> (status, body) sent instead
    placements: list = field(default_factory=list)  # bodies of the requests
    away: bool = False
    hangs: str = ""  # path prefix of the requests that are not answered before `go_on`
    hanging: int = 0  # requests that wait now
    go_on: threading.Event = field(default_factory=threading.Event)

    def fetched(self):
        return [sha256 for asked in self.asked() for sha256, _ in asked]

    def asked(self):
        """What each request for units was for."""
        return [units for _, path, units in self.requests if path == "/v1/units"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer(b"")

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, *args):
        pass

    def _answer(self, body):
        service = self.server.service
        if service.away:
            self.close_connection = True
            return
        units = None
        if self.path == "/v1/units":
            units = [(unit["sha256"], unit["offset_bytes"]) for unit in json.loads(body)["units"]]
        service.requests.append((self.command, self.path, units))
        if service.hangs and self.path.startswith(service.hangs):
            service.hanging += 1
            service.go_on.wait()
            service.hanging -= 1
        for prefix, (status, data) in service.answers.items():
            if self.path.startswith(prefix):
                return self._send(status, data)
        if self.headers["Authorization"] != f"Bearer {service.token}":
            return self._send(401, _error("the bearer token is wrong", "header", "Send the token"))
        if self.path == "/v1/models":
            return self._send(200, b'{"models": []}')
        if self.path == f"/v1/models/{service.world.bundle.model}/bundle":
            data = bundle_json(service.world.bundle)
            return self._send(200, data, ETag=f'"{sha256_of(data)}"')
        if self.path == f"/v1/models/{service.world.bundle.model}/placements":
            return self._place(json.loads(body))
        if units is not None and service.world.units.keys() >= {sha256 for sha256, _ in units}:
            return self._units(units)
        return self._send(404, _error("no such thing", self.path, "Ask for another"))

    def _place(self, request):
        bundle = self.server.service.world.bundle
        self.server.service.placements.append(request)
        try:
            placement = Placer(bundle, device_type=request.get("device_type")).place(request["memory_bytes"])
        except MeedgeError as error:
            return self._send(error.http_status, _error(error.what, error.where, error.do))
        body = {
            "model": bundle.model,
            "bundle_sha256": bundle_sha256(bundle),
            "branches": list(placement.branches),
            "size_bytes": placement.size_bytes,
            "expectation": placement.expectation,
            "horizon_ms": placement.horizon_ms,
            "device_type": placement.device_type,
            "units": [],
            "fetch": [],
            "transmission_ms": None,
            "search_ms": 0.1,
        }
        return self._send(200, json.dumps(body).encode())

    def _units(self, units):
        service = self.server.service
        data, break_after = b"", None
        for sha256, offset_bytes in units:
            breaks = service.break_after.get(sha256)
            if breaks and break_after is None:
                break_after = len(data) + breaks.pop(0)
            data += service.swapped.get(sha256, service.world.units[sha256])[offset_bytes:]
        return self._send(200, data, break_after)

    def _send(self, status, data, break_after=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:break_after])
        if break_after is not None:
            self.close_connection = True


def _error(what, where, do):
    return json.dumps({"what": what, "where": where, "do": do}).encode()


@contextmanager
def serving(world: World) -> Iterator[Service]:
    """Serve while the context lasts."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.service = Service(world, url=f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.service
        server.service.go_on.set()
        server.shutdown()
        thread.join()
