"""Small images of coloured shapes on noise, made here: to classify, to segment and to detect."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meedge_ray.domain.elastic import InputSpec
from meedge_ray.train.samples import Rows, Samples

SIDE = 48  # pixels
KINDS = ("disc", "square", "triangle", "cross", "ring", "bar")
BACKGROUND = len(KINDS)  # the class of pixels of no shape
MOST = 3  # shapes in an image
INPUT = InputSpec(shape=(3, SIDE, SIDE), scale=1 / 255, mean=(0.5,), std=(0.25,))
_RADII = (6, 11)  # pixels
_NOISE, _DISTRACTORS = 30.0, 6

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Scenes:
    """Images, and what is on them.

    `kinds` [n, MOST], -1 where there is no further shape; `boxes` [n, MOST, 4]: x, y of the centre, width, height, 0..1
    of the side; `pixels` [n, SIDE, SIDE]: the class of every pixel.
    """

    images: Image
    kinds: NDArray[np.int64]
    boxes: NDArray[np.float32]
    pixels: NDArray[np.int64]


def scenes(count: int, seed: int, *, most: int = MOST) -> Scenes:
    """Return images with 1 to `most` shapes each; the same seed gives the same."""
    random = np.random.default_rng(seed)
    images = np.zeros((count, 3, SIDE, SIDE), np.uint8)
    kinds = np.full((count, MOST), -1)
    boxes = np.zeros((count, MOST, 4), np.float32)
    pixels = np.full((count, SIDE, SIDE), BACKGROUND)
    for index in range(count):
        canvas = random.uniform(60, 200, (3, 1, 1)) + np.zeros((3, SIDE, SIDE))
        for _ in range(_DISTRACTORS):  # lines, that colour and contrast alone may not tell a shape
            place, horizontal = random.integers(SIDE), random.random() < 0.5
            canvas[(slice(None), place) if horizontal else (slice(None), slice(None), place)] = random.uniform(0, 255)
        for slot in range(random.integers(1, most + 1)):
            kind, radius = int(random.integers(len(KINDS))), int(random.integers(*_RADII))
            x, y = random.integers(radius, SIDE - radius, 2)
            mask = _mask(kind, x, y, radius, random)
            if (pixels[index][mask] != BACKGROUND).any():
                continue
            canvas[:, mask] = random.uniform(0, 255, (3, 1))
            pixels[index][mask] = kind
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            kinds[index, slot] = kind
            boxes[index, slot] = (
                np.array([left + right, top + bottom, 2 * (right - left), 2 * (bottom - top)]) / 2 / SIDE
            )
        images[index] = np.clip(canvas + random.normal(0, _NOISE, canvas.shape), 0, 255)
    return Scenes(images, kinds, boxes, pixels)


def classified(count: int, seed: int) -> Samples:
    """Return images of one shape each, and which it is."""
    made = scenes(count, seed, most=1)
    return Samples(Rows(made.images), made.kinds[:, 0])


def segmented(count: int, seed: int) -> Samples:
    """Return images and the class of every pixel."""
    made = scenes(count, seed)
    return Samples(Rows(made.images), made.pixels)


def detected(count: int, seed: int) -> Samples:
    """Return images and [MOST, 5] numbers a sample: class, -1 for none, and box."""
    made = scenes(count, seed)
    return Samples(Rows(made.images), np.concatenate([made.kinds[..., None], made.boxes], axis=2).astype(np.float32))


def _mask(kind: int, x: int, y: int, radius: int, random: np.random.Generator) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    dx, dy = columns - x, rows - y
    near = np.maximum(abs(dx), abs(dy)) < radius
    name = KINDS[kind]
    if name == "disc":
        return dx**2 + dy**2 < radius**2
    if name == "square":
        return np.maximum(abs(dx), abs(dy)) < 0.8 * radius
    if name == "triangle":
        return near & (dy > 2 * abs(dx) - radius)
    if name == "cross":
        return near & (np.minimum(abs(dx), abs(dy)) < radius / 3)
    if name == "ring":
        return (dx**2 + dy**2 < radius**2) & (dx**2 + dy**2 > (0.55 * radius) ** 2)
    return near & (abs(dy if random.random() < 0.5 else dx) < radius / 3)
