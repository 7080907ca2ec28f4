"""Makes samples.npz: what a device has seen, some of scikit-learn's handwritten digits and what they are."""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, nargs="?", default=Path("samples.npz"))
    parser.add_argument("--count", type=int, default=400)
    arguments = parser.parse_args()
    digits = load_digits()
    chosen = np.random.default_rng(0).permutation(len(digits.images))[: arguments.count]
    np.savez(arguments.output, x=digits.images[chosen, None].astype(np.float32), y=digits.target[chosen])


if __name__ == "__main__":
    main()
