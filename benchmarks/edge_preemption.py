"""The processor taken from an agent at moments it does not know, by signals and by a real-time process (EINet I, V).

AlexNet on CIFAR-10. What comes of it beside what the placement promised; how soon the answer is back; and, where the
moment is known beforehand, finite-time inference beside anytime, alone and beside a real-time process.

Run as a user who may have real-time priority, with MEEDGE_SHARED: python benchmarks/edge_preemption.py
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from _edge_agents import agent_process, placed
from _edge_asking import Images
from _edge_bundle import TOKEN, edge_bundle, serving
from _edge_kill_pictures import preemption_picture
from _edge_rested import rested_profile
from _edge_taker import Taking
from _results import RESULTS, write_results

from meedge_ray.agent.client import AgentClient
from meedge_ray.cli.output import show, table
from meedge_ray.domain.answer import Answer
from meedge_ray.domain.elastic import Bundle
from meedge_ray.train.evaluation import test_samples
from meedge_ray.train.samples import Samples

MODES = ("anytime", "finiteTime")
WAYS = {"kill": "SIGUSR1", "stop": "SIGSTOP, SIGCONT", "burn": "a real-time process"}
KILLS, QUICK_KILLS = 4000, 100
ASKED, QUICK_ASKED = 400, 10  # inferences a mode and deadline
DEADLINES = 14
HORIZON = 1.8  # single exits: all branches at rest, and the final exit, have come by then
LEAD_S = 0.0006  # of a request before its inference begins, at most
AGENT_PRIORITY = 5  # of real time, and its client's
MOST_LATE_S = 0.0003  # a request, and who takes the processor
REST_S = 0.003  # between slots: others use the core too
LOAD_S = 600.0  # at most

Figures = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """Where it happens: the agent's core, its test images, and the times that its device is taken to have."""

    core: int
    test: Images
    bundle: Bundle
    horizon_ms: float


@dataclass(frozen=True)
class Pair:
    """One sample asked for while the processor was taken, and undisturbed; when the first came after it was taken."""

    taken: Answer
    free: Answer
    wanted: int
    back_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/edge"), help="where the bundle is built and kept")
    parser.add_argument("--bundle", type=Path, help="a bundle's folder instead")
    parser.add_argument("--quick", action="store_true", help="only see that it runs; results stay in the work folder")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    results = work if arguments.quick else RESULTS
    folder, bundle = edge_bundle(work, quick=arguments.quick, given=arguments.bundle)
    # Others on this core would take part; only what takes the processor on purpose comes before the agent.
    core = min(os.sched_getaffinity(0))
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(AGENT_PRIORITY))
    folder, bundle = rested_profile(folder, bundle, work)
    [profile] = bundle.profiles.values()
    scene = Scene(core, _shuffled(test_samples(bundle)), bundle, HORIZON * profile.single_exit_ms)
    figures: Figures = {"single_exit_ms": profile.single_exit_ms, "horizon_ms": scene.horizon_ms}
    with ExitStack() as stack:
        run = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-")))
        url = stack.enter_context(serving(folder))
        agents, prefix = {}, ["taskset", "-c", str(core), "chrt", "-f", str(AGENT_PRIORITY)]
        for mode in MODES:
            device = {"device": mode, "service_url": url, "token": TOKEN, "model": bundle.model, "mode": mode}
            agents[mode] = stack.enter_context(
                agent_process(run, prefix=prefix, memory_bytes=2**40, horizon_ms=scene.horizon_ms, **device)
            )
            client, pid = agents[mode]
            client.infer(scene.test.x[0])  # from now on it has the thread that infers
            # On one core the thread that takes signals must come before that.
            os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(AGENT_PRIORITY + 1))
        kills = QUICK_KILLS if arguments.quick else KILLS
        figures["kills"] = killed(scene, *agents["anytime"], kills)
        asked = QUICK_ASKED if arguments.quick else ASKED
        figures["known"] = known(scene, {mode: client for mode, (client, _) in agents.items()}, asked)
    preemption_picture(figures, results / "edge-preemption.png")
    if arguments.quick:
        (results / "edge_preemption.json").write_text(json.dumps(figures))
    else:
        write_results("edge_preemption", figures)
    _print(figures)


def _shuffled(test: Samples) -> Images:
    # Where fewer are asked for than there are, they are of all.
    order = np.random.default_rng(0).permutation(len(test))
    return Images(np.asarray(test.x)[order], test.y[order])


