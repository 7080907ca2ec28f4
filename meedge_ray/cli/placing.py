"""The command that chooses a placement: for a memory, a law of the kill's time, and the time there is to send it."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from meedge_ray.api.serving import Score
from meedge_ray.bundle.manifest import read_bundle
from meedge_ray.bundle.store import UnitStore
from meedge_ray.cli.bundles import Directory, Horizon, Memory, Output
from meedge_ray.cli.distribution import Distribution, read_distribution
from meedge_ray.cli.fields import as_options
from meedge_ray.cli.output import Format, emit, table
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import InvalidInputError, NotFoundError
from meedge_ray.domain.placement import Placement
from meedge_ray.domain.quantity import format_bytes, parse_bytes, parse_number
from meedge_ray.runtime.placing import Placer
from meedge_ray.runtime.sending import Fetching, Sending


class Method(StrEnum):
    """How to search for a placement."""

    FRONTIER = "frontier"
    HPF = "hpf"


def place(
    directory: Directory,
    memory: Memory,
    method: Annotated[Method, typer.Option(help="exact frontier, or MEEdge's HPF search")] = Method.FRONTIER,
    score: Annotated[Score | None, typer.Option(help="HPF's priority score [default: m7]")] = None,
    search_ms: Annotated[float, typer.Option(min=0.0, help="time HPF may search")] = 10.0,
    horizon_ms: Horizon = None,
    distribution: Distribution = None,
    latency_ms: Annotated[float | None, typer.Option(min=0.0, help="time for search and sending; needs --rate")] = None,
    rate: Annotated[str | None, typer.Option(help="rate of the link in bits per second, such as 85M")] = None,
    held: Annotated[
        Path | None, typer.Option(metavar="DIR", help="a device's folder of units, which need not be sent")
    ] = None,
    device_type: Annotated[
        str | None, typer.Option(help="whose times to plan with [default: the only profile]")
    ] = None,
    form: Output = Format.TEXT,
) -> None:
    """Choose the branches that answer best within a memory budget, and that can be sent in time.

    Example: meedge place digits --memory 2Mi --latency-ms 200 --rate 85M
    """
    bundle = read_bundle(directory)
    budget_bytes = parse_bytes(memory, where="--memory")
    fetching = Fetching(bundle, _held(held))
    law = read_distribution(distribution)
    if score is not None and method is not Method.HPF:
        raise InvalidInputError("a score belongs to HPF", where="--score", do="Add --method hpf")
    with as_options(distribution):
        placer = Placer(bundle, device_type=device_type, horizon_ms=horizon_ms, distribution=law)
        sending = _sending(fetching, latency_ms, rate)
        if method is Method.HPF:
            placement = placer.place_hpf(budget_bytes, search_ms=search_ms, score=score or "m7", sending=sending)
        elif sending is not None:
            placement = placer.place_in_time(budget_bytes, sending)
        else:
            placement = placer.place(budget_bytes)
    emit(form, *_shown(bundle, placement, fetching, sending))


def _held(directory: Path | None) -> frozenset[str]:
    if directory is None:
        return frozenset()
    if not directory.is_dir():
        raise NotFoundError("no such folder", where=str(directory), do="Name a device's folder of units")
    return UnitStore(directory).held()


def _sending(fetching: Fetching, latency_ms: float | None, rate: str | None) -> Sending | None:
    if latency_ms is None and rate is None:
        return None
    if latency_ms is None or rate is None:
        raise InvalidInputError(
            "a time to send in and the link's rate go together",
            where="--rate" if rate is None else "--latency-ms",
            do="Give both, such as --latency-ms 200 --rate 85M",
        )
    rate_bps = parse_number(rate, where="--rate")
    if rate_bps < 1:
        raise InvalidInputError("must be at least 1 bit per second", where="--rate")
    return Sending(fetching=fetching, latency_budget_ms=latency_ms, rate_bps=rate_bps)


def _shown(
    bundle: Bundle, placement: Placement, fetching: Fetching, sending: Sending | None
) -> tuple[dict[str, Any], str, Table]:
    content = asdict(placement)
    headline = (
        f"{len(placement.branches)} branches, {format_bytes(placement.size_bytes)} with the backbone, mAE "
        f"{placement.expectation:.1%} over {placement.horizon_ms:.3f} ms (searched {placement.search_ms:.3f} ms)"
    )
    if sending is not None:
        sent_bytes = fetching.lacking_bytes((*fetching.blocks, *fetching.units(placement.branches)))
        sent_ms = sent_bytes * 8e3 / sending.rate_bps
        content |= {"fetch_bytes": sent_bytes, "transmission_ms": sent_ms}
        headline += f"; {format_bytes(sent_bytes)} to send in {sent_ms:.3f} ms"
    return content, headline, _answers(bundle, placement)


def _answers(bundle: Bundle, placement: Placement) -> Table:
    profile = bundle.profiles[placement.device_type]
    by_name = {branch.name: branch for branch in bundle.branches}
    rows = []
    spent_ms = 0.0
    for name in placement.branches:
        branch = by_name[name]
        spent_ms += profile.branch_ms[name]
        at_ms = sum(profile.block_ms[: branch.exit_index + 1]) + spent_ms
        rows.append([name, f"{at_ms:.3f}", f"{branch.accuracy:.1%}", format_bytes(branch.size_bytes)])
    final_ms = profile.single_exit_ms + spent_ms
    rows.append(["final exit", f"{final_ms:.3f}", f"{bundle.final_accuracy:.1%}", format_bytes(bundle.backbone_bytes)])
    return table(["branch", "answers at ms>", "accuracy>", "bytes>"], rows)
