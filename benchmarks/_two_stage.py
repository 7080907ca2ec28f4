"""Segmentation and detection (AdaptiveNet 6 and 7.3): an elastic backbone under a head that stays as it is.

As the paper does with ImageNet and COCO, the backbone first learns to classify, then with its head the task; the added
blocks are distilled on the first data and tuned on the second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from _shapes import BACKGROUND, INPUT, KINDS, SIDE, classified, detected, segmented
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from meedge_ray.api.elastic_model import Pretrain
from meedge_ray.api.elastic_model import Supernet as SupernetSpec
from meedge_ray.nn.backbones import build_backbone
from meedge_ray.nn.expansion import expand
from meedge_ray.nn.export import export_unit
from meedge_ray.nn.partition import Chain, Piece, partition
from meedge_ray.nn.supernet import Supernet
from meedge_ray.runtime.samples import Normalizer
from meedge_ray.runtime.sessions import load_unit
from meedge_ray.search.subnets import fastest
from meedge_ray.search.surrogate import surrogate_search
from meedge_ray.train.data import Dataset
from meedge_ray.train.latency_range import subnet_accuracy
from meedge_ray.train.pretrain import pretrain
from meedge_ray.train.progress import Report
from meedge_ray.train.samples import Samples
from meedge_ray.train.supernet import distill, tune

BACKBONE = "resnet20"
BUDGETS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of the original's latency
TESTED = 400  # images
RUNS = 100  # of every unit, for its time
OVERLAP = 0.5  # of boxes that are the same (mAP@0.5)
_GRID = SIDE // 4  # cells a side: the backbone halves twice
_CLASSES = len(KINDS)
_SURE = 0.05  # boxes below are not looked at
_EPOCHS, _RATE = 8, 2e-3  # of the task

Figures = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A task on images of shapes: its head's outputs, its data, and how they are learnt and judged, 0..1."""

    outputs: int
    data: Callable[[int, int], Samples]
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]


class Head(nn.Module):
    """Two convolutions over the backbone's map [N, 64, 12, 12]; for pixels the result is enlarged."""

    def __init__(self, outputs: int, *, enlarged: bool) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, outputs, 1)
        self.enlarged = enlarged

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, outputs, 12, 12], or [N, outputs, 48, 48]."""
        y: Tensor = self.outer(functional.relu(self.inner(x)))
        return functional.interpolate(y, scale_factor=4, mode="bilinear") if self.enlarged else y


def pixel_loss(said: Tensor, wanted: Tensor) -> Tensor:
    """Return the cross-entropy of logits [N, classes + 1, H, W] and classes [N, H, W]."""
    return functional.cross_entropy(said, wanted)


def mean_iou(said: Tensor, wanted: Tensor) -> float:
    """Return the mean over classes, the background one of them, of intersection over union."""
    found = said.argmax(1)
    shares = []
    for kind in range(_CLASSES + 1):
        here, there = found == kind, wanted == kind
        shares.append(float((here & there).sum() / (here | there).sum().clamp(min=1)))
    return sum(shares) / len(shares)


def box_loss(said: Tensor, wanted: Tensor) -> Tensor:
    """Return the loss of a grid's cells [N, 1 + classes + 4, 12, 12]; a shape is its centre's cell's to find."""
    sample, slot = torch.nonzero(wanted[..., 0] >= 0, as_tuple=True)
    kinds, boxes = wanted[sample, slot, 0].long(), wanted[sample, slot, 1:]
    column, row = (boxes[:, :2] * _GRID).long().clamp(0, _GRID - 1).T
    there = torch.zeros_like(said[:, 0])
    there[sample, row, column] = 1
    cells = said[sample, :, row, column]
    inside = boxes[:, :2] * _GRID - torch.stack([column, row], 1)
    places = functional.mse_loss(cells[:, -4:-2].sigmoid(), inside) + functional.mse_loss(cells[:, -2:], boxes[:, 2:])
    return (
        functional.binary_cross_entropy_with_logits(said[:, 0], there, pos_weight=torch.tensor(10.0))
        + functional.cross_entropy(cells[:, 1:-4], kinds)
        + 5 * places
    )


