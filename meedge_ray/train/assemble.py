"""From trained branches to a bundle: export, profile, survive."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from meedge_ray.api.elastic_model import ElasticModelSpec
from meedge_ray.bundle.manifest import unit_store
from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import Block, Branch, Bundle, Eliminated, Profile
from meedge_ray.nn.branches import branch_name, zoo_branches
from meedge_ray.nn.export import export_unit
from meedge_ray.nn.partition import Chain
from meedge_ray.runtime.loading import load_engine, stored_candidates
from meedge_ray.runtime.profiler import device_type, profile
from meedge_ray.search.survival import survive
from meedge_ray.train.baselines import BaselineChoices, baseline_choices
from meedge_ray.train.cultivate import Cultivated
from meedge_ray.train.data import Dataset
from meedge_ray.train.manifest import Manifest
from meedge_ray.train.progress import Report


def assemble(
    manifest: Manifest,
    dataset: Dataset,
    chain: Chain,
    trained: Sequence[Cultivated],
    final_accuracy: float,
    output: Path,
    report: Report,
) -> Bundle:
    """Put all units into the store of `output`, measure them, and return the bundle of those that survive.

    Args:
        manifest: what was asked for.
        dataset: for the input's shape and the classes.
        chain: the partitioned backbone.
        trained: every branch, in eval mode.
        final_accuracy: of the unchanged backbone on validation.
        output: the bundle's folder.
        report: told the progress.
    """
    store = unit_store(output)
    blocks = _export_blocks(chain, store, report)
    branches = _export_branches(chain, trained, store, report)
    engine = load_engine(store, dataset.input, blocks, final_accuracy)
    report("profile", 0, 1)
    measured = profile(engine, stored_candidates(store, branches), device_type=device_type())
    report("profile", 1, 1)
    zoo = {
        branch_name(exit_index, *choice)
        for exit_index in range(chain.exit_count)
        for choice in zoo_branches(manifest.model.spec.zoo, chain.map_shape(exit_index))
    }
    kept, eliminated = _survivors([branch for branch in branches if branch.name in zoo], measured, final_accuracy)
    fixed = _fixed_sets(baseline_choices(chain), branches)
    named = {branch.name for branch in [*kept, *(branch for method in fixed.values() for branch in method)]}
    spec = manifest.model.spec
    return Bundle(
        model=manifest.model.metadata.name,
        architecture=spec.model.architecture,
        input=dataset.input,
        classes=dataset.classes,
        blocks=blocks,
        final_accuracy=final_accuracy,
        branches=kept,
        baselines=fixed,
        eliminated=eliminated,
        profiles={
            measured.device_type: replace(
                measured, branch_ms={name: ms for name, ms in measured.branch_ms.items() if name in named}
            )
        },
        data=_data_section(spec, manifest.base_dir),
    )


def _export_blocks(chain: Chain, store: UnitStore, report: Report) -> tuple[Block, ...]:
    blocks = []
    for index, piece in enumerate(chain.pieces):
        blocks.append(
            Block(
                name=piece.name,
                unit=store.put(export_unit(piece.module, piece.input_shape)),
                input_shape=piece.input_shape,
                output_shape=piece.output_shape,
                parameters=piece.parameters,
                flops=piece.flops,
            )
        )
        report("export blocks", index + 1, len(chain.pieces))
    return tuple(blocks)


def _export_branches(
    chain: Chain, trained: Sequence[Cultivated], store: UnitStore, report: Report
) -> tuple[Branch, ...]:
    branches = []
    for index, branch in enumerate(trained):
        convolution, fc = branch.choice
        branches.append(
            Branch(
                name=branch.name,
                exit_index=branch.exit_index,
                convolution=convolution.name,
                fc=fc.name,
                unit=store.put(export_unit(branch.module, chain.map_shape(branch.exit_index))),
                parameters=sum(parameter.numel() for parameter in branch.module.parameters()),
                accuracy=branch.accuracy,
            )
        )
        report("export branches", index + 1, len(trained))
    return tuple(branches)


def _survivors(
    branches: Sequence[Branch], profile: Profile, final_accuracy: float
) -> tuple[tuple[Branch, ...], tuple[Eliminated, ...]]:
    reached_ms = list(accumulate(profile.block_ms))
    times_ms = [reached_ms[branch.exit_index] + profile.branch_ms[branch.name] for branch in branches]
    _, reasons = survive(
        times_ms,
        [branch.accuracy for branch in branches],
        final_ms=profile.single_exit_ms,
        final_accuracy=final_accuracy,
    )
    kept = tuple(branch for branch, reason in zip(branches, reasons, strict=True) if not reason)
    eliminated = tuple(
        Eliminated(
            name=branch.name,
            exit_index=branch.exit_index,
            accuracy=branch.accuracy,
            time_ms=time_ms,
            reason=reason,
        )
        for branch, time_ms, reason in zip(branches, times_ms, reasons, strict=True)
        if reason
    )
    return kept, eliminated


def _fixed_sets(baselines: BaselineChoices, branches: Sequence[Branch]) -> dict[str, tuple[Branch, ...]]:
    by_name = {branch.name: branch for branch in branches}
    return {
        method: tuple(by_name[branch_name(exit_index, *choice)] for exit_index, choice in sorted(exits.items()))
        for method, exits in baselines.items()
    }


def _data_section(spec: ElasticModelSpec, base_dir: Path) -> dict[str, Any]:
    # Evaluation happens elsewhere and later: plain paths become absolute, variables stay for who reads them.
    section: dict[str, Any] = spec.data.model_dump(by_alias=True, mode="json", exclude_none=True)
    for field in ("path", "testPath"):
        if field in section and "$" not in section[field]:
            section[field] = str((base_dir / section[field]).resolve())
    return section
