"""A model as a torch.fx graph, with what one run of it tells about every node."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from meedge_ray.domain.errors import PartitionError

_SAMPLES = 2  # in the run: more than one, so that a dimension that is not the batch is not mistaken for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a run showed of one node: `shape` without the batch, None where its value is no batch of tensors.

    `overwritten` says that a later node changed the value in place; `flops` are those of one sample.
    """

    shape: tuple[int, ...] | None
    overwritten: bool
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A model's nodes in the order they run, without constants, what was seen of them, its one input and output."""

    nodes: tuple[fx.Node, ...]
    seen: Mapping[fx.Node, Seen]
    input: fx.Node
    output: fx.Node


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Trace:
    """Trace the model, which is in eval mode, and run it once.

    Args:
        model: any module torch.fx can trace.
        input_shape: shape of one input, without the batch dimension.

    Raises:
        PartitionError: torch.fx cannot trace the model, it has not one input and one output, or it does not run on
            inputs of this shape.
    """
    graph = _graph(model)
    entry, output = _ends(graph)
    observer = _Observer(fx.GraphModule(model, graph))
    with torch.no_grad(), FlopCounterMode(display=False) as observer.counter:
        observer.run(torch.zeros(_SAMPLES, *input_shape))
    seen = observer.seen()
    if seen[output].shape is None:
        raise PartitionError(
            "the model's output is no tensor with the batch as its first dimension",
            where=output.name,
            do="Return logits of shape [N, classes]",
        )
    return Trace(nodes=_computed(graph), seen=seen, input=entry, output=output)


class _Tracer(fx.Tracer):
    """Says which value a model's control flow depends on, where torch.fx only says that one does."""

    def to_bool(self, obj: fx.Proxy) -> NoReturn:
        raise _data_dependent("a condition", obj)

    def iter(self, obj: fx.Proxy) -> NoReturn:
        raise _data_dependent("a loop", obj)


def _data_dependent(what: str, value: fx.Proxy) -> PartitionError:
    return PartitionError(
        f"{what} in the model depends on a value computed from the input",
        where=value.node.name,
        do="Replace data-dependent control flow by operations on tensors, so that torch.fx can trace the model",
    )


def _graph(model: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        return tracer.trace(model)
    except PartitionError:
        raise
    except Exception as error:  # tracing runs the user's forward: anything may come
        nodes = list(tracer.graph.nodes) if hasattr(tracer, "graph") else []
        raise PartitionError(
            f"torch.fx cannot trace the model after this node: {error}",
            where=nodes[-1].name if nodes else type(model).__name__,
            do="Try torch.fx.symbolic_trace(model) alone, and rewrite what it names as operations on tensors",
        ) from error


def _ends(graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
    entries = [node for node in graph.nodes if node.op == "placeholder"]
    used = [node for node in entries if node.users]
    if len(used) != 1 or used[0] is not entries[0]:
        extra = next((node for node in entries[1:] if node.users), entries[0] if entries else None)
        raise PartitionError(
            f"the model uses {len(used)} of its {len(entries)} inputs, where its first and no other is needed",
            where=extra.name if extra is not None else "forward",
            do="Wrap the model in a module whose forward takes one batch of inputs",
        )
    last = next(node for node in graph.nodes if node.op == "output")
    result = last.args[0]
    if not isinstance(result, fx.Node):
        raise PartitionError(
            "the model has several outputs or none",
            where=last.name,
            do="Wrap the model in a module whose forward returns the logits alone",
        )
    return used[0], result


def _computed(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """Return the nodes that depend on the input; the others have the same value for every input."""
    inputs_and_after: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not inputs_and_after.isdisjoint(node.all_input_nodes):
            inputs_and_after.add(node)
    return tuple(node for node in graph.nodes if node in inputs_and_after and node.op not in ("placeholder", "output"))


class _Observer(fx.Interpreter):
    """Runs a graph, and remembers of every node its shape, its FLOPs and whether it was overwritten later."""

    counter: FlopCounterMode

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._flops: dict[fx.Node, int] = {}
        self._versions: dict[fx.Node, int] = {}

    def run_node(self, node: fx.Node) -> object:
        before = self.counter.get_total_flops()
        try:
            value = super().run_node(node)
        except Exception as error:  # it runs the user's model: anything may come
            raise PartitionError(
                f"the model cannot run on this input: {error}",
                where=node.name,
                do="Check that the data's channels and image size are those the model was made for",
            ) from error
        self._flops[node] = (self.counter.get_total_flops() - before) // _SAMPLES
        self._versions[node] = _version(value)
        return value

    def seen(self) -> dict[fx.Node, Seen]:
        return {
            node: Seen(
                shape=_shape(self.env[node]),
                overwritten=_version(self.env[node]) != self._versions[node],
                flops=self._flops[node],
            )
            for node in self._flops
        }


def _version(value: object) -> int:
    # torch counts the writes to a tensor's memory, views of it included.
    return value._version if isinstance(value, Tensor) else 0


def _shape(value: object) -> tuple[int, ...] | None:
    if isinstance(value, Tensor) and value.dim() >= 1 and len(value) == _SAMPLES:
        return tuple(value.shape[1:])
    return None
