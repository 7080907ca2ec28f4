"""Memory taken away from an agent and from what it is compared with, in real memory groups (MEEdge 4.2.2, Figure 9b).

AlexNet on CIFAR-10. The single exit, the multi-exit network with one FC layer an exit, SPINN, and the agent, each a
process of its own in a group of its own, serve the same client over the same socket: first under limits that change
seven times, then beside a neighbour that grows in the same group until the kernel kills. Then a thousand random
changes for the agent. Backbone and data come from MEEDGE_SHARED, or from the work folder.

Run as a user who may make memory groups: python benchmarks/edge_memory.py
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _edge_asking import Asked, Asking, Images
from _edge_bundle import TOKEN, edge_bundle, profiled, serving, with_heavy_branches
from _edge_contest import (
    ANNOUNCED_S,
    CHANGES,
    CONTESTANTS,
    EARLY_S,
    GREEDY,
    OURS,
    OURS_BARE,
    START,
    THIN,
    Scene,
    beside_balloon,
    change,
    limited,
    need_bytes,
    single_exit_ms,
    switches,
    tell,
)
from _edge_group import GRACE_S
from _edge_pictures import seven_changes_picture
from _results import RESULTS, write_results

from meedge_ray.cli.output import show, table
from meedge_ray.runtime.placing import HORIZON_FACTOR
from meedge_ray.runtime.sessions import loading_bytes
from meedge_ray.train.evaluation import test_samples

MIB = 2.0**20
SPARE_BYTES = 2**20  # above what is needed, and the head-room
RATES_MIB = (20, 50, 100, 200, 400)  # a second, of the neighbour's growth
TRIES = 3  # of starting a process: what it needs differs by MiB from one to the next
SWINGS = 5  # of the neighbour at each rate
RANDOM_CHANGES, HEAVY_CHANGES = 1000, 200
MOST_LOADING_BYTES = 8 * 2**20  # there is room for at the highest limit: the largest units stay out
TOLD_S = 0.25  # before a foreseen one of the random changes
NEEDS = (*CONTESTANTS, OURS_BARE)

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/edge"), help="where the bundle is built and kept")
    parser.add_argument("--bundle", type=Path, help="a bundle's folder instead")
    parser.add_argument("--quick", action="store_true", help="only see that it runs; results stay in the work folder")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    results = work if arguments.quick else RESULTS
    folder, bundle = edge_bundle(work, quick=arguments.quick, given=arguments.bundle)
    folder, bundle = profiled(folder, bundle, work)
    test = test_samples(bundle)
    with tempfile.TemporaryDirectory(prefix="edge-") as run_dir, ExitStack() as running:
        images = Images(np.asarray(test.x), test.y)
        url = running.enter_context(serving(folder))
        scene = Scene(folder, bundle, url, TOKEN, Path(run_dir), images, horizon_ms=0.0, policy=THIN)
        single_ms = single_exit_ms(scene)
        [times] = bundle.profiles.values()
        scene = replace(scene, horizon_ms=HORIZON_FACTOR * max(single_ms, times.single_exit_ms))
        folder, bundle = with_heavy_branches(folder, bundle, work)
        url = running.enter_context(serving(folder))
        (Path(run_dir) / "heavy").mkdir()
        heavy = replace(scene, folder=folder, bundle=bundle, url=url, run_dir=Path(run_dir) / "heavy")
        said: Figures = {"single_exit_ms": single_ms, "horizon_ms": scene.horizon_ms, "test_samples": len(images.y)}
        said |= shown(scene, quick=arguments.quick)
        said |= changed_at_random(scene, heavy, said["needs_bytes"], quick=arguments.quick)
    seven_changes_picture(said.pop("stories"), results / "edge-memory.png")
    if arguments.quick:
        (results / "edge_memory.json").write_text(json.dumps(said))
    else:
        write_results("edge_memory", said)
    print_tables(said)


def shown(scene: Scene, *, quick: bool) -> Figures:
    """Run everything; the stories are for the picture."""
    need_bytes(scene, OURS)  # fetches its units, which the others have
    needs = {name: min(need_bytes(scene, name) for _ in range(TRIES)) for name in NEEDS}
    print("needs, MiB", {name: round(need / MIB, 1) for name, need in needs.items()}, flush=True)
    low = needs[OURS_BARE] + scene.policy.headroom_bytes + 2 * SPARE_BYTES
    high = max(needs.values()) + scene.policy.headroom_bytes + SPARE_BYTES
    levels = [int(low + level * (high - low)) for level in (START, *(change.level for change in CHANGES))]
    phase_s = 2.0 if quick else 6.0
    stories = limited(scene, CONTESTANTS, levels, [change.foreseen for change in CHANGES], phase_s)
    seven = {name: summary(story) for name, story in stories.items()}
    print("seven changes", json.dumps(seven), flush=True)
    neighbours = {}
    for name in CONTESTANTS:
        neighbours[name] = summary(beside_balloon(scene, name, levels, phase_s / 2, RATES_MIB[0] * MIB))
        print(name, "beside a neighbour", neighbours[name], flush=True)
    bare = needs[OURS_BARE] + scene.policy.headroom_bytes + SPARE_BYTES
    rates = {}
    for rate in RATES_MIB[:1] if quick else RATES_MIB:
        story = beside_balloon(scene, OURS, [levels[0], *[bare, levels[0]] * SWINGS], 1.5, rate * MIB)
        rates[f"{rate}"] = summary(story)["kills"]
        print("neighbour at", rate, "MiB/s", rates[f"{rate}"], flush=True)
    return {
        "backbone_bytes": scene.bundle.backbone_bytes,
        "needs_bytes": needs,
        "levels_bytes": levels,
        "foreseen": [change.foreseen for change in CHANGES],
        "phase_s": phase_s,
        "grace_s": GRACE_S,
        "announced_s": ANNOUNCED_S,
        "policy": scene.policy.model_dump(),
        "seven_changes": seven,
        "beside_a_neighbour": neighbours,
        "neighbour_mib_a_second_kills": rates,
        "switches": switches(scene.folder),
        "stories": stories,
    }


def changed_at_random(scene: Scene, heavy: Scene, needs: Figures, *, quick: bool) -> Figures:
    """Change the limit of ours a thousand times; then where its branches are so heavy that the kernel insists."""
    runs = {}
    for name, its, count in (
        ("own_branches", replace(scene, policy=GREEDY), RANDOM_CHANGES),
        ("heavy_branches", replace(heavy, policy=GREEDY), HEAVY_CHANGES),
    ):
        most_bytes, headroom_bytes = need_bytes(its, OURS), its.policy.headroom_bytes
        loading = max(loading_bytes(unit.size_bytes) for branch in its.bundle.branches for unit in branch.units)
        low = needs[OURS_BARE] + headroom_bytes + SPARE_BYTES
        high = most_bytes + headroom_bytes + min(loading, MOST_LOADING_BYTES)
        runs[name] = {"needs_bytes": most_bytes, "policy": its.policy.model_dump()}
        runs[name] |= randomly(its, low, high, changes=20 if quick else count)
        print(name, json.dumps(runs[name]), flush=True)
    return {"random_changes": runs}


def summary(story: Figures) -> Figures:
    """Return what became of a process: how often killed, answers, and accuracy under kills, dead times counted too."""
    asked: list[Asked] = story["asked"]
    whole_s = asked[-1].at_s
    return {
        "kills": story["kills"],
        "answers_a_second": sum(each.answered for each in asked) / whole_s,
        "accuracy": accuracy(asked),
        "empty_for_nothing": sum(each.for_nothing for each in asked),
        "dead_share": float(np.mean([not alive for *_, alive in story["watched"]])),
        "changes": story["changes"],
    }


def accuracy(asked: list[Asked]) -> float:
    """Return the share of right answers at random moments: every tenth of a second counts as much as any other."""
    bins: dict[int, list[bool]] = {}
    for each in asked:
        bins.setdefault(int(each.at_s * 10), []).append(each.right)
    return float(np.mean([np.mean(rights) for rights in bins.values()]))


def randomly(scene: Scene, low: int, high: int, *, changes: int) -> Figures:
    """Change the limit of ours again and again, at random moments to random values; half of them foreseen."""
    draw = random.Random(0)
    sudden: list[float] = []
    foreseen: list[float] = []
    drops = 0
    with scene.running(OURS) as resident:
        resident.enforce(high)
        start_s = time.perf_counter()
        asking = Asking({OURS: resident.client}, scene.images, scene.horizon_ms, start_s, unhurried=0.5)
        asking.start()
        before = high
        for _ in range(changes):
            level, told = draw.randint(low, high), draw.random() < 0.5
            time.sleep(draw.uniform(0.1, 0.6))
            if not resident.alive:
                resident.start()
            if told and level < before:
                tell(scene, resident, level, (TOLD_S - EARLY_S) * 1e3)
                time.sleep(TOLD_S)
            result = change(resident, level=level, rises=level > before)
            drops += level < before
            if level < before and result.waited and not result.killed:
                (foreseen if told else sudden).append(result.after_ms)
            before = level
        asked = asking.end()[OURS]
        killed = resident.kills
    return {
        "changes": changes,
        "drops": drops,
        "kills": killed,
        "low_bytes": low,
        "high_bytes": high,
        "asked": len(asked),
        "unanswered": sum(not each.answered for each in asked),
        "empty_for_nothing": sum(each.for_nothing for each in asked),
        "slowest_request_ms": max(each.took_ms for each in asked),
        "sudden_that_had_to_release": len(sudden),
        "foreseen_that_had_to_release": len(foreseen),
        "release_ms": spread(sudden),
        "release_ms_foreseen": spread(foreseen),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return percentiles."""
    names, at = ("p50", "p90", "p99", "max"), (50, 90, 99, 100)
    return dict(zip(names, np.percentile(values, at).tolist(), strict=True)) if values else {}


def print_tables(said: Mapping[str, Any]) -> None:
    """Print what became of whom."""
    rows = []
    for name in CONTESTANTS:
        limits, beside = said["seven_changes"][name], said["beside_a_neighbour"][name]
        rows.append(
            [name, f"{said['needs_bytes'][name] / MIB:.1f} MiB", str(limits["kills"]), str(beside["kills"])]
            + [f"{limits['answers_a_second']:.0f}", f"{limits['accuracy']:.1%}"]
        )
    head = ["process", "needs>", "killed>", "beside a neighbour>", "answers/s>", "right under kills>"]
    show(table(head, rows))
    for name, many in said["random_changes"].items():
        show(
            f"{name}, {many['changes']} random changes: killed {many['kills']} times, {many['unanswered']} of "
            f"{many['asked']} unanswered, {many['empty_for_nothing']} empty for nothing; released after a sudden drop "
            f"{many['release_ms']}"
        )
    show(
        f"switches: {said['switches']['switch_ms']}",
    )


if __name__ == "__main__":
    main()
