"""A small model of real ONNX units without torch: its bundle, its units, and a reference in NumPy."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from meedge_ray.bundle.store import sha256_of
from meedge_ray.domain.elastic import Block, Branch, Bundle, InputSpec, Profile, Unit
from meedge_ray.runtime.engine import Engine

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


def branch_bytes(convolution, weights):
    """What `block_bytes` and `head_bytes` do one after the other, in one unit."""
    nodes = [
        helper.make_node("Conv", ["input", "c"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["features"]),
        helper.make_node("Flatten", ["features"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["output"]),
    ]
    initial = {"c": convolution[:, :, None, None], "w": weights}
    return unit_bytes(nodes, initial, (convolution.shape[1], 4, 4), (weights.shape[1],))


@dataclass(frozen=True)
class World:
    """A small model: its bundle, its units by name, and its weights for a reference in NumPy."""

    bundle: Bundle
    units: dict[str, bytes]
    block_weights: list[np.ndarray]
    head_weights: dict[str | None, np.ndarray]
    convolution_weights: dict[int, np.ndarray]  # by exit, where branches share one

    @property
    def blocks(self):
        return [self.units[block.unit.sha256] for block in self.bundle.blocks]

    def branch(self, name):
        return next(branch for branch in self.bundle.branches if branch.name == name)

    def read(self, unit):
        return self.units[unit.sha256]

    def place(self, engine, *names):
        engine.place([self.branch(name) for name in names], self.read)

    def engine(self, *names):
        engine = Engine(self.bundle.input, self.blocks, final_accuracy=self.bundle.final_accuracy)
        self.place(engine, *names)
        return engine

    def logits(self, raw):
        """What every branch and the final exit say to raw samples [n, *SHAPE], in NumPy alone."""
        spec = self.bundle.input
        mean, std = (np.reshape(value, (-1, 1, 1)) for value in (spec.mean, spec.std))
        features = (np.asarray(raw, float) * spec.scale - mean) / std
        said = {}
        for index, weights in enumerate(self.block_weights):
            features = _convolved(weights, features)
            mapped = _convolved(self.convolution_weights[index], features) if self.convolution_weights else features
            for branch in self.bundle.branches:
                if branch.exit_index == index:
                    said[branch.name] = mapped.reshape(len(mapped), -1) @ self.head_weights[branch.name]
        said[None] = features.reshape(len(features), -1) @ self.head_weights[None]
        return said


def _convolved(weights, features):
    return np.maximum(np.einsum("oi,nihw->nohw", weights, features), 0)


def make_world(seed=0, *, blocks=3, model="tiny", final_accuracy=0.9, ballast=8, classes=CLASSES, shared=False):
    """Build a chain of `blocks` convolutions and a head, with two branches at every exit point.

    If `shared`, the two branches of an exit are a convolution they share and a head each.
    """
    random = np.random.default_rng(seed)

    def weights(*shape):
        return (random.standard_normal(shape) * 0.5).astype(np.float32)

    block_weights = [weights(CHANNELS, SHAPE[0] if index == 0 else CHANNELS) for index in range(blocks)]
    head_weights = {None: weights(CHANNELS * 16, classes)}
    chain = [block_bytes(value) for value in block_weights] + [head_bytes(head_weights[None])]
    units = {}
    branches = []
    convolution_weights = {index: weights(CHANNELS, CHANNELS) for index in range(blocks)} if shared else {}

    def unit(data):
        units[sha256_of(data)] = data
        return Unit(sha256=sha256_of(data), size_bytes=len(data))

    for index in range(blocks):
        before = (unit(block_bytes(convolution_weights[index])),) if shared else ()
        for kind, columns in (("small", 0), ("large", ballast * (index % 3 + 1))):
            name = f"exit{index}-{kind}"
            head_weights[name] = weights(CHANNELS * 16, classes)
            accuracy = 0.3 + 0.5 * index / blocks + (0.1 if columns else 0.0)
            branches.append(
                Branch(
                    name=name,
                    exit_index=index,
                    convolution="shared" if shared else "none",
                    fc=kind,
                    units=(*before, unit(head_bytes(head_weights[name], columns))),
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
                unit=unit(data),
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
                block_std_ms=(0.1,) * (blocks + 1),
                branch_ms={branch.name: 0.1 if branch.fc == "small" else 0.2 for branch in branches},
                branch_std_ms={branch.name: 0.01 for branch in branches},
            )
        },
    )
    return World(bundle, units, block_weights, head_weights, convolution_weights)