def killed(scene: Scene, client: AgentClient, pid: int, count: int) -> Figures:
    """Return what came of inferences whose processor was taken at moments uniform over the horizon, each way.

    A request is sent at the beginning of a slot. In every other slot the processor is taken, at a moment uniform over a
    window in which the inference lies whole: wherever it lies, what moments beside it do not cost is known. The same
    sample is asked for undisturbed in the next one.
    """
    running = placed(client).running
    assert running is not None
    said: Figures = {"promised": running.expectation, "branches": len(running.branches), "ways": {}}
    window_ms = scene.horizon_ms + 1e3 * LEAD_S
    for way in WAYS:
        pairs = _taken(scene, client, pid, way, count)
        whole = [pair.free for pair in pairs if pair.free.ending == "completed"]
        right = np.array([pair.free.label == pair.wanted for pair in pairs], float)
        left = np.array([pair.taken.label == pair.wanted for pair in pairs], float)
        lost = window_ms / scene.horizon_ms * (right - left)
        back_ms = [pair.back_ms for pair in pairs if pair.taken.ending == "preempted"]
        said["ways"][way] = {
            "measured": right.mean() - lost.mean(),
            "standard_error": lost.std() / len(lost) ** 0.5,
            "promised_by_test": mean(_over_horizon(scene, pair, profiled=True) for pair in pairs),
            "undisturbed": mean(_over_horizon(scene, pair, profiled=False) for pair in pairs),
            "final_accuracy": right.mean(),
            "final_ms": mean(answer.outputs[-1].at_ms for answer in whole),
            "final_profile_ms": _result_ms(scene, whole[0])[-1],
            "longest_unit_ms": _longest_unit_ms(whole),
            "kills": len(pairs),
            "too_late": count - len(pairs),
            "ended": {kind: sum(pair.taken.ending == kind for pair in pairs) for kind in ("preempted", "deadline")},
            "empty": sum(pair.taken.label is None for pair in pairs),
            "back_ms": _spread(back_ms) if back_ms else None,
        }
    return said


def _taken(scene: Scene, client: AgentClient, pid: int, way: str, count: int) -> list[Pair]:
    """Return what was taken and what was not, less the slots in which somebody of this benchmark came too late."""
    horizon_s = scene.horizon_ms / 1e3
    window_s = horizon_s + LEAD_S
    until_s = window_s + horizon_s + LEAD_S
    slot_s = until_s + REST_S
    taking = Taking(
        how=way,  # type: ignore[arg-type]  # of WAYS
        pid=pid,
        core=scene.core if way == "burn" else max(os.sched_getaffinity(0)),
        slot_s=2 * slot_s,
        window_s=window_s,
        until_s=until_s,
        count=count,
    )
    deadline_ms = None if way == "kill" else scene.horizon_ms
    asked: list[tuple[Answer, float, float]] = []  # the answer, how late it was asked for, when it came
    with _taker(taking) as taker:
        start_s = _begun(taker)
        for slot in range(2 * count):
            begin_s = start_s + slot * slot_s
            time.sleep(max(0.0, begin_s - time.monotonic()))
            late_s = time.monotonic() - begin_s
            sample = scene.test.x[slot // 2 % len(scene.test.y)]
            answer = client.infer(sample, deadline_ms=None if slot % 2 else deadline_ms)
            asked.append((answer, late_s, time.monotonic()))
        took = json.loads(taker.communicate()[0])
    pairs = []
    for number, (at_s, late_s) in enumerate(took):
        (taken, asked_late_s, came_s), (free, _, _) = asked[2 * number : 2 * number + 2]
        # Who is asked late because the processor is taken already would have answered whole.
        is_early = way == "burn" and at_s - late_s < start_s + 2 * number * slot_s + LEAD_S
        if late_s < MOST_LATE_S and (asked_late_s < MOST_LATE_S or is_early):
            wanted = int(scene.test.y[number % len(scene.test.y)])
            pairs.append(Pair(taken, free, wanted, (came_s - at_s) * 1e3))
    return pairs


def known(scene: Scene, clients: dict[str, AgentClient], asked: int) -> Figures:
    """Return accuracy over deadlines that are told, alone and beside a real-time process, of both modes in turn."""
    deadlines = np.linspace(0.1, HORIZON, DEADLINES) * scene.horizon_ms / HORIZON
    load = Taking(how="load", pid=0, core=scene.core, slot_s=LOAD_S, window_s=0, until_s=0, count=1)
    said: Figures = {"deadlines_ms": deadlines.tolist(), "duty": load.duty, "period_ms": load.period_s * 1e3}
    said["alone"] = _by_deadline(scene, clients, deadlines, asked)
    with _taker(load) as taker:
        _begun(taker)
        said["beside"] = _by_deadline(scene, clients, deadlines, asked)
        taker.kill()
    return said


def _by_deadline(scene: Scene, clients: dict[str, AgentClient], deadlines: Sequence[float], asked: int) -> Figures:
    right = {mode: np.zeros(len(deadlines)) for mode in clients}
    empty = {mode: np.zeros(len(deadlines)) for mode in clients}
    random = np.random.default_rng(1)
    for which in random.choice(len(scene.test.y), asked):
        for index in random.permutation(len(deadlines)):
            for mode, client in clients.items():
                answer = client.infer(scene.test.x[which], deadline_ms=float(deadlines[index]))
                right[mode][index] += answer.label == scene.test.y[which]
                empty[mode][index] += answer.label is None
    return {
        mode: {"accuracy": (right[mode] / asked).tolist(), "empty": (empty[mode] / asked).tolist()} for mode in clients
    }


def _taker(taking: Taking) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("_edge_taker.py")), taking.json()]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _begun(taker: subprocess.Popen[str]) -> float:
    """Let it begin; return when its first slot does."""
    assert taker.stdin is not None
    assert taker.stdout is not None
    taker.stdout.readline()
    start_s = time.monotonic() + 0.1
    taker.stdin.write(f"{start_s}\n")
    taker.stdin.flush()
    return start_s


