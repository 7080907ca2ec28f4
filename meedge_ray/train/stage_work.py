"""What every stage of a build does; each goes on where a killed process was."""

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from meedge_ray.bundle.files import write_atomically
from meedge_ray.bundle.manifest import unit_store, write_bundle
from meedge_ray.domain.elastic import Bundle
from meedge_ray.train.assemble import Surveyor, export_variants, fixed_sets, joined, only, survivors
from meedge_ray.train.backbone import train_backbone
from meedge_ray.train.blueprint import Blueprint
from meedge_ray.train.contents import data_section
from meedge_ray.train.elasticize import elasticized
from meedge_ray.train.features import cache_features
from meedge_ray.train.predictor import with_predictor
from meedge_ray.train.progress import Report
from meedge_ray.train.sharing import shared
from meedge_ray.train.survey import ACCURACIES, Survey, export_exits, survey
from meedge_ray.train.tasks import RunTasks, Task


class StageWork:
    """The work of one build's stages."""

    def __init__(self, blueprint: Blueprint, run: RunTasks) -> None:
        self._blueprint = blueprint
        self._spec = blueprint.spec
        self._folders = blueprint.folders
        self._store = unit_store(blueprint.folders.output)
        self._run = run
        self._surveyed: Survey | None = None

    @property
    def stages(self) -> Mapping[str, Callable[[Report], None]]:
        """Every stage's work, by its name."""
        return {
            "pretrain": self._pretrain,
            "cultivate": self._cultivate,
            "share": self._share,
            "elasticize": self._elasticize,
            "assemble": self._assemble,
        }

    def _pretrain(self, report: Report) -> None:
        train_backbone(
            self._spec,
            self._blueprint.dataset,
            base_dir=self._blueprint.manifest.base_dir,
            folder=self._folders.folder("pretrain"),
            check=self._blueprint.check,
            report=report,
        )

    def _cultivate(self, report: Report) -> None:
        blueprint = self._blueprint
        blueprint.check(blueprint.chain)
        tasks = blueprint.cultivation
        for task in tasks:
            task.check(blueprint.chain.map_shape(task.exit_index))  # here, and not in a worker
        features = cache_features(
            blueprint.chain,
            blueprint.dataset,
            self._folders.features,
            report,
            seed=self._spec.cultivation.seed,
            **blueprint.feature_limits,
        )
        backbone = blueprint.backbone
        accuracies = backbone.accuracies(blueprint.dataset) if backbone.heads else [features.final_accuracy]
        write_atomically(self._folders.folder("cultivate") / ACCURACIES, json.dumps(accuracies).encode())
        self._run_missing(tasks, report)

    def _share(self, report: Report) -> None:
        blueprint = self._blueprint
        tasks = blueprint.sharing(self._survey(report).kept)
        if not all(task.finished for task in tasks):
            # They were removed if the bundle was finished once. Augmented views are for cultivation alone.
            disk_bytes = blueprint.feature_limits["disk_bytes"]
            cache_features(blueprint.chain, blueprint.dataset, self._folders.features, report, disk_bytes=disk_bytes)
        self._run_missing(tasks, report)

    def _elasticize(self, report: Report) -> None:
        self._blueprint.check(self._blueprint.chain)
        self._run_missing([self._blueprint.supernet], report)

    def _assemble(self, report: Report) -> None:
        bundle = self._with_merged(report)
        bundle = self._with_supernet(bundle, self._survey(report).surveyor, report)
        if any((bundle.branches, *bundle.baselines.values())):  # else there is nothing to plan
            bundle = with_predictor(
                bundle,
                self._store,
                self._blueprint.dataset.validation,
                self._folders.folder("assemble"),
                seed=self._spec.cultivation.seed,
                report=report,
            )
        write_bundle(self._folders.output, bundle)

    def _with_merged(self, report: Report) -> Bundle:
        blueprint, found = self._blueprint, self._survey(report)
        times, kept, eliminated = found.times, found.kept, found.eliminated
        sharing = blueprint.sharing(kept)
        if sharing:
            merged = export_exits(blueprint, sharing, shared, self._store, report)
            times = joined(times, found.surveyor.profile("merged", merged, self._folders.folder("share"), report))
            kept_too, eliminated_too = survivors(merged, times, found.final_accuracy)
            kept, eliminated = kept + kept_too, eliminated + eliminated_too
        together = {"trained_together": found.together} if found.together else {}
        fixed = fixed_sets(blueprint.baselines, found.grown) | together
        return Bundle(
            model=blueprint.manifest.model.metadata.name,
            architecture=self._spec.model.architecture,
            input=blueprint.dataset.input,
            classes=blueprint.dataset.classes,
            blocks=found.blocks,
            final_accuracy=found.final_accuracy,
            branches=kept,
            baselines=fixed,
            eliminated=eliminated,
            profiles={times.device_type: only(times, (*kept, *(b for method in fixed.values() for b in method)))},
            data=data_section(blueprint.manifest),
            made_with={"fingerprint": self._folders.key("assemble"), **_versions()},
        )

    def _with_supernet(self, bundle: Bundle, surveyor: Surveyor, report: Report) -> Bundle:
        if self._spec.supernet is None:
            return bundle
        supernet, losses = elasticized(self._blueprint.supernet, self._blueprint.chain)
        variants = export_variants(supernet, losses, self._store, report)
        folder = self._folders.folder("elasticize")
        return surveyor.with_variants(replace(bundle, variants=variants), folder, report)

    def _survey(self, report: Report) -> Survey:
        if self._surveyed is None:
            self._surveyed = survey(self._blueprint, self._store, report)
        return self._surveyed

    def _run_missing(self, tasks: Sequence[Task], report: Report) -> None:
        missing = [task for task in tasks if not task.finished]
        if missing:
            self._run(missing, report)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("meedge-ray", "torch", "onnxruntime", "numpy")}
