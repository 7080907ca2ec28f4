"""Keeps to a latency budget on this device while it changes: the network's body is switched, every request answered."""

import argparse
import sys
from pathlib import Path

import numpy as np

from meedge_ray.bundle.manifest import read_bundle, unit_store
from meedge_ray.runtime.adaptation import Adapter


def main() -> None:
    """Search once, then run under five budgets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle with a supernet")
    parser.add_argument("samples", type=Path, help="an .npz with x and y")
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.bundle)
    with np.load(arguments.samples) as file:
        x, y = file["x"], file["y"]
    adapter = Adapter(bundle, unit_store(arguments.bundle), x, y)
    chosen = adapter.adapt(0.8 * adapter.original_ms)
    engine = adapter.running(chosen, 0.8 * adapter.original_ms)
    for share in (0.8, 1.5, 0.6, 0.1, 1.0):
        engine.set_budget(share * adapter.original_ms)
        right = [engine.infer(sample).label == label for sample, label in zip(x, y, strict=True)]
        engine.settle()
        status = engine.status()
        sys.stdout.write(
            f"budget {status.latency_ms:.3f} ms: {np.mean(right):.1%} right, body {status.active.latency_ms:.3f} ms, "
            f"{status.switches} switches so far, short by {status.shortfall_ms:.3f} ms\n"
        )


if __name__ == "__main__":
    main()
