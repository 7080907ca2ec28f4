"""From trained branches to what a bundle names: exported units, their profile, the survivors."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter
from torch import nn

from meedge_ray.bundle.files import write_atomically
from meedge_ray.bundle.store import UnitStore
from meedge_ray.domain.elastic import Block, Branch, Bundle, Eliminated, InputSpec, Profile, Unit, Variant
from meedge_ray.nn.export import export_unit
from meedge_ray.nn.multi_exit import Head
from meedge_ray.nn.partition import Chain
from meedge_ray.nn.supernet import Supernet
from meedge_ray.runtime.loading import load_engine, unit_reader
from meedge_ray.runtime.profiler import device_type, profile
from meedge_ray.runtime.subnets import link_times
from meedge_ray.search.survival import survive
from meedge_ray.train.baselines import BaselineChoices
from meedge_ray.train.progress import Report
from meedge_ray.train.zoo_network import Choice

_PROFILE = TypeAdapter(Profile)


class Grown(Protocol):
    """A trained branch: cultivated, or merged from one that was."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def exit_index(self) -> int: ...  # noqa: D102
    @property
    def choice(self) -> Choice: ...  # noqa: D102
    @property
    def module(self) -> nn.Module: ...  # noqa: D102
    @property
    def accuracy(self) -> float: ...  # noqa: D102
    @property
    def merged_neurons(self) -> tuple[int, ...]: ...  # noqa: D102


def export_blocks(chain: Chain, store: UnitStore, report: Report) -> tuple[Block, ...]:
    """Put the backbone's blocks into the store."""
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


def shared_convolutions(choices: Iterable[Choice]) -> frozenset[str]:
    """Return the convolutions under several FC choices, by name: stored as units of their own where they are shared."""
    heads = Counter(convolution.name for convolution, _ in choices if convolution.kind != "none")
    return frozenset(name for name, count in heads.items() if count > 1)


def export_exit(
    branches: Iterable[Grown], feature_shape: tuple[int, int, int], apart: frozenset[str], store: UnitStore
) -> list[Branch]:
    """Put the branches of one exit into the store: whole, or in two units where the convolution is named in `apart`."""
    exported = []
    put: dict[nn.Module, Unit] = {}
    for branch in branches:
        convolution, fc = branch.choice
        # A convolution keeps the map's shape, so both parts take the same.
        parts = tuple(branch.module.children()) if convolution.name in apart else (branch.module,)
        for part in parts:
            if part not in put:
                put[part] = store.put(export_unit(part, feature_shape))
        exported.append(
            Branch(
                name=branch.name,
                exit_index=branch.exit_index,
                convolution=convolution.name,
                fc=fc.name,
                units=tuple(put[part] for part in parts),
                parameters=sum(parameter.numel() for parameter in branch.module.parameters()),
                accuracy=branch.accuracy,
                merged_neurons=branch.merged_neurons,
            )
        )
    return exported


def export_heads(
    heads: Sequence[Head], accuracies: Sequence[float], chain: Chain, store: UnitStore, report: Report
) -> tuple[Branch, ...]:
    """Put heads trained together with the chain into the store."""
    branches = []
    for done, (head, accuracy) in enumerate(zip(heads, accuracies, strict=True)):
        branches.append(
            Branch(
                name=head.name,
                exit_index=head.exit_index,
                convolution=head.convolution,
                fc=head.fc,
                units=(store.put(export_unit(head.module, chain.map_shape(head.exit_index))),),
                parameters=sum(parameter.numel() for parameter in head.module.parameters()),
                accuracy=accuracy,
            )
        )
        report("export exits trained together", done + 1, len(heads))
    return tuple(branches)


