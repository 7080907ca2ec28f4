"""Profiles to place on: drawn ones of the papers' shapes, and measured ones out of bundles.

A shape has E exits and convolutions x FC heads branches at each. Backbone times up to the exits rise unevenly; a
branch's size and duration follow from its parts (a convolution's width and an FC head's, wider at deeper exits,
quicker on the smaller maps there), so sizes repeat; accuracy rises with depth towards the final exit's and saturates
with the branch's size, plus noise of 0.8 points, as training gives. The seed fixes them.
"""

from pathlib import Path
from typing import Any

import numpy as np

from meedge_ray.bundle.manifest import read_bundle
from meedge_ray.runtime.placing import HORIZON_FACTOR

SEED = 0
SHAPES = {  # exits, convolutions, FC heads, single-exit time in ms
    "LeNet": (3, 15, 7, 0.3),
    "AlexNet": (5, 15, 7, 2.0),
    "ResNet-20": (9, 15, 7, 0.87),
    "VGG-16": (13, 15, 7, 8.0),
    "ResNet-110": (54, 11, 8, 4.5),
}
FINAL_ACCURACY = 0.92


def drawn(exits: int, convolutions: int, heads: int, final_ms: float) -> dict[str, Any]:
    """Draw a profile: the arguments of `placement_frontier`."""
    rng = np.random.default_rng(SEED)
    reach = np.cumsum(rng.uniform(0.7, 1.3, exits + 1))
    reach *= final_ms / reach[-1]
    exit_index, convolution, head = (
        grid.ravel() for grid in np.meshgrid(range(exits), range(convolutions), range(heads), indexing="ij")
    )
    depth = (exit_index + 1) / (exits + 1)
    width = 2.0 ** np.floor(3 * depth)  # channels double twice on the way, maps shrink
    kernel = np.linspace(0.2, 1.0, convolutions)[convolution]
    hidden = np.linspace(0.1, 1.0, heads)[head]
    size_bytes = np.round(4 * (1500 * kernel * width + 40_000 * hidden * np.sqrt(width))).astype(np.int64)
    share = 0.02 + 0.10 * kernel / np.sqrt(width) + 0.02 * hidden
    ceiling = 0.45 + (FINAL_ACCURACY - 0.45) * depth**0.6
    accuracy = ceiling * (1 - 0.12 * (1 - kernel) ** 2 - 0.10 * (1 - hidden) ** 2)
    return {
        "exit_index": exit_index,
        "duration_ms": final_ms * share * rng.uniform(0.95, 1.05, len(share)),
        "accuracy": np.clip(accuracy + rng.normal(0, 0.008, len(share)), 0.01, 0.99),
        "size_bytes": size_bytes,
        "backbone_ms": reach[:-1],
        "final_ms": final_ms,
        "final_accuracy": FINAL_ACCURACY,
        "horizon_ms": 1.2 * final_ms,
    }


def measured(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the profiles of a bundle by "model on device type"; a convolution counts with each head it serves."""
    bundle = read_bundle(directory)
    return {
        f"{bundle.model} on {profile.device_type}": {
            "exit_index": np.array([branch.exit_index for branch in bundle.branches], np.int64),
            "duration_ms": np.array([profile.branch_ms[branch.name] for branch in bundle.branches]),
            "accuracy": np.array([branch.accuracy for branch in bundle.branches]),
            "size_bytes": np.array([branch.size_bytes for branch in bundle.branches], np.int64),
            "backbone_ms": np.cumsum(profile.block_ms)[:-1],
            "final_ms": profile.single_exit_ms,
            "final_accuracy": bundle.final_accuracy,
            "horizon_ms": HORIZON_FACTOR * profile.single_exit_ms,
        }
        for profile in bundle.profiles.values()
    }