def _over_horizon(scene: Scene, pair: Pair, *, profiled: bool) -> float:
    """Return by which share of the horizon the whole one had the right result, by the profile's times or its own."""
    accuracy = {branch.name: branch.accuracy for branch in scene.bundle.branches} | {None: scene.bundle.final_accuracy}
    outputs = pair.free.outputs
    times = _result_ms(scene, pair.free) if profiled else [output.at_ms for output in outputs]
    ends = np.minimum([*times[1:], scene.horizon_ms], scene.horizon_ms)
    best, right_ms = None, 0.0
    for output, begin, end in zip(outputs, times, ends, strict=True):
        if best is None or accuracy[output.branch] > accuracy[best.branch]:
            best = output
        right_ms += max(0.0, end - begin) * (best.label == pair.wanted)
    return right_ms / scene.horizon_ms


def _result_ms(scene: Scene, answer: Answer) -> list[float]:
    [profile] = scene.bundle.profiles.values()
    run: list[str] = []
    times = []
    for output in answer.outputs:
        run += [] if output.branch is None else [output.branch]
        times.append(profile.result_ms(output.exit_index, run))
    return times


def _longest_unit_ms(answers: Sequence[Answer]) -> Figures:
    """Return the longest time between two results, of which every block has one behind it where one is resident."""
    gaps = [
        [b - a for a, b in zip([0.0, *times], times, strict=False)]
        for times in ([output.at_ms for output in answer.outputs] for answer in answers)
    ]
    return _spread([max(each) for each in gaps])


def _spread(values_ms: Sequence[float]) -> Figures:
    middle, high, most = np.percentile(values_ms, [50, 99, 100]).tolist()
    return {"p50": middle, "p99": high, "max": most}


def _print(figures: Figures) -> None:
    kills = figures["kills"]
    rows = [
        [
            WAYS[way],
            f"{said['measured']:.4f} +- {said['standard_error']:.4f}",
            f"{kills['promised']:.4f}",
            f"{said['promised_by_test']:.4f}",
            f"{said['undisturbed']:.4f}",
            "" if said["back_ms"] is None else f"{said['back_ms']['p50']:.2f} / {said['back_ms']['p99']:.2f} ms",
            f"{said['longest_unit_ms']['p50']:.2f} / {said['longest_unit_ms']['p99']:.2f} ms",
        ]
        for way, said in kills["ways"].items()
    ]
    heads = ["taken by", "measured>", "promised>", "with test accuracies>", "undisturbed>", "back>", "longest unit>"]
    show(table(heads, rows))


if __name__ == "__main__":
    main()