def export_variants(
    supernet: Supernet, losses: Sequence[float], store: UnitStore, report: Report
) -> tuple[Variant, ...]:
    """Put a supernet's added blocks into the store; `losses` are their accuracy losses where each is used alone."""
    variants = []
    for done, (growth, loss) in enumerate(zip(supernet.growths, losses, strict=True), start=1):
        shape = supernet.chain.pieces[growth.start].input_shape
        variants.append(
            Variant(
                name=growth.name,
                kind=growth.kind,
                start=growth.start,
                end=growth.end,
                unit=store.put(export_unit(growth.module, shape)),
                parameters=growth.parameters,
                flops=growth.flops,
                accuracy_loss=loss,
            )
        )
        report("export variants", done, len(supernet.growths))
    return tuple(variants)


class Surveyor:
    """Measures units on this machine; what is measured is kept in a folder, so that later stages decide alike."""

    def __init__(self, store: UnitStore, input_spec: InputSpec, blocks: Sequence[Block], final_accuracy: float) -> None:
        self._store = store
        self._read = unit_reader(store)
        self._input = input_spec
        self._blocks = blocks
        self._final_accuracy = final_accuracy

    def profile(self, name: str, branches: Sequence[Branch], folder: Path, report: Report) -> Profile:
        """Return the times of all blocks and of the branches, measured now or in an earlier run under this name."""
        path = folder / f"profile-{name}.json"
        if not path.exists():
            report("profile", 0, 1, name)
            engine = load_engine(self._store, self._input, self._blocks, self._final_accuracy)
            measured = profile(engine, branches, self._read, device_type=device_type())
            write_atomically(path, _PROFILE.dump_json(measured))
        report("profile", 1, 1, name)
        return _PROFILE.validate_json(path.read_bytes())

    def with_variants(self, bundle: Bundle, folder: Path, report: Report) -> Bundle:
        """Return the bundle with its variants' times in its profile, measured now or in an earlier run."""
        path = folder / "profile-variants.json"
        [measured] = bundle.profiles.values()
        if not path.exists():
            report("profile", 0, 1, "variants")
            means, deviations = (times[len(bundle.blocks) :].tolist() for times in link_times(bundle, self._read))
            names = [variant.name for variant in bundle.variants]
            whole = replace(
                measured,
                variant_ms=dict(zip(names, means, strict=True)),
                variant_std_ms=dict(zip(names, deviations, strict=True)),
            )
            write_atomically(path, _PROFILE.dump_json(whole))
        report("profile", 1, 1, "variants")
        known = _PROFILE.validate_json(path.read_bytes())
        measured = replace(measured, variant_ms=known.variant_ms, variant_std_ms=known.variant_std_ms)
        return replace(bundle, profiles={measured.device_type: measured})


def joined(profile: Profile, further: Profile) -> Profile:
    """Return one profile with the branches' times of both; the blocks' times are those of the first."""
    return replace(
        profile,
        branch_ms={**further.branch_ms, **profile.branch_ms},
        branch_std_ms={**further.branch_std_ms, **profile.branch_std_ms},
    )


def only(profile: Profile, branches: Iterable[Branch]) -> Profile:
    """Return the profile of these branches alone."""
    names = [branch.name for branch in branches]
    return replace(
        profile,
        branch_ms={name: profile.branch_ms[name] for name in names},
        branch_std_ms={name: profile.branch_std_ms[name] for name in names},
    )


def survivors(
    branches: Sequence[Branch], times: Profile, final_accuracy: float
) -> tuple[tuple[Branch, ...], tuple[Eliminated, ...]]:
    """Return the branches worth keeping as candidates, and why each of the others is not (MEEdge 3.2.2)."""
    reached_ms = list(accumulate(times.block_ms))
    times_ms = [reached_ms[branch.exit_index] + times.branch_ms[branch.name] for branch in branches]
    _, reasons = survive(
        times_ms,
        [branch.accuracy for branch in branches],
        final_ms=times.single_exit_ms,
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


def fixed_sets(baselines: BaselineChoices, branches: Sequence[Branch]) -> dict[str, tuple[Branch, ...]]:
    """Return for every published method its branches."""
    known = {(branch.exit_index, branch.convolution, branch.fc): branch for branch in branches}
    return {
        method: tuple(known[exit_index, conv.name, fc.name] for exit_index, (conv, fc) in sorted(exits.items()))
        for method, exits in baselines.items()
    }
