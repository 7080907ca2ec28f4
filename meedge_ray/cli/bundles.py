"""Commands on a bundle: build, inspect, infer, evaluate."""

import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table

from meedge_ray.bundle.manifest import bundle_sha256, read_bundle, unit_store, verify_units
from meedge_ray.cli.distribution import Distribution, read_distribution
from meedge_ray.cli.extras import extra
from meedge_ray.cli.fields import as_options
from meedge_ray.cli.output import Bars, Format, emit, table
from meedge_ray.cli.planning import Plan, Planning
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import InvalidInputError, NotFoundError
from meedge_ray.domain.quantity import format_bytes, parse_bytes
from meedge_ray.runtime.exit_planning import planner_for
from meedge_ray.runtime.loading import load_engine, load_predictor, unit_reader
from meedge_ray.runtime.placing import Placer
from meedge_ray.runtime.subnets import subnet_space

if TYPE_CHECKING:
    from meedge_ray.train.evaluation import Comparison
    from meedge_ray.train.progress import Report
    from meedge_ray.train.tasks import RunTasks, Task

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="a bundle's folder")]
Memory = Annotated[str, typer.Option(help="memory budget of backbone and branches, such as 2Mi")]
Output = Annotated[Format, typer.Option("-o", "--output", help="how to answer")]
Horizon = Annotated[
    float | None, typer.Option(min=0.0, help="span in ms in which the kill may come [default: 1.25 x single exit]")
]