def mean_average_precision(said: Tensor, wanted: Tensor) -> float:
    """Return the mean over classes of the area under precision over recall, boxes overlapping by half or more."""
    found = [_boxes(cells) for cells in said]
    areas = []
    for kind in range(_CLASSES):
        hits: list[tuple[float, bool]] = []
        total = 0
        for (scores, kinds, boxes), truth in zip(found, wanted.numpy(), strict=True):
            targets = truth[truth[:, 0] == kind, 1:]
            total += len(targets)
            free = np.ones(len(targets), bool)
            for score, box in zip(scores[kinds == kind], boxes[kinds == kind], strict=True):
                overlaps = _overlaps(box, targets) * free
                hit = len(targets) > 0 and overlaps.max() >= OVERLAP
                if hit:
                    free[overlaps.argmax()] = False
                hits.append((score, hit))
        if total:
            areas.append(_area(hits, total))
    return float(np.mean(areas))


def _boxes(cells: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, kinds and boxes of one image, the surest first, without weaker ones over the same place."""
    sure = (cells[0].sigmoid() * cells[1:-4].softmax(0).max(0).values).numpy().ravel()
    kinds = cells[1:-4].argmax(0).numpy().ravel()
    rows, columns = np.divmod(np.arange(_GRID**2), _GRID)
    x, y = cells[-4:-2].sigmoid().numpy().reshape(2, -1)
    width, height = cells[-2:].numpy().reshape(2, -1)
    boxes = np.stack([(columns + x) / _GRID, (rows + y) / _GRID, width, height], 1)
    kept: list[int] = []
    for cell in np.argsort(-sure):
        if sure[cell] < _SURE:
            break
        others = [other for other in kept if kinds[other] == kinds[cell]]
        if not others or _overlaps(boxes[cell], boxes[others]).max() < OVERLAP:
            kept.append(int(cell))
    return sure[kept], kinds[kept], boxes[kept]


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return intersection over union of a box [4] with others [n, 4], all as centre and size."""
    low = np.maximum(box[:2] - box[2:] / 2, others[:, :2] - others[:, 2:] / 2)
    high = np.minimum(box[:2] + box[2:] / 2, others[:, :2] + others[:, 2:] / 2)
    shared = np.clip(high - low, 0, None).prod(1)
    return shared / (box[2:].prod() + others[:, 2:].prod(1) - shared).clip(min=1e-9)


def _area(hits: Sequence[tuple[float, bool]], total: int) -> float:
    right = np.cumsum([hit for _, hit in sorted(hits, key=lambda each: -each[0])])
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.diff(right, prepend=0) @ precision / total)


TASKS = {
    "segmentation": Task(BACKGROUND + 1, segmented, pixel_loss, mean_iou),
    "detection": Task(1 + _CLASSES + 4, detected, box_loss, mean_average_precision),
}


def trained(name: str, samples: int, work: Path, report: Report) -> Chain:
    """Return the backbone's chain with the task's head at its end, trained on both data, once."""
    task = TASKS[name]
    model = build_backbone(BACKBONE, input_shape=INPUT.shape, classes=_CLASSES, arguments={})
    backbone = work / "shapes-backbone.safetensors"
    if not backbone.exists():
        torch.manual_seed(0)
        first = classified(samples, 0)
        data = Dataset(first, first, first, KINDS, INPUT)
        pretrain(model, data, Pretrain.model_validate({"epochs": 6, "learningRate": "0.003"}), seed=0, report=report)
        save_file(model.state_dict(), backbone)
    model.load_state_dict(load_file(backbone))
    body = partition(model, INPUT.shape).pieces[:-1]
    head = Head(task.outputs, enlarged=name == "segmentation")
    whole = work / f"shapes-{name}.safetensors"
    network = nn.Sequential(*(piece.module for piece in body), head)
    if not whole.exists():
        _learn(network, task, task.data(samples, 1), report)
        save_file(network.state_dict(), whole)
    network.load_state_dict(load_file(whole))
    network.eval()
    shape = body[-1].output_shape
    with torch.no_grad():
        outputs = tuple(head(torch.zeros(1, *shape)).shape[1:])
    parameters = sum(each.numel() for each in head.parameters())
    tail = Piece(name="head", module=head, input_shape=shape, output_shape=outputs, parameters=parameters, flops=0)
    return Chain((*body, tail))


