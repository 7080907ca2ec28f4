"""Real units without torch, and a real HTTP server that can misbehave."""

import json
import threading
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from meedge_ray.bundle.manifest import bundle_json, bundle_sha256, bundle_units
from meedge_ray.bundle.store import UnitStore, sha256_of
from meedge_ray.domain.elastic import Block, Branch, Bundle, InputSpec, Profile, Unit
from meedge_ray.domain.errors import MeedgeError
from meedge_ray.runtime.client import ServiceClient
from meedge_ray.runtime.device import Device
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.placing import Placer

SHAPE = (2, 4, 4)
CLASSES = 3
CHANNELS = 4


def unit_bytes(nodes, weights, input_shape, output_shape):
    graph = helper.make_graph(
        nodes,
        "unit",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *input_shape])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", *output_shape])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def block_bytes(weights):
    """A 1x1 convolution and a ReLU; weights [out, in]."""
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["output"]),
    ]
    out, into = weights.shape
    return unit_bytes(nodes, {"w": weights[:, :, None, None]}, (into, 4, 4), (out, 4, 4))


def head_bytes(weights, ballast=0):
    """Flatten and a linear layer; weights [features, classes]. `ballast` columns of zeros make it larger."""
    nodes = [helper.make_node("Flatten", ["input"], ["flat"])]
    initial = {"w": weights}
    last = "flat"
    if ballast:
        zeros = np.zeros((len(weights), ballast), np.float32)
        initial |= {"zeros": zeros, "axes": np.array([1])}
        nodes += [
            helper.make_node("MatMul", ["flat", "zeros"], ["many"]),
            helper.make_node("ReduceSum", ["many", "axes"], ["nothing"]),
            helper.make_node("Add", ["flat", "nothing"], ["same"]),
        ]
        last = "same"
    nodes.append(helper.make_node("MatMul", [last, "w"], ["output"]))
    return unit_bytes(nodes, initial, (weights.shape[0] // 16, 4, 4), (weights.shape[1],))


@dataclass(frozen=True)
class World:
    """A small model: its bundle, its units by name, and its weights for a reference in NumPy."""

    bundle: Bundle
    units: dict[str, bytes]
    block_weights: list[np.ndarray]
    head_weights: dict[str | None, np.ndarray]

    @property
    def blocks(self):
        return [self.units[block.unit.sha256] for block in self.bundle.blocks]

    def branch(self, name):
        return next(branch for branch in self.bundle.branches if branch.name == name)

    def candidates(self, *names):
        return [(branch, partial(self.units.__getitem__, branch.unit.sha256)) for branch in map(self.branch, names)]

    def engine(self, *names):
        engine = Engine(self.bundle.input, self.blocks, final_accuracy=self.bundle.final_accuracy)
        engine.place(self.candidates(*names))
        return engine

    def logits(self, raw):
        """What every branch and the final exit say to raw samples [n, *SHAPE], in NumPy alone."""
        spec = self.bundle.input
        mean, std = (np.reshape(value, (-1, 1, 1)) for value in (spec.mean, spec.std))
        features = (np.asarray(raw, float) * spec.scale - mean) / std
        said = {}
        for index, weights in enumerate(self.block_weights):
            features = np.maximum(np.einsum("oi,nihw->nohw", weights, features), 0)
            for branch in self.bundle.branches:
                if branch.exit_index == index:
                    said[branch.name] = features.reshape(len(features), -1) @ self.head_weights[branch.name]
        said[None] = features.reshape(len(features), -1) @ self.head_weights[None]
        return said


def make_world(seed=0, *, blocks=3, model="tiny", final_accuracy=0.9, ballast=8, classes=CLASSES):
    """Build a chain of `blocks` convolutions and a head, with two branches at every exit point."""
    random = np.random.default_rng(seed)

    def weights(*shape):
        return (random.standard_normal(shape) * 0.5).astype(np.float32)

    block_weights = [weights(CHANNELS, SHAPE[0] if index == 0 else CHANNELS) for index in range(blocks)]
    head_weights = {None: weights(CHANNELS * 16, classes)}
    chain = [block_bytes(value) for value in block_weights] + [head_bytes(head_weights[None])]
    units = {sha256_of(data): data for data in chain}
    branches = []
    for index in range(blocks):
        for kind, columns in (("small", 0), ("large", ballast * (index % 3 + 1))):
            name = f"exit{index}-{kind}"
            head_weights[name] = weights(CHANNELS * 16, classes)
            data = head_bytes(head_weights[name], columns)
            units[sha256_of(data)] = data
            accuracy = 0.3 + 0.5 * index / blocks + (0.1 if columns else 0.0)
            branches.append(
                Branch(
                    name=name,
                    exit_index=index,
                    convolution="none",
                    fc=kind,
                    unit=Unit(sha256=sha256_of(data), size_bytes=len(data)),
                    parameters=CHANNELS * 16 * (classes + columns),
                    accuracy=round(accuracy, 3),
                )
            )
    bundle = Bundle(
        model=model,
        architecture="tiny",
        input=InputSpec(shape=SHAPE, scale=1 / 255, mean=(0.5, 0.4), std=(0.2, 0.3)),
        classes=tuple(f"class{index}" for index in range(classes)),
        blocks=tuple(
            Block(
                name=f"block{index}",
                unit=Unit(sha256=sha256_of(data), size_bytes=len(data)),
                input_shape=SHAPE if index == 0 else (CHANNELS, 4, 4),
                output_shape=(classes,) if index == blocks else (CHANNELS, 4, 4),
                parameters=1,
                flops=1,
            )
            for index, data in enumerate(chain)
        ),
        final_accuracy=final_accuracy,
        branches=tuple(branches),
        profiles={
            "board-1t": Profile(
                device_type="board-1t",
                engine="onnxruntime",
                runs=1,
                block_ms=(1.0,) * (blocks + 1),
                branch_ms={branch.name: 0.1 if branch.fc == "small" else 0.2 for branch in branches},
            )
        },
    )
    return World(bundle, units, block_weights, head_weights)


@pytest.fixture(scope="session")
def world():
    return make_world()


@pytest.fixture(scope="session")
def worlds():
    return make_world


@pytest.fixture(scope="session")
def samples():
    return np.random.default_rng(1).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


@dataclass
class Service:
    """A placement service on a real port, with faults to switch on."""

    world: World
    token: str = "secret"
    url: str = ""
    requests: list = field(default_factory=list)  # (method, path, Range header)
    break_after: dict = field(default_factory=dict)  # unit -> bytes sent before each of the next breaks
    swapped: dict = field(default_factory=dict)  # unit -> bytes sent instead
    answers: dict = field(default_factory=dict)  # path prefix -> (status, body) sent instead
    placements: list = field(default_factory=list)  # bodies of the requests
    away: bool = False
    ranges: bool = True

    def fetched(self):
        return [path.rpartition("/")[2] for _, path, _ in self.requests if path.startswith("/v1/units/")]


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
        service.requests.append((self.command, self.path, self.headers["Range"]))
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
        sha256 = self.path.removeprefix("/v1/units/")
        if sha256 in service.world.units:
            return self._unit(sha256)
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

    def _unit(self, sha256):
        service = self.server.service
        data = service.swapped.get(sha256, service.world.units[sha256])
        headers, status, start = {"ETag": f'"{sha256}"'}, 200, 0
        if service.ranges and self.headers["Range"] and self.headers["If-Range"] == headers["ETag"]:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"], status = f"bytes {start}-{len(data) - 1}/{len(data)}", 206
        breaks = service.break_after.get(sha256, [])
        return self._send(status, data[start:], breaks.pop(0) if breaks else None, **headers)

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


@pytest.fixture
def service(world):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.service = Service(world, url=f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.service
        server.shutdown()
        thread.join()


@pytest.fixture
def client(service):
    with ServiceClient(service.url, service.token, timeout_s=5) as client:
        yield client


@pytest.fixture
def store(tmp_path: Path):
    return UnitStore(tmp_path / "cache")


@pytest.fixture
def device(client, store):
    return Device(client, store, "tiny")


@pytest.fixture
def whole_bytes(world):
    """Memory in which everything fits."""
    return sum(unit.size_bytes for unit in bundle_units(world.bundle))