def build(
    manifest: Annotated[Path | None, typer.Argument(metavar="MANIFEST", help="a manifest of kind ElasticModel")] = None,
    output: Annotated[
        list[str] | None,
        typer.Option("-o", "--output", metavar="DIR", help="the bundle's folder; `-o json` besides answers in JSON"),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the manifest's JSON Schema and stop")] = False,
) -> None:
    """Train the exits of a pre-trained model and write its bundle.

    Runs on the cluster RAY_ADDRESS names, else on one of its own that ends with it; where Ray is not installed, in this
    process alone. A build that was killed goes on where it was when it is run again.

    Example: meedge build examples/01-digits/model.yaml -o digits
    """
    if schema:
        from meedge_ray.api.elastic_model import json_schema

        emit(Format.JSON, json_schema())
        return
    folders = [Path(value) for value in output or [] if value not in tuple(Format)]
    form = Format.JSON if "json" in (output or []) else Format.TEXT
    if manifest is None or len(folders) != 1:
        raise InvalidInputError(
            "needs one manifest and one folder", where="meedge build", do="meedge build FILE -o DIR"
        )
    with extra("train"):
        from meedge_ray.train.build import build as build_bundle
        from meedge_ray.train.manifest import read_manifest
    declared = read_manifest(manifest)
    with ExitStack() as stack:
        bars = stack.enter_context(Bars())
        bundle = build_bundle(declared, folders[0], run=_workers(stack), report=bars)
    emit(form, _summary(folders[0], bundle), _headline(folders[0], bundle))


def _workers(stack: ExitStack) -> "RunTasks":
    if importlib.util.find_spec("ray") is None:
        from meedge_ray.train.tasks import run_in_turn

        return run_in_turn
    started: list[object] = []

    def on_ray(tasks: "Sequence[Task]", report: "Report") -> None:
        from meedge_ray.actors.cluster import cluster
        from meedge_ray.jobs.tasks import run_on_ray

        if not started:  # Ray starts only now, when there is something to train
            started.append(stack.enter_context(cluster()))
        run_on_ray(tasks, report)

    return on_ray


def inspect(directory: Directory, form: Output = Format.TEXT) -> None:
    """Verify a bundle and show its blocks, its branches at every exit, its lighter blocks, and their times."""
    bundle = read_bundle(directory)
    verify_units(directory, bundle)
    profile = next(iter(bundle.profiles.values()))
    reached_ms = np.cumsum(profile.block_ms)
    blocks = [
        [str(index), block.name, "x".join(map(str, block.output_shape)), f"{profile.block_ms[index]:.3f}"]
        + [f"{profile.block_std_ms[index]:.3f}", format_bytes(block.unit.size_bytes), f"{block.flops / 1e6:.1f}"]
        for index, block in enumerate(bundle.blocks)
    ]
    branches = [
        [branch.name, f"{branch.accuracy:.1%}", f"{reached_ms[branch.exit_index] + profile.branch_ms[branch.name]:.3f}"]
        + [f"{profile.branch_ms[branch.name]:.3f}", f"{profile.branch_std_ms[branch.name]:.3f}"]
        + [format_bytes(branch.size_bytes)]
        + ["+".join(map(str, branch.merged_neurons)) or "-"]
        for branch in sorted(bundle.branches, key=lambda branch: (branch.exit_index, branch.name))
    ]
    eliminated = [[gone.name, f"{gone.accuracy:.1%}", gone.reason] for gone in bundle.eliminated]
    emit(
        form,
        _summary(directory, bundle)
        | {"profile": asdict(profile), "eliminated": [asdict(e) for e in bundle.eliminated]},
        _headline(directory, bundle),
        *_planning(bundle),
        "",
        table(["exit>", "block", "output", "ms>", "+-ms>", "bytes>", "MFLOPs>"], blocks),
        "",
        table(["branch", "accuracy>", "answers at ms>", "ms>", "+-ms>", "bytes>", "neurons merged>"], branches),
        "",
        table(["eliminated", "accuracy>", "because it"], eliminated),
        *_supernet(bundle),
    )


def _supernet(bundle: Bundle) -> list[Table | str]:
    if not bundle.variants:
        return []
    profile = next(iter(bundle.profiles.values()))
    rows = [
        [variant.name, f"{variant.start}-{variant.end - 1}", f"{profile.variant_ms[variant.name]:.3f}"]
        + [f"{sum(profile.block_ms[variant.start : variant.end]):.3f}", format_bytes(variant.unit.size_bytes)]
        + [f"{100 * variant.accuracy_loss:+.1f}"]
        for variant in bundle.variants
    ]
    return [
        "",
        f"{len(rows)} lighter blocks make {subnet_space(bundle).count:,} bodies; `meedge adapt` chooses one",
        table(["variant", "for blocks>", "ms>", "theirs>", "bytes>", "points lost alone>"], rows),
    ]


def _planning(bundle: Bundle) -> list[str]:
    predictor = bundle.predictor
    if predictor is None:
        return []
    chosen = "sample by sample" if predictor.pays else "with one plan for all samples"
    gain = f"{100 * predictor.gain:+.2f} +-{100 * predictor.gain_error:.2f} points"
    return [f"planning sample by sample gains {gain} over the best plan for all: devices plan {chosen}"]


def infer(
    directory: Directory,
    memory: Memory,
    sample: Annotated[Path, typer.Option("--input", help="one raw sample as .npy, as the data set stores it")],
    deadline_ms: Annotated[float | None, typer.Option(min=0.0, help="return what is at hand by then")] = None,
    plan: Planning = Plan.AUTO,
    form: Output = Format.TEXT,
) -> None:
    """Answer one sample with the placement that fits the memory, by the deadline.

    Example: meedge infer digits --memory 2Mi --input x.npy --deadline-ms 1
    """
    bundle = read_bundle(directory)
    placer, store = Placer(bundle), unit_store(directory)
    placement = placer.place(parse_bytes(memory, where="--memory"))
    engine = load_engine(store, bundle.input, bundle.blocks, bundle.final_accuracy)
    branches = [branch for branch in bundle.branches if branch.name in placement.branches]
    predictor = load_predictor(store, bundle)
    with as_options():
        planner = planner_for(
            plan.value, bundle, placer.profile, branches, predictor, horizon_ms=placer.horizon_ms, law=placer.law
        )
    engine.place(branches, unit_reader(store), planner)
    raw = _read_sample(sample)
    engine.infer(raw)  # the first run after loading is slower than a device that is at work
    answer = engine.infer(raw, deadline_ms=deadline_ms)
    label = None if answer.label is None else bundle.classes[answer.label]
    rows = [
        [str(output.exit_index), output.branch or "final", f"{output.at_ms:.3f}", bundle.classes[output.label]]
        + [f"{output.confidence:.1%}"]
        for output in answer.outputs
    ]
    said = f"{label} from {answer.branch or 'the final exit'}" if label is not None else "nothing was at hand yet"
    emit(
        form,
        asdict(answer) | {"class": label},
        f"{said} ({answer.ending} after {answer.elapsed_ms:.3f} ms; {len(answer.outputs)} results, "
        f"{answer.resident} branches resident, plan: {answer.planner})",
        table(["exit>", "branch", "at ms>", "class", "confidence>"], rows),
    )


def evaluate(
    directory: Directory,
    memory: Memory,
    kills: Annotated[int, typer.Option(min=1, help="inferences killed at a random time, each method")] = 10_000,
    horizon_ms: Horizon = None,
    distribution: Distribution = None,
    report: Annotated[Path | None, typer.Option(help="folder for report.json, pictures and index.html")] = None,
    form: Output = Format.TEXT,
) -> None:
    """Measure accuracy over time, over memory and under random kills, beside the published baselines.

    Runs on the test split of the data the model was built with, on this machine's engine.

    Example: meedge evaluate digits --memory 2Mi --report report
    """
    budget_bytes, law = parse_bytes(memory, where="--memory"), read_distribution(distribution)
    with extra("all"), Bars() as bars:
        from meedge_ray.train.evaluation import evaluate as measure
        from meedge_ray.train.report import write_report

        with as_options(distribution):
            measured = measure(
                directory,
                memory_bytes=budget_bytes,
                horizon_ms=horizon_ms,
                distribution=law,
                kills=kills,
                report=bars,
            )
    shown = []
    if report is not None:
        write_report(report, measured)
        shown.append(f"report: {report / 'index.html'}")
    rows = [
        [name, f"{method.mae:.1%}", f"{method.killed:.1%}", f"{method.final_accuracy:.1%}"]
        + [format_bytes(method.resident_bytes), str(len(method.branches))]
        for name, method in measured.methods.items()
    ]
    columns = ["method", "mAE>", "under kills>", "if let finish>", "memory>", "branches>"]
    beside = [
        [name, format_bytes(comparison.memory_bytes), f"{measured.methods[name].killed:.1%}"]
        + [f"{comparison.ours.killed:.1%}", _gain(comparison)]
        for name, comparison in measured.comparisons.items()
    ]
    emit(
        form,
        measured.as_json(),
        table(columns, rows),
        "",
        table(["at the memory of", "memory>", "under kills>", "meedge>", "gain>"], beside),
        *shown,
    )


def _gain(comparison: "Comparison") -> str:
    if comparison.killed_gain is None or comparison.killed_gain_error is None:
        return "-"
    return f"{comparison.killed_gain:+.1%} +-{comparison.killed_gain_error:.1%}"


def _read_sample(path: Path) -> np.ndarray:
    try:
        sample: np.ndarray = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise NotFoundError("no such file", where=str(path), do="Save a sample with numpy.save") from error
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"cannot be read as .npy ({error})", where=str(path), do="Save it with numpy.save"
        ) from error
    return sample


def _summary(directory: Path, bundle: Bundle) -> dict[str, Any]:
    return {
        "model": bundle.model,
        "architecture": bundle.architecture,
        "directory": str(directory),
        "bundle_sha256": bundle_sha256(bundle),
        "backbone_bytes": bundle.backbone_bytes,
        "final_accuracy": bundle.final_accuracy,
        "exits": bundle.exit_count,
        "classes": list(bundle.classes),
        "input_shape": list(bundle.input.shape),
        "blocks": [asdict(block) for block in bundle.blocks],
        "branches": [asdict(branch) for branch in bundle.branches],
        "variants": [asdict(variant) for variant in bundle.variants],
        "baselines": {name: [branch.name for branch in branches] for name, branches in bundle.baselines.items()},
    }


def _headline(directory: Path, bundle: Bundle) -> str:
    return (
        f"{bundle.model} ({bundle.architecture}) in {directory}: {len(bundle.blocks)} blocks of "
        f"{format_bytes(bundle.backbone_bytes)}, {bundle.final_accuracy:.1%} at the end; {len(bundle.branches)} "
        f"branches survived at {bundle.exit_count} exits, {len(bundle.eliminated)} did not"
    )
