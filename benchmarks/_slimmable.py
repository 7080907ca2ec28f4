"""Slimmable networks (Yu et al. 2019): one set of weights, run at several widths; the published rival of supernets.

Every width takes the first channels of every layer and has batch norms of its own. All widths learn in every step, the
narrower ones from what the full one says (Yu and Huang 2019, sandwich rule and in-place distillation). Training begins
with the pre-trained weights, as everything else here does.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from time import process_time

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from meedge_ray.domain.elastic import InputSpec
from meedge_ray.nn.backbones.resnet import BasicBlock, ResNet
from meedge_ray.nn.export import export_unit
from meedge_ray.nn.partition import partition
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.train.progress import Report
from meedge_ray.train.samples import Samples

WIDTHS = (0.25, 0.5, 0.75, 1.0)
_FIRST = 16  # channels of the first stage
RUNS = 100  # of every width, for its latency
_SHARED = (nn.Conv2d, nn.Linear)


def slimmed(
    pretrained: Mapping[str, Tensor],
    depth: int,
    samples: Samples,
    input_spec: InputSpec,
    *,
    seconds: float,
    learning_rate: float,
    batch_size: int,
    seed: int,
    report: Report,
) -> dict[float, nn.Module]:
    """Train a ResNet at all widths for so many of the processor's seconds; return a network for every width."""
    classes = len(pretrained["linear.weight"])
    networks = {width: narrowed(depth, input_spec.shape, classes, width) for width in WIDTHS}
    full = networks[1.0]
    full.load_state_dict(dict(pretrained))
    for network in networks.values():
        _copy_norms(full, network)
    parameters = dict(full.named_parameters())
    own = [p for width, n in networks.items() if width != 1.0 for k, p in n.named_parameters() if _is_norm(n, k)]
    optimizer = torch.optim.Adam([*parameters.values(), *own])
    normalizer, random = Normalizer(input_spec), np.random.default_rng(seed)
    start = process_time()
    while (passed := (process_time() - start) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = learning_rate * (1 + np.cos(np.pi * passed)) / 2
        chosen = random.integers(len(samples), size=batch_size)
        batch = samples[np.sort(chosen)]
        x = torch.from_numpy(normalizer.batch(batch.x)).to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        logits = full.train()(x)
        functional.cross_entropy(logits, torch.from_numpy(batch.y)).backward()
        taught = logits.detach().softmax(1)
        for width, network in networks.items():
            if width != 1.0:
                said = functional_call(network.train(), _sliced(network, parameters), (x,))
                functional.cross_entropy(said, taught).backward()
        optimizer.step()
        report("slim", passed, 1)
    for network in networks.values():
        network.load_state_dict({**network.state_dict(), **_sliced(network, parameters)})
        network.eval()
    return networks


def narrowed(depth: int, input_shape: Sequence[int], classes: int, width: float) -> ResNet:
    """Return the ResNet with the given share of its channels."""
    channels, height, columns = input_shape
    network = ResNet(depth, (channels, height, columns), classes)
    first = round(width * _FIRST)
    planes = [first, 2 * first, 4 * first]  # a shortcut pads what a stage adds
    network.conv1 = nn.Conv2d(channels, planes[0], 3, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(planes[0])
    before = planes[0]
    for stage, (name, count) in enumerate(zip(("layer1", "layer2", "layer3"), planes, strict=True)):
        blocks: list[nn.Module] = []
        for index in range((depth - 2) // 6):
            blocks.append(BasicBlock(before, count, 2 if stage and not index else 1))
            before = count
        setattr(network, name, nn.Sequential(*blocks))
    network.linear = nn.Linear(before, classes)
    return network


def _sliced(network: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the first channels of every shared parameter."""
    sliced = {}
    for name, own in network.named_parameters():
        if not _is_norm(network, name):
            sliced[name] = parameters[name][tuple(slice(side) for side in own.shape)]
    return sliced


def _copy_norms(full: nn.Module, network: nn.Module) -> None:
    state = network.state_dict()
    for name, value in full.state_dict().items():
        state[name].copy_(value[tuple(slice(side) for side in state[name].shape)])


def _is_norm(network: nn.Module, name: str) -> bool:
    return not isinstance(network.get_submodule(name.rpartition(".")[0]), _SHARED)


def measured(networks: Mapping[float, nn.Module], input_spec: InputSpec, judged: Samples) -> list[dict[str, float]]:
    """Return latency and accuracy of every width, cut into units and run like everything else."""
    rows = []
    for width, network in networks.items():
        chain = partition(network, input_spec.shape)
        units = [export_unit(piece.module, piece.input_shape) for piece in chain.pieces]
        engine = Engine(input_spec, units, final_accuracy=0.5)
        sample = engine.random_sample()
        times = [engine.infer(sample).elapsed_ms for _ in range(RUNS)]
        logits = engine.infer_batch(np.asarray(judged.x))[None]
        accuracy = float((logits.argmax(1) == judged.y).mean())
        rows.append({"width": width, "latency_ms": median(times), "accuracy": accuracy})
    return rows
