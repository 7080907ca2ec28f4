"""From a manifest to a bundle: one stage after another, each of which a killed build finds again.

model + data -> backbone, its exits with it -> features -> cultivate -> export -> profile -> survive -> share
-> supernet -> confidences, their predictor -> bundle
"""

import copy
import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from meedge_ray.api.elastic_model import Augmentation, ElasticModelSpec
from meedge_ray.bundle.manifest import read_bundle, unit_store, write_bundle
from meedge_ray.domain.elastic import Branch, Bundle
from meedge_ray.domain.errors import MeedgeError
from meedge_ray.domain.paths import expand_path
from meedge_ray.domain.quantity import parse_bytes
from meedge_ray.nn.branches import branch_name, check_zoo, zoo_branches
from meedge_ray.nn.expansion import expand
from meedge_ray.nn.partition import Chain
from meedge_ray.train.assemble import (
    Grown,
    Surveyor,
    export_blocks,
    export_exit,
    export_heads,
    export_variants,
    fixed_sets,
    joined,
    only,
    shared_convolutions,
    survivors,
)
from meedge_ray.train.backbone import load_backbone
from meedge_ray.train.baselines import baseline_choices
from meedge_ray.train.cultivate import ExitTask, cultivated
from meedge_ray.train.data import Dataset, digest, image_shape, load_data
from meedge_ray.train.elasticize import SupernetTask, elasticized
from meedge_ray.train.features import Features, cache_features, check_features
from meedge_ray.train.manifest import Manifest
from meedge_ray.train.predictor import with_predictor
from meedge_ray.train.progress import Report, silent
from meedge_ray.train.sharing import SharingTask, shared
from meedge_ray.train.tasks import RunTasks, Task, run_in_turn


def build(manifest: Manifest, output: Path, *, run: RunTasks = run_in_turn, report: Report = silent) -> Bundle:
    """Build the manifest's bundle in the folder `output`, going on where an earlier build was killed.

    Args:
        manifest: what to build.
        output: the bundle's folder; an earlier bundle in it stays whole until the new one replaces it.
        run: works on the exits still missing, here in turn or on a cluster.
        report: told every stage's progress.

    Raises:
        MeedgeError: the manifest, its data or its model cannot be used; the message says which and why.
    """
    spec = manifest.model.spec
    dataset = load_data(spec.data, manifest.base_dir, scratch=output / ".build")
    key = _fingerprint(spec, dataset, manifest.base_dir)
    finished = _finished(output, key)
    if finished is not None:
        return finished
    work = (output / ".build" / key[:16]).resolve()  # workers run elsewhere
    work.mkdir(parents=True, exist_ok=True)
    bundle = _Build(manifest, dataset, work, output, run, report).bundle({"fingerprint": key, **_versions()})
    write_bundle(output, bundle)
    shutil.rmtree(output / ".build")
    return bundle


class _FeatureLimits(TypedDict):
    augmentation: Augmentation | None
    disk_bytes: int | None


_ExitWork = TypeVar("_ExitWork", ExitTask, SharingTask)


