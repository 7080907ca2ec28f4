"""`meedge agent`: the process on a device that keeps its model answering, and what it is asked."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from meedge_ray.api.agent import AgentSettings, Mode
from meedge_ray.cli.output import Format, emit, table
from meedge_ray.cli.planning import Plan
from meedge_ray.domain.errors import InvalidInputError, NotFoundError, UnavailableError
from meedge_ray.domain.quantity import format_bytes, parse_bytes, parse_number

if TYPE_CHECKING:
    from meedge_ray.agent.client import AgentClient
    from meedge_ray.agent.status import AgentStatus

_HEARTBEAT_S = 10.0
_STOP_SECONDS = 15.0
_OPTIONS = {
    "device": "--device",
    "service_url": "--service-url",
    "model": "--model",
    "memory_bytes": "--memory",
    "in_ms": "--in-seconds",
    "ca_file": "--ca-file",
    "cache_dir": "--cache-dir",
    "latency_ms": "--latency-ms",
    "deadline_ms": "--deadline-ms",
    "rate_limit_bps": "--rate-limit",
    "http_port": "--http-port",
    "sample": "--input",
}

app = typer.Typer(
    name="agent",
    help="Keep a model answering on this device: one process that owns engine, memory and units, and is asked locally.",
    epilog="Start with: meedge agent run --service-url http://127.0.0.1:8000 --model digits --memory 2Mi",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Device = Annotated[str | None, typer.Option(help="whose agent [default: the only one that runs on this machine]")]
RunDir = Annotated[
    Path | None,
    typer.Option(
        help="where agents have their sockets [default: MEEDGE_RUN_DIR, else in XDG_RUNTIME_DIR, else ~/.cache]"
    ),
]
Output = Annotated[Format, typer.Option("-o", "--output", help="how to answer")]


@app.command()
def run(
    service_url: Annotated[str | None, typer.Option(help="of the placement service, such as https://host:8000")] = None,
    model: Annotated[str | None, typer.Option(help="the served model's name")] = None,
    memory: Annotated[str | None, typer.Option(help="budget of backbone and branches, such as 2Mi")] = None,
    device: Annotated[str | None, typer.Option(help="the device's name [default: this machine's]")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="file of the token the service asks for [default: MEEDGE_TOKEN]")
    ] = None,
    ca_file: Annotated[Path | None, typer.Option(help="PEM file that checks an HTTPS service's certificate")] = None,
    cache_dir: Annotated[str | None, typer.Option(help="where units are kept [default: ~/.cache/meedge]")] = None,
    mode: Annotated[
        Mode | None, typer.Option(help="whether an inference may end at any moment, or its deadline is known")
    ] = None,
    latency_ms: Annotated[float | None, typer.Option(help="deadline of an inference that names none")] = None,
    plan: Annotated[Plan | None, typer.Option(help="which resident branches run")] = None,
    rate_limit: Annotated[str | None, typer.Option(help="most that downloads take, in bits a second, as 10M")] = None,
    http_port: Annotated[int | None, typer.Option(help="also answer on loopback HTTP; 0: any free port")] = None,
    enroll: Annotated[
        bool, typer.Option("--enroll", help="a device without Ray: the token enrols it, and it says how it is")
    ] = False,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="all settings as YAML or JSON; options go before it")
    ] = None,
    run_dir: RunDir = None,
) -> None:
    """Run the agent of this device until it is told to end: SIGTERM, Ctrl-C, or `meedge agent stop`.

    It answers while its model is still loaded, and goes on answering without the service. Neither torch nor Ray is
    needed. A budget by the time of day, and how memory is watched, go into FILE: `schedule`, `memory_policy`.

    Example: meedge agent run --service-url https://host:8000 --model digits --memory 2Mi --token-file token
    """
    from meedge_ray.agent.launching import become

    given = {
        "service_url": service_url,
        "model": model,
        "memory_bytes": None if memory is None else parse_bytes(memory, where="--memory"),
        "device": device,
        "token": _token(token_file),
        "ca_file": None if ca_file is None else str(ca_file),
        "cache_dir": cache_dir,
        "mode": mode,
        "latency_ms": latency_ms,
        "planning": None if plan is None else plan.value,
        "rate_limit_bps": None if rate_limit is None else parse_number(rate_limit, where="--rate-limit"),
        "http_port": http_port,
    }
    become(_settings(settings, given, enroll=enroll), run_dir)


@app.command()
def infer(
    sample: Annotated[Path, typer.Option("--input", help="one raw sample as .npy, as the data set stores it")],
    deadline_ms: Annotated[float | None, typer.Option(min=0.0, help="return what is at hand by then")] = None,
    device: Device = None,
    run_dir: RunDir = None,
    form: Output = Format.TEXT,
) -> None:
    """Let the agent answer one sample.

    Example: meedge agent infer --input x.npy --deadline-ms 5 -o json
    """
    from meedge_ray.agent.npy import decoded

    try:
        data = sample.read_bytes()
    except OSError as error:
        do = "Name a file that numpy.save wrote"
        raise NotFoundError(f"cannot be read ({error.strerror})", where=str(sample), do=do) from None
    with _asked(device, run_dir) as agent:
        answer = agent.infer(decoded(data), deadline_ms=deadline_ms)
    rows = [
        [str(output.exit_index), output.branch or "final", f"{output.at_ms:.3f}", str(output.label)]
        + [f"{output.confidence:.1%}"]
        for output in answer.outputs
    ]
    by = f"label {answer.label} from {answer.branch or 'the final exit'}"
    said = "nothing was at hand yet" if answer.label is None else by
    emit(
        form,
        asdict(answer),
        f"{said} ({answer.ending} after {answer.elapsed_ms:.3f} ms; {len(answer.outputs)} results, "
        f"{answer.resident} branches resident, plan: {answer.planner})",
        table(["exit>", "branch", "at ms>", "label>", "confidence>"], rows),
    )


@app.command()
def status(device: Device = None, run_dir: RunDir = None, form: Output = Format.TEXT) -> None:
    """Tell what the agent runs, within what memory, and what it has done.

    Ends with 0 when a model answers, else with 1.

    Example: meedge agent status -o json
    """
    with _asked(device, run_dir) as agent:
        now = agent.status()
    emit(form, _as_json(now), *_status_text(now))
    if now.running is None:
        raise typer.Exit(1)


@app.command()
def memory(
    budget: Annotated[str, typer.Argument(metavar="BYTES", help="budget of backbone and branches, such as 1Mi")],
    in_seconds: Annotated[float, typer.Option(min=0.0, help="it begins then, and is prepared for now")] = 0.0,
    device: Device = None,
    run_dir: RunDir = None,
    form: Output = Format.TEXT,
) -> None:
    """Change the memory that the model may take, at once or foreseen.

    Example: meedge agent memory 1Mi --in-seconds 5
    """
    budget_bytes = parse_bytes(budget, where="BYTES")
    with _asked(device, run_dir) as agent:
        now = agent.set_memory(budget_bytes, in_ms=in_seconds * 1e3)
    emit(form, _as_json(now), *_status_text(now))


@app.command()
def preempt(device: Device = None, run_dir: RunDir = None, form: Output = Format.TEXT) -> None:
    """Take the processor away: running inferences answer at once with the best they have.

    Example: meedge agent preempt
    """
    with _asked(device, run_dir) as agent:
        ended = agent.preempt()
    emit(form, {"ended": ended}, f"{ended} inferences ended")


@app.command()
def stop(device: Device = None, run_dir: RunDir = None) -> None:
    """Let the agent end, and wait until it has. Its units stay for the next.

    Example: meedge agent stop --device pi-1
    """
    from meedge_ray.agent.places import place_of

    with _asked(device, run_dir) as agent:
        agent.stop()
        place = place_of(agent.device, run_dir)
    last = time.monotonic() + _STOP_SECONDS
    while place.is_claimed():
        if time.monotonic() > last:
            do = "Wait, or kill the process that `agent.json` beside its socket names"
            raise UnavailableError(f"it is still ending after {_STOP_SECONDS:.0f} s", where=place.device, do=do)
        time.sleep(0.02)
    sys.stdout.write("stopped\n")


def _as_json(now: "AgentStatus") -> Any:  # noqa: ANN401 - any JSON value
    from pydantic import TypeAdapter

    from meedge_ray.agent.status import AgentStatus

    return TypeAdapter(AgentStatus).dump_python(now, mode="json")


@contextmanager
def _asked(device: str | None, run_dir: Path | None) -> "Iterator[AgentClient]":
    from meedge_ray.agent.client import AgentClient

    try:
        with AgentClient(device, run_dir=run_dir) as agent:
            yield agent
    except InvalidInputError as error:
        raise type(error)(error.what, where=_OPTIONS.get(error.where, error.where), do=error.do) from None


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("MEEDGE_TOKEN")
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFoundError(f"cannot be read ({error})", where="--token-file", do="Name a file of one token") from None


def _settings(file: Path | None, given: dict[str, Any], *, enroll: bool) -> AgentSettings:
    content = {} if file is None else _read_settings(file)
    content = {"device": socket.gethostname(), **content} | {name: v for name, v in given.items() if v is not None}
    if enroll:
        content.setdefault("heartbeat_s", _HEARTBEAT_S)
    try:
        return AgentSettings.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        path = ".".join(map(str, first["loc"]))
        from_file = file is not None and given.get(name) is None and first["type"] != "missing"
        where = f"{file}: {path}" if from_file else _OPTIONS.get(name, path)
        what = "is needed" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
        raise InvalidInputError(what, where=where, do="See `meedge agent run --help`") from None


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise NotFoundError(f"cannot be read ({error.strerror})", where=str(file), do="Name a file") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        what = "is neither YAML nor JSON"
        raise InvalidInputError(f"{what} ({' '.join(str(error).split())})", where=str(file)) from None
    if not isinstance(content, dict):
        raise InvalidInputError("must be an object", where=str(file), do="Write fields such as `model: digits`")
    return content


def _status_text(now: "AgentStatus") -> list[str]:
    memory, counts, running = now.memory, now.counts, now.running
    limit = "unknown" if memory.limit_bytes is None else format_bytes(memory.limit_bytes)
    used = "" if memory.used_bytes is None else f", {format_bytes(memory.used_bytes)} used"
    lines = [f"device {now.device}, process {now.pid}, {now.mode}"]
    if running is None:
        lines.append("no model is loaded yet")
    else:
        lines.append(
            f"{running.model} on {running.device_type}: {len(running.branches)} branches, "
            f"{format_bytes(running.resident_bytes)} resident, mAE {running.expectation:.1%}, "
            f"placed by {running.source}"
        )
    lines += [
        f"units may take {format_bytes(memory.allowed_bytes)}; process {format_bytes(memory.rss_bytes)}; "
        f"limit {limit}{used} ({memory.source})",
        f"{counts.inferences} inferences: {counts.completed} completed, {counts.deadline} at their deadline, "
        f"{counts.preempted} preempted ({counts.empty} empty), {counts.failed} failed; {counts.drops} sudden drops",
    ]
    lines += [f"foreseen: {format_bytes(each.memory_bytes)} in {each.in_s:.1f} s" for each in now.foreseen]
    if now.problem is not None:
        where = f"{now.problem.where}: " if now.problem.where else ""
        lines.append(f"problem: {where}{now.problem.what}. {now.problem.do}")
    return lines
