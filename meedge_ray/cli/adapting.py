"""The command that lets a device choose its network's body."""

import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from meedge_ray.bundle.manifest import bundle_units, read_bundle, unit_store, write_bundle
from meedge_ray.cli.bundles import Directory, Output
from meedge_ray.cli.fields import as_options
from meedge_ray.cli.output import Format, emit, table
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import InvalidInputError, NotFoundError
from meedge_ray.domain.quantity import parse_bytes
from meedge_ray.runtime.adaptation import Adaptation, Adapter
from meedge_ray.search.subnets import Subnet


class Search(StrEnum):
    """How the subnets are searched."""

    SURROGATE = "surrogate"
    EVOLUTION = "evolution"
    ANNEALING = "annealing"
    PLAIN_EVOLUTION = "plain-evolution"
    PLAIN_ANNEALING = "plain-annealing"


def adapt(
    directory: Directory,
    latency_ms: Annotated[float, typer.Option(help="budget of one inference on this machine")],
    data: Annotated[Path, typer.Option(help="this device's samples: an .npz with raw x, and y if there are labels")],
    strategy: Annotated[Search, typer.Option(help="how to search")] = Search.SURROGATE,
    cache: Annotated[str, typer.Option(help="most memory for features that several subnets share; 0: none")] = "64Mi",
    save: Annotated[
        Path | None, typer.Option(help="write the chosen network as a bundle of its own, its exits measured anew")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of what is drawn")] = 0,
    form: Output = Format.TEXT,
) -> None:
    """Find the most accurate body of the network within a latency budget, on this device and its data.

    Every block's time is measured here first. Without labels the original network's answers count as right. A budget
    below the fastest body is answered with that one and the shortfall.

    Example: meedge adapt digits --latency-ms 0.2 --data samples.npz --save fast
    """
    bundle, store = read_bundle(directory), unit_store(directory)
    samples, labels = _read(data)
    with as_options():
        adapter = Adapter(bundle, store, samples, labels, cache_bytes=parse_bytes(cache, where="--cache"))
        chosen = adapter.adapt(latency_ms, strategy=strategy.value, seed=seed)
    if save is not None:
        adapted = adapter.adapted(chosen.subnet)
        for unit in bundle_units(adapted):
            unit_store(save).put(store.read(unit.sha256))
        write_bundle(save, adapted)
    names = [link.name for link in bundle.links]
    pool = [
        {"subnet": _named(each.subnet, names), "estimated_ms": each.latency_ms, "accuracy": each.accuracy}
        for each in chosen.pool.members
    ]
    rows = [
        [f"{each.latency_ms:.3f}", f"{each.accuracy:.1%}", _changes(each.subnet, bundle)]
        for each in chosen.pool.members
    ]
    emit(
        form,
        {"model": bundle.model, "strategy": strategy.value, "budget_ms": latency_ms}
        | {field: value for field, value in asdict(chosen).items() if field != "pool"}
        | {"subnet": _named(chosen.subnet, names), "pool": pool},
        *_said(chosen, bundle),
        "",
        table(["estimated ms>", "accuracy>", "other blocks than the original's"], rows),
        *([] if save is None else [f"written to {save}"]),
    )


def _said(chosen: Adaptation, bundle: Bundle) -> list[str]:
    right = "right" if chosen.labelled else "in agreement with the original"
    said = [
        f"{chosen.latency_ms:.3f} ms, {chosen.accuracy:.1%} {right}; the original {chosen.original_ms:.3f} ms, "
        f"{chosen.original_accuracy:.1%}",
        f"other blocks than the original's: {_changes(chosen.subnet, bundle)}",
        f"{chosen.evaluated} of {chosen.subnets:,} subnets evaluated in {chosen.search_s:.1f} s, after "
        f"{chosen.profile_s:.1f} s of measuring every block",
    ]
    if chosen.shortfall_ms:
        said.insert(0, f"no subnet is within the budget: the fastest misses it by {chosen.shortfall_ms:.3f} ms")
    return said


def _named(subnet: Subnet, names: Sequence[str]) -> list[str]:
    return [names[link] for link in subnet]


def _changes(subnet: Subnet, bundle: Bundle) -> str:
    return ", ".join(bundle.links[link].name for link in subnet if link >= len(bundle.blocks)) or "none"


def _read(path: Path) -> tuple[Any, Any]:
    """Return samples and labels, None where there are none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "x" not in file:
                raise InvalidInputError("it has no array x", where=str(path), do="Save raw samples as x, labels as y")
            return file["x"], file.get("y")
    except FileNotFoundError as error:
        raise NotFoundError("no such file", where=str(path), do="Save samples with numpy.savez(x=, y=)") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InvalidInputError(
            f"cannot be read as .npz ({error})", where=str(path), do="Save samples with numpy.savez(x=, y=)"
        ) from error
