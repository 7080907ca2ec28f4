"""Makes samples.npz: sensor tensors of 3 channels on a 20x20 grid, in four classes.

Each class is a wave that travels in its own direction, under noise. Replace it by your own x [N, C, H, W] and y [N].
"""

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, nargs="?", default=Path("samples.npz"))
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    y = random.integers(0, 4, arguments.count)
    angle = (y * np.pi / 4 + random.normal(0, 0.1, arguments.count))[:, None, None, None]
    phase = random.uniform(0, 2 * np.pi, (arguments.count, 1, 1, 1)) + np.arange(3)[None, :, None, None]
    rows, columns = np.mgrid[0:20, 0:20]
    wave = np.sin(0.8 * (np.cos(angle) * columns + np.sin(angle) * rows) + phase)
    x = (wave + random.normal(0, 1.0, wave.shape)).astype(np.float32)
    np.savez(arguments.output, x=x, y=y)


if __name__ == "__main__":
    main()
