"""What the engine costs: ResNet-20 cut into units against one session and eager torch, and a device's memory.

One thread, batch 1, the rounds of all contestants interleaved, medians. The share of bookkeeping is what an
inference takes beyond the calls of its sessions: the sample's normalisation, the clock, the answer. The memory
is that of a fresh process that has imported the whole device runtime, loaded the network and answered once.

Run: python benchmarks/engine.py
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from _results import write_results

from meedge_ray.bundle.store import sha256_of
from meedge_ray.domain.elastic import Branch, InputSpec, Unit
from meedge_ray.nn.backbones import build_backbone
from meedge_ray.nn.export import export_unit
from meedge_ray.nn.partition import partition
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.sessions import UnitSession, load_unit

SHAPE = (3, 32, 32)
WARM_UP, ROUNDS = 50, 1000
TARGETS = {
    "chain_over_single_session": 1.25,
    "chain_over_eager_torch": 0.5,
    "bookkeeping_share": 0.03,
    "process_rss_bytes": 150e6,
}
DEVICE = """
import json, sys
from pathlib import Path
import numpy, onnxruntime
import meedge_ray.runtime.device
from meedge_ray.domain.elastic import InputSpec
from meedge_ray.runtime.engine import Engine
from meedge_ray.runtime.memory import release_to_os, rss_bytes
blocks = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]
engine = Engine(InputSpec(shape=(3, 32, 32)), blocks, final_accuracy=0.9)
del blocks
engine.infer(numpy.zeros((3, 32, 32), numpy.uint8))
release_to_os()
print(json.dumps({"rss_bytes": rss_bytes(), "loaded": sorted({"torch", "ray"} & set(sys.modules))}))
"""


def interleaved_ms(contestants: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return the times of every contestant, one run of each a round."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(WARM_UP + ROUNDS):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn >= WARM_UP:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def bookkeeping(engine: Engine, steps: Sequence[tuple[UnitSession, bool]], sample: np.ndarray) -> float:
    """Return the share of an inference that is not spent in sessions; `steps` are its units, and which are blocks."""
    features = (sample[None] / 255).astype(np.float32)
    shares = []
    for turn in range(WARM_UP + ROUNDS):
        inside_ms = 0.0
        value = features
        for unit, is_block in steps:
            start = time.perf_counter()
            output = unit.run(unit.output_names, {unit.input_name: value}, None)[0]
            inside_ms += (time.perf_counter() - start) * 1e3
            value = output if is_block else value
        start = time.perf_counter()
        engine.infer(sample)
        total_ms = (time.perf_counter() - start) * 1e3
        if turn >= WARM_UP:
            shares.append(1 - inside_ms / total_ms)
    return statistics.median(shares)


def device_memory(blocks: list[bytes]) -> dict[str, object]:
    """Return what a fresh device process holds."""
    with tempfile.TemporaryDirectory() as folder:
        for index, data in enumerate(blocks):
            (Path(folder) / f"{index:03}.onnx").write_bytes(data)
        said = subprocess.run([sys.executable, "-c", DEVICE, folder], check=True, capture_output=True, text=True)
    return dict(json.loads(said.stdout))


def branches(shapes: list[tuple[int, ...]]) -> tuple[list[Branch], dict[Unit, bytes]]:
    """Return a pooled linear branch at every exit point, and the units."""
    made = []
    units = {}
    for index, shape in enumerate(shapes):
        pooled = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(shape[0], 10))
        data = export_unit(pooled, shape)
        unit = Unit(sha256=sha256_of(data), size_bytes=len(data))
        branch = Branch(
            name=f"exit{index}",
            exit_index=index,
            convolution="none",
            fc="linear",
            units=(unit,),
            parameters=10 * shape[0] + 10,
            accuracy=0.1,
        )
        made.append(branch)
        units[unit] = data
    return made, units


def main() -> None:
    torch.set_num_threads(1)
    model = build_backbone("resnet20", input_shape=SHAPE, classes=10, arguments={}).eval()
    pieces = partition(model, SHAPE).pieces
    blocks = [export_unit(piece.module, piece.input_shape) for piece in pieces]
    engine = Engine(InputSpec(shape=SHAPE, scale=1 / 255), blocks, final_accuracy=0.9)
    single = load_unit(export_unit(model, SHAPE), name="whole", threads=1)

    sample = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    features = (sample[None] / 255).astype(np.float32)
    tensor = torch.from_numpy(features)
    with torch.inference_mode():
        difference = float(np.abs(engine.infer_batch(sample[None])[None] - model(tensor).numpy()).max())
        times = interleaved_ms(
            {
                "eager_torch": lambda: model(tensor),
                "single_session": lambda: single(features),
                "chain": lambda: engine.infer(sample),
            }
        )
    medians = {name: statistics.median(values) for name, values in times.items()}
    chain = [(load_unit(data, name="block", threads=1), True) for data in blocks]
    bare_share = bookkeeping(engine, chain, sample)
    at_every_exit, units = branches([piece.input_shape for piece in pieces[1:]])
    engine.place(at_every_exit, units.__getitem__)
    placed = chain[:1]
    for branch, block in zip(at_every_exit, chain[1:], strict=True):
        placed += [(load_unit(units[branch.units[0]], name=branch.name, threads=1), False), block]
    memory = device_memory(blocks)
    figures = {
        "units": len(blocks),
        "rounds": ROUNDS,
        **{f"{name}_ms": value for name, value in medians.items()},
        "chain_over_single_session": medians["chain"] / medians["single_session"],
        "chain_over_eager_torch": medians["chain"] / medians["eager_torch"],
        "bookkeeping_share": bare_share,
        "bookkeeping_share_with_a_branch_at_every_exit": bookkeeping(engine, placed, sample),
        "process_rss_bytes": memory["rss_bytes"],
        "torch_or_ray_loaded": memory["loaded"],
        "largest_logit_difference": difference,
    }
    write_results("engine", {**figures, "targets": TARGETS})
    width = max(map(len, figures))
    for name, value in figures.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        target = f"target <= {TARGETS[name]:g}" if name in TARGETS else ""
        print(f"{name:<{width}}  {shown:>10}  {target}".rstrip())


if __name__ == "__main__":
    main()
