"""What the stages of one build share: samples, backbone, and who works on what."""

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TypedDict

from meedge_ray.api.elastic_model import Augmentation
from meedge_ray.domain.elastic import Branch
from meedge_ray.domain.quantity import parse_bytes
from meedge_ray.nn.branches import branch_name, check_zoo, zoo_branches
from meedge_ray.nn.expansion import expand
from meedge_ray.nn.partition import Chain
from meedge_ray.train.backbone import Backbone, load_backbone
from meedge_ray.train.baselines import BaselineChoices, baseline_choices
from meedge_ray.train.cultivate import ExitTask
from meedge_ray.train.data import Dataset, load_data
from meedge_ray.train.elasticize import SupernetTask
from meedge_ray.train.features import check_features
from meedge_ray.train.manifest import Manifest
from meedge_ray.train.sharing import SharingTask
from meedge_ray.train.stages import StageFolders


class FeatureLimits(TypedDict):
    """What cached features are, and may take."""

    augmentation: Augmentation | None
    disk_bytes: int | None


class Blueprint:
    """One build, whose samples and backbone are read when a stage first needs them."""

    def __init__(self, manifest: Manifest, folders: StageFolders) -> None:
        self.manifest = manifest
        self.spec = manifest.model.spec
        self.folders = folders

    @cached_property
    def dataset(self) -> Dataset:
        """The manifest's samples."""
        return load_data(self.spec.data, self.manifest.base_dir, scratch=self.folders.root)

    @cached_property
    def backbone(self) -> Backbone:
        """The trained backbone, and the heads trained with it."""
        return load_backbone(self.spec, self.dataset, base_dir=self.manifest.base_dir, trained=self._trained_backbone)

    @property
    def chain(self) -> Chain:
        """The backbone's blocks."""
        return self.backbone.chain

    def check(self, chain: Chain) -> None:
        """Refuse what the supernet and the zoo cannot be.

        Raises:
            InvalidInputError: a field says what this backbone, the memory or the disk do not allow.
        """
        if self.spec.supernet is not None:
            expand(copy.deepcopy(chain), self.spec.supernet)  # a copy, for a supernet freezes its backbone
        if self.spec.zoo is None or self.folders.finished("cultivate"):
            return
        memory = self.spec.cultivation.memory
        check_zoo(
            self.spec.zoo,
            map_shapes(chain),
            len(self.dataset.classes),
            None if memory is None else parse_bytes(memory, where="spec.cultivation.memory"),
        )
        self.folders.features.parent.mkdir(parents=True, exist_ok=True)  # whose disk is looked at
        check_features(chain, self.dataset, self.folders.features, **self.feature_limits)

    @property
    def feature_limits(self) -> FeatureLimits:
        """Those of cultivation."""
        settings = self.spec.cultivation
        disk = None if settings.disk is None else parse_bytes(settings.disk, where="spec.cultivation.disk")
        return {"augmentation": settings.augmentation, "disk_bytes": disk}

    @cached_property
    def baselines(self) -> BaselineChoices:
        """The branches of published methods, which are cultivated as the zoo is."""
        return baseline_choices(self.chain, self.spec.model.architecture) if self.spec.zoo else {}

    @cached_property
    def cultivation(self) -> list[ExitTask]:
        """What cultivates each exit, in order."""
        tasks: list[ExitTask] = []
        zoo = self.spec.zoo
        if zoo is None:
            return tasks
        for exit_index, shape in enumerate(map_shapes(self.chain)):
            fixed = [method[exit_index] for method in self.baselines.values() if exit_index in method]
            tasks.append(
                ExitTask(
                    exit_index=exit_index,
                    choices=tuple(dict.fromkeys([*zoo_branches(zoo, shape), *fixed])),
                    classes=len(self.dataset.classes),
                    features=self.folders.features,
                    output=self.folders.folder("cultivate") / f"exit-{exit_index:02d}",
                    settings=self.spec.cultivation,
                    shared_convolutions=zoo.shared_convolutions,
                    spared=tuple(fixed),
                )
            )
        return tasks

    def sharing(self, kept: Sequence[Branch]) -> list[SharingTask]:
        """Return what merges those of the kept branches that the spec asks for, exit by exit."""
        settings, zoo = self.spec.sharing, self.spec.zoo
        if settings is None or zoo is None:
            return []
        asked = settings.fully_connected or [fc.name for fc in zoo.fully_connected if fc.hidden]
        names = {branch.name for branch in kept if branch.fc in asked}
        tasks = []
        for task in self.cultivation:
            chosen = tuple(choice for choice in task.choices if branch_name(task.exit_index, *choice) in names)
            if chosen:
                output = self.folders.folder("share") / f"merged-{task.exit_index:02d}"
                tasks.append(SharingTask(cultivation=task, choices=chosen, output=output, settings=settings))
        return tasks

    @property
    def supernet(self) -> SupernetTask:
        """What trains the supernet."""
        output = self.folders.folder("elasticize") / "supernet"
        return SupernetTask(self.spec, self.manifest.base_dir, self._trained_backbone, output)

    @property
    def _trained_backbone(self) -> Path | None:
        return self.folders.folder("pretrain") if self.spec.model.pretrain else None


def map_shapes(chain: Chain) -> list[tuple[int, int, int]]:
    """Return channels, height and width of the feature map at every exit point."""
    return [chain.map_shape(exit_index) for exit_index in range(chain.exit_count)]