def _learn(network: nn.Module, task: Task, samples: Samples, report: Report) -> None:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(network.parameters(), _RATE)
    normalizer, random = Normalizer(INPUT), np.random.default_rng(1)
    batches = len(samples) // 64
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS * batches)
    network.train()
    for epoch in range(_EPOCHS):
        for chosen in np.array_split(random.permutation(len(samples)), batches):
            batch = samples[chosen]
            loss = task.loss(network(torch.from_numpy(normalizer.batch(batch.x))), torch.from_numpy(batch.y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        report("task", epoch + 1, _EPOCHS, f"loss {float(loss.detach()):.3f}")


def run(name: str, spec: SupernetSpec, samples: int, work: Path, report: Report) -> Figures:
    """Grow and train a supernet under a task's head; return what subnets reach within every budget."""
    task, chain = TASKS[name], trained(name, samples, work, report)
    start = perf_counter()
    supernet = expand(chain, spec)
    schedule = {"batch_size": spec.batch_size, "seed": spec.seed, "report": report}
    distill(supernet, classified(samples, 0), INPUT, spec.distillation, **schedule)
    tune(supernet, task.data(samples, 1), INPUT, spec.tuning, loss=task.loss, **schedule)
    seconds = perf_counter() - start
    validation, test = task.data(TESTED, 2), task.data(TESTED, 3)

    def judged(samples: Samples) -> Callable[[Sequence[tuple[int, ...]]], list[float]]:
        return lambda subnets: subnet_accuracy(supernet, samples, INPUT, subnets, batch_size=TESTED, score=task.score)

    space, times = supernet.space, link_ms(supernet)
    original_ms, quickest = space.latency_ms(space.original, times), fastest(space, times)
    alone = judged(validation)([space.original, *supernet.alone()])
    scores = [alone[0]] * space.places + alone[1:]
    points = []
    for share in BUDGETS:
        budget_ms = max(share * original_ms, space.latency_ms(quickest, times))
        found = surrogate_search(
            space, times, scores, alone[0], judged(validation), budget_ms=budget_ms, rng=np.random.default_rng(0)
        )
        [score] = judged(test)([found.best.subnet])
        points.append({"budget": share, "latency_ms": found.best.latency_ms, "score": score})
        report("search", len(points), len(BUDGETS))
    return {
        "original": {"latency_ms": original_ms, "score": judged(test)([space.original])[0]},
        "points": points,
        "subnets": space.count,
        "training_s": seconds,
    }


def link_ms(supernet: Supernet) -> list[float]:
    """Return the time of every link as an exported unit, each run alone."""
    shapes = [piece.input_shape for piece in supernet.chain.pieces]
    modules = [*(piece.module for piece in supernet.chain.pieces), *(growth.module for growth in supernet.growths)]
    times = []
    for module, start in zip(modules, supernet.space.starts.tolist(), strict=True):
        unit = load_unit(export_unit(module, shapes[start]), name="link", threads=1)
        x = np.random.default_rng(0).standard_normal((1, *shapes[start]), np.float32)
        runs = []
        for _ in range(RUNS):
            begun = perf_counter()
            unit(x)
            runs.append((perf_counter() - begun) * 1e3)
        times.append(median(runs))
    return times
