"""The supernet of a build: lighter blocks grown beside the backbone's, and trained (AdaptiveNet 4)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import safetensors.torch

from meedge_ray.api.elastic_model import ElasticModelSpec, Resources
from meedge_ray.api.elastic_model import Supernet as SupernetSpec
from meedge_ray.domain.elastic import InputSpec
from meedge_ray.nn.expansion import expand
from meedge_ray.nn.partition import Chain
from meedge_ray.nn.supernet import Supernet
from meedge_ray.train.backbone import load_backbone
from meedge_ray.train.data import load_data
from meedge_ray.train.files import whole_folder
from meedge_ray.train.latency_range import Bin, latency_range_accuracy, subnet_accuracy
from meedge_ray.train.samples import Samples
from meedge_ray.train.supernet import distill, tune
from meedge_ray.train.tasks import OnEpoch

_WATCHED = 256  # validation samples that progress is measured on
_TRIED = 20  # subnets, for that
_ALONE = 1000  # validation samples that every added block's own loss is measured on
_WEIGHTS, _LOSSES = "weights.safetensors", "losses.json"


@dataclass(frozen=True, slots=True)
class SupernetTask:
    """The training of a build's supernet: everything a worker needs, all of it on the shared disk or small.

    `trained` is the folder where the backbone lies, if the build trained it. Checkpoints lie beside `output`.
    """

    spec: ElasticModelSpec
    base_dir: Path
    trained: Path | None
    output: Path

    @property
    def stage(self) -> str:
        """The stage's name in reports."""
        return "elasticize"

    @property
    def name(self) -> str:
        """What it works on, in reports."""
        return "subnets"

    @property
    def epochs(self) -> int:
        """Epochs of both phases."""
        return self._settings.distillation.epochs + self._settings.tuning.epochs

    @property
    def resources(self) -> Resources:
        """What it takes of a cluster."""
        return self._settings.resources

    @property
    def finished(self) -> bool:
        """Whether the trained blocks are there, whole."""
        return self.output.exists()

    def run(self, on_epoch: OnEpoch) -> None:
        """Distill and tune; `accuracy` is the mean over ranges of latency, in which random subnets are tried."""
        settings, folder = self._settings, self.output.parent
        dataset = load_data(self.spec.data, self.base_dir, scratch=folder)
        backbone = load_backbone(self.spec, dataset, base_dir=self.base_dir, trained=self.trained)
        supernet = expand(backbone.chain, settings)
        watched = _spread(dataset.validation, _WATCHED)
        flops = _flops(supernet)

        def watch() -> list[Bin]:
            return latency_range_accuracy(supernet, watched, dataset.input, flops, subnets=_TRIED, seed=settings.seed)

        phases = (("distilled", distill, settings.distillation), ("tuned", tune, settings.tuning))
        passed = 0
        for name, learn, schedule in phases:
            teller = _Teller(watch, on_epoch, passed)
            learn(
                supernet,
                dataset.train,
                dataset.input,
                schedule,
                batch_size=settings.batch_size,
                seed=settings.seed,
                checkpoint=folder / f"{name}.safetensors",
                watch=teller.watch,
                report=teller.report,
            )
            passed += schedule.epochs
        losses = _losses_alone(supernet, _spread(dataset.validation, _ALONE), dataset.input)
        with whole_folder(self.output) as partial:
            weights = {key: value.contiguous() for key, value in supernet.added.state_dict().items()}
            safetensors.torch.save_file(weights, partial / _WEIGHTS)
            (partial / _LOSSES).write_text(json.dumps(losses))

    @property
    def _settings(self) -> SupernetSpec:
        assert self.spec.supernet is not None  # else there is no such task
        return self.spec.supernet


def elasticized(task: SupernetTask, chain: Chain) -> tuple[Supernet, list[float]]:
    """Return what a finished task trained, over the build's chain, and every added block's accuracy loss alone."""
    assert task.spec.supernet is not None
    supernet = expand(chain, task.spec.supernet)
    supernet.added.load_state_dict(safetensors.torch.load_file(task.output / _WEIGHTS))
    losses: list[float] = json.loads((task.output / _LOSSES).read_text())
    return supernet.eval(), losses


class _Teller:
    """Tells of the epochs done and what subnets reach after them."""

    def __init__(self, look: Callable[[], list[Bin]], on_epoch: OnEpoch, passed: int) -> None:
        self._look, self._on_epoch, self._passed = look, on_epoch, passed
        self._bins: list[Bin] = []

    def watch(self) -> list[Bin]:
        self._bins = self._look()
        return self._bins

    def report(self, stage: str, done: float, total: float, detail: str = "") -> None:  # noqa: ARG002 - of Report
        if done == int(done):
            reached = [each.accuracy for each in self._bins if each.accuracy is not None]
            self._on_epoch(self._passed + int(done), {"accuracy": mean(reached)})


def _losses_alone(supernet: Supernet, samples: Samples, input_spec: InputSpec) -> list[float]:
    """Return of every growth by how much less often the network is right where it alone is used."""
    whole, *each = subnet_accuracy(supernet, samples, input_spec, [supernet.space.original, *supernet.alone()])
    return [whole - accuracy for accuracy in each]


def _flops(supernet: Supernet) -> list[float]:
    # Times are measured later, on exported units. What counts nothing still takes some.
    flops = [*(piece.flops for piece in supernet.chain.pieces), *(growth.flops for growth in supernet.growths)]
    return [float(max(count, 1)) for count in flops]


def _spread(samples: Samples, count: int) -> Samples:
    chosen = np.linspace(0, len(samples) - 1, min(len(samples), count)).round().astype(np.int64)
    return samples[chosen]