class _Build:
    """One build: what its stages share, and the stages in their order."""

    def __init__(
        self, manifest: Manifest, dataset: Dataset, work: Path, output: Path, run: RunTasks, report: Report
    ) -> None:
        self._manifest = manifest
        self._spec = manifest.model.spec
        self._dataset = dataset
        self._work = work
        self._feature_folder = work / "features"
        self._run = run
        self._report = report
        self._store = unit_store(output)
        self._backbone = load_backbone(
            self._spec,
            dataset,
            image_shape(dataset),
            base_dir=manifest.base_dir,
            work=work,
            check=self._check,
            report=report,
        )
        self._chain = self._backbone.chain
        self._shapes = _map_shapes(self._chain)
        # Published methods are cultivated as the zoo is.
        self._baselines = baseline_choices(self._chain, self._spec.model.architecture) if self._spec.zoo else {}

    def bundle(self, made_with: dict[str, str]) -> Bundle:
        """Go through the stages."""
        cultivation = self._cultivation()
        *accuracies, final_accuracy = self._accuracies()
        self._run_missing(cultivation)
        blocks = export_blocks(self._chain, self._store, self._report)
        together = export_heads(self._backbone.heads, accuracies, self._chain, self._store, self._report)
        grown = self._export(cultivation, cultivated)
        surveyor = Surveyor(self._store, self._dataset.input, blocks, final_accuracy, self._work)
        times = surveyor.profile("zoo", [*together, *grown], self._report)
        zoo = self._zoo_names()
        candidates = [*together, *(branch for branch in grown if branch.name in zoo)]
        kept, eliminated = survivors(candidates, times, final_accuracy)
        fixed = fixed_sets(self._baselines, grown) | ({"trained_together": together} if together else {})
        sharing = self._sharing(kept, cultivation)
        if sharing:
            self._run_missing(sharing)
            merged = self._export(sharing, shared)
            times = joined(times, surveyor.profile("merged", merged, self._report))
            kept_too, eliminated_too = survivors(merged, times, final_accuracy)
            kept, eliminated = kept + kept_too, eliminated + eliminated_too
        bundle = Bundle(
            model=self._manifest.model.metadata.name,
            architecture=self._spec.model.architecture,
            input=self._dataset.input,
            classes=self._dataset.classes,
            blocks=blocks,
            final_accuracy=final_accuracy,
            branches=kept,
            baselines=fixed,
            eliminated=eliminated,
            profiles={times.device_type: only(times, (*kept, *(b for method in fixed.values() for b in method)))},
            data=_data_section(self._spec, self._manifest.base_dir),
            made_with=made_with,
        )
        bundle = self._with_supernet(bundle, surveyor)
        if not any((kept, *fixed.values())):
            return bundle  # there is nothing to plan
        seed = self._spec.cultivation.seed
        return with_predictor(bundle, self._store, self._dataset.validation, self._work, seed=seed, report=self._report)

    def _with_supernet(self, bundle: Bundle, surveyor: Surveyor) -> Bundle:
        if self._spec.supernet is None:
            return bundle
        task = SupernetTask(self._spec, self._manifest.base_dir, self._work, self._work / "supernet")
        self._run_missing([task])
        supernet, losses = elasticized(task, self._chain)
        variants = export_variants(supernet, losses, self._store, self._report)
        return surveyor.with_variants(replace(bundle, variants=variants), self._report)

    def _check(self, chain: Chain) -> None:
        """Refuse what the supernet and the zoo cannot be."""
        if self._spec.supernet is not None:
            expand(copy.deepcopy(chain), self._spec.supernet)  # a copy, for a supernet freezes its backbone
        if self._spec.zoo is None:
            return
        memory = self._spec.cultivation.memory
        check_zoo(
            self._spec.zoo,
            _map_shapes(chain),
            len(self._dataset.classes),
            None if memory is None else parse_bytes(memory, where="spec.cultivation.memory"),
        )
        check_features(chain, self._dataset, self._feature_folder, **self._feature_limits())

    def _accuracies(self) -> list[float]:
        """Cache the features a zoo learns from; return the accuracy of every exit trained, and of the final exit."""
        features = self._features() if self._spec.zoo else None
        if features is None or self._backbone.heads:
            return self._backbone.accuracies(self._dataset)
        return [features.final_accuracy]

    def _features(self) -> Features:
        seed = self._spec.cultivation.seed
        limits = self._feature_limits()
        return cache_features(self._chain, self._dataset, self._feature_folder, self._report, seed=seed, **limits)

    def _feature_limits(self) -> _FeatureLimits:
        settings = self._spec.cultivation
        disk = None if settings.disk is None else parse_bytes(settings.disk, where="spec.cultivation.disk")
        return {"augmentation": settings.augmentation, "disk_bytes": disk}

    def _cultivation(self) -> list[ExitTask]:
        tasks: list[ExitTask] = []
        zoo = self._spec.zoo
        if zoo is None:
            return tasks
        for exit_index, shape in enumerate(self._shapes):
            fixed = [method[exit_index] for method in self._baselines.values() if exit_index in method]
            task = ExitTask(
                exit_index=exit_index,
                choices=tuple(dict.fromkeys([*zoo_branches(zoo, shape), *fixed])),
                classes=len(self._dataset.classes),
                features=self._feature_folder,
                output=self._work / f"exit-{exit_index:02d}",
                settings=self._spec.cultivation,
                shared_convolutions=zoo.shared_convolutions,
                spared=tuple(fixed),
            )
            task.plan(shape, task.stems)  # refuses here, and not in a worker, what its memory cannot hold
            tasks.append(task)
        return tasks

    def _sharing(self, kept: Sequence[Branch], cultivation: Sequence[ExitTask]) -> list[SharingTask]:
        settings, zoo = self._spec.sharing, self._spec.zoo
        if settings is None or zoo is None:
            return []
        asked = settings.fully_connected or [fc.name for fc in zoo.fully_connected if fc.hidden]
        names = {branch.name for branch in kept if branch.fc in asked}
        tasks = []
        for task in cultivation:
            chosen = tuple(choice for choice in task.choices if branch_name(task.exit_index, *choice) in names)
            if chosen:
                output = self._work / f"merged-{task.exit_index:02d}"
                tasks.append(SharingTask(cultivation=task, choices=chosen, output=output, settings=settings))
        return tasks

    def _export(
        self, tasks: Sequence[_ExitWork], read: Callable[[_ExitWork, tuple[int, int, int]], Sequence[Grown]]
    ) -> list[Branch]:
        branches: list[Branch] = []
        for done, task in enumerate(tasks):
            shape = self._shapes[task.exit_index]
            branches += export_exit(read(task, shape), shape, self._apart(task.exit_index), self._store)
            self._report("export branches", done + 1, len(tasks))
        return branches

    def _apart(self, exit_index: int) -> frozenset[str]:
        zoo = self._spec.zoo
        if zoo is None or not zoo.shared_convolutions:
            return frozenset()
        return shared_convolutions(zoo_branches(zoo, self._shapes[exit_index]))

    def _zoo_names(self) -> set[str]:
        zoo = self._spec.zoo
        return (
            set()
            if zoo is None
            else {
                branch_name(exit_index, *choice)
                for exit_index, shape in enumerate(self._shapes)
                for choice in zoo_branches(zoo, shape)
            }
        )

    def _run_missing(self, tasks: Sequence[Task]) -> None:
        missing = [task for task in tasks if not task.finished]
        if missing:
            self._run(missing, self._report)


