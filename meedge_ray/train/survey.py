"""What trained exits are worth: exported, measured, and the survivors chosen."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import Block, Branch, Eliminated, Profile
from meedge_ray.nn.branches import branch_name, zoo_branches
from meedge_ray.train.assemble import (
    Grown,
    Surveyor,
    export_blocks,
    export_exit,
    export_heads,
    shared_convolutions,
    survivors,
)
from meedge_ray.train.blueprint import Blueprint, map_shapes
from meedge_ray.train.cultivate import ExitTask, cultivated
from meedge_ray.train.progress import Report
from meedge_ray.train.sharing import SharingTask

ACCURACIES = (
    "accuracies.json"  # of the exits trained with the backbone and of the final exit, where a zoo is cultivated
)

_ExitWork = TypeVar("_ExitWork", ExitTask, SharingTask)


@dataclass(frozen=True, slots=True)
class Survey:
    """All there is before anything is merged.

    `together` are the branches trained with the backbone, `grown` those cultivated, of published methods too. `kept`
    and `eliminated` are of what is offered, not of published methods alone.
    """

    blocks: tuple[Block, ...]
    final_accuracy: float
    together: tuple[Branch, ...]
    grown: tuple[Branch, ...]
    times: Profile
    kept: tuple[Branch, ...]
    eliminated: tuple[Eliminated, ...]
    surveyor: Surveyor


def survey(blueprint: Blueprint, store: UnitStore, report: Report) -> Survey:
    """Put what is trained into the store, measure it, and choose the branches to keep.

    Times are measured once: what merges branches and what writes the bundle decide alike.
    """
    folders, chain = blueprint.folders, blueprint.chain
    *accuracies, final_accuracy = _accuracies(blueprint)
    blocks = export_blocks(chain, store, report)
    together = export_heads(blueprint.backbone.heads, accuracies, chain, store, report)
    grown = export_exits(blueprint, blueprint.cultivation, cultivated, store, report)
    surveyor = Surveyor(store, blueprint.dataset.input, blocks, final_accuracy)
    folder = folders.folder("cultivate" if blueprint.spec.zoo else "assemble")
    times = surveyor.profile("zoo", [*together, *grown], folder, report)
    zoo = _zoo_names(blueprint)
    offered = [*together, *(branch for branch in grown if branch.name in zoo)]
    kept, eliminated = survivors(offered, times, final_accuracy)
    return Survey(blocks, final_accuracy, together, tuple(grown), times, kept, eliminated, surveyor)


def export_exits(
    blueprint: Blueprint,
    tasks: Sequence[_ExitWork],
    read: Callable[[_ExitWork, tuple[int, int, int]], Sequence[Grown]],
    store: UnitStore,
    report: Report,
) -> list[Branch]:
    """Put into the store what finished tasks trained; `read` reads it back."""
    branches: list[Branch] = []
    for done, task in enumerate(tasks, start=1):
        shape = blueprint.chain.map_shape(task.exit_index)
        branches += export_exit(read(task, shape), shape, _apart(blueprint, shape), store)
        report("export branches", done, len(tasks))
    return branches


def _accuracies(blueprint: Blueprint) -> list[float]:
    if blueprint.spec.zoo is None:
        return blueprint.backbone.accuracies(blueprint.dataset)
    noted: list[float] = json.loads((blueprint.folders.folder("cultivate") / ACCURACIES).read_text())
    return noted


def _apart(blueprint: Blueprint, shape: tuple[int, int, int]) -> frozenset[str]:
    zoo = blueprint.spec.zoo
    if zoo is None or not zoo.shared_convolutions:
        return frozenset()
    return shared_convolutions(zoo_branches(zoo, shape))


def _zoo_names(blueprint: Blueprint) -> set[str]:
    zoo = blueprint.spec.zoo
    if zoo is None:
        return set()
    shapes = enumerate(map_shapes(blueprint.chain))
    return {branch_name(exit_index, *choice) for exit_index, shape in shapes for choice in zoo_branches(zoo, shape)}