def _map_shapes(chain: Chain) -> list[tuple[int, int, int]]:
    return [chain.map_shape(exit_index) for exit_index in range(chain.exit_count)]


def _data_section(spec: ElasticModelSpec, base_dir: Path) -> dict[str, Any]:
    # Evaluation happens elsewhere and later: plain paths become absolute, variables stay for who reads them.
    section: dict[str, Any] = spec.data.model_dump(by_alias=True, mode="json", exclude_none=True)
    for field in ("path", "testPath"):
        if field in section and "$" not in section[field]:
            section[field] = str((base_dir / section[field]).resolve())
    return section


def _finished(output: Path, fingerprint: str) -> Bundle | None:
    try:
        bundle = read_bundle(output)
    except MeedgeError:
        return None
    return bundle if bundle.made_with.get("fingerprint") == fingerprint else None


def _fingerprint(spec: ElasticModelSpec, dataset: Dataset, base_dir: Path) -> str:
    hashed = hashlib.sha256(spec.model_dump_json().encode())
    for split in (dataset.train, dataset.validation):
        digest(split, hashed)
    if spec.model.weights is not None:
        weights = expand_path(spec.model.weights, base_dir, where="spec.model.weights")
        hashed.update(weights.read_bytes() if weights.is_file() else b"")
    return hashed.hexdigest()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("meedge-ray", "torch", "onnxruntime", "numpy")}
